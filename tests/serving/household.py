"""A device with a community behind it, made from random adapters in the seedling's shape: no hub, no training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.crypto.identity import Identity
from agent.federation.messages import Manifest
from agent.federation.store import Membership, open_device_store
from agent.governance.charter import Charter
from agent.llm.adapter import Adapter
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.gguf_file import open_gguf
from agent.llm.seedling import SEEDLING_PATH
from agent.paths import BlobStore, Home
from agent.service import adapters_of, create_device
from tests.integration.processes import Running
from tests.models import random_adapter

NAMES = ("q_proj", "v_proj", "down_proj")


def seedling_adapter(seed: int) -> Adapter:
    return random_adapter(open_gguf(SEEDLING_PATH), rank=4, alpha=8.0, names=NAMES, size=0.1, seed=seed)


@dataclass(frozen=True)
class Household:
    """The state directory of a device that is a member."""

    home: Home
    releases: list[int]

    def adopt(self, seed: int) -> None:
        """Take another release into use, as the daemon does."""
        data = seedling_adapter(seed).to_bytes()
        sha256 = BlobStore(self.home.blobs).put(data)
        self.releases.append(seed)
        manifest = Manifest(number=len(self.releases), sha256=sha256, parent="", size=len(data), round=1)
        with open_device_store(self.home) as store:
            store.save_release(manifest, adopt=True)

    def personalise(self, seed: int) -> None:
        """Keep another personal adapter."""
        path = self.home.work / "adapters" / "personal.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new.gguf")
        write_gguf_adapter(seedling_adapter(seed), open_gguf(SEEDLING_PATH), fresh)
        fresh.replace(path)

    def adapters(self) -> dict[str, list[Path]]:
        return adapters_of(self.home)[1]


def make_household(directory: Path) -> Household:
    home = Home(directory)
    create_device(home)
    charter = Charter(name="Test", base_name="seedling", base_sha256="0" * 64, base_bytes=1)
    membership = Membership(
        community="00" * 16,
        broker="mqtt://127.0.0.1",
        hub=Identity.generate().public.encode(),
        username="",
        password="",
        base=SEEDLING_PATH,
        charter=charter,
        joined=int(time.time()),
    )
    with open_device_store(home) as store:
        store.save_membership(membership)
    household = Household(home, [])
    household.adopt(1)
    household.personalise(2)
    return household


@contextlib.contextmanager
def serving(
    log: Path, *arguments: str | Path, environment: dict[str, str] | None = None
) -> Iterator[tuple[Running, str]]:
    """Run `bramble serve` on a free port; give the process and its URL."""
    running = Running(
        name="serve",
        arguments=("serve", "--port", "0", "--threads", "1", "--events-json", *arguments),
        log=log,
        environment=environment or {},
    )
    with running as process:
        yield process, process.wait_for("serving")["url"]
