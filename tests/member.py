"""A device that has joined a community and grown adapters, made without any of that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.crypto.identity import Identity
from agent.data.consent import ConsentBook
from agent.data.sources import survey
from agent.federation.judging import AdapterFiles, personal_adapter
from agent.federation.messages import Manifest
from agent.federation.store import Membership, RoundRecord, open_device_store
from agent.governance.charter import Charter, TrainingPlan
from agent.llm.adapter import Adapter
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.gguf_file import open_gguf, sha256_file
from agent.paths import BlobStore, Home
from tests.models import random_adapter

NAMES = ("q_proj", "down_proj")


@dataclass(frozen=True)
class Member:
    """The device, and the numbers of its adapters."""

    home: Home
    base: Path
    releases: tuple[Adapter, ...]
    trained: Adapter
    personal: Adapter


def make_member(home: Home, base: Path, *, text: Path | None = None) -> Member:
    """Make a device with the releases 0 to 2 of a community (2 is in use), a trained adapter and a personal one."""
    home.create()
    model = open_gguf(base)
    made = [random_adapter(model, rank=4, alpha=8.0, names=NAMES, size=0.05, seed=seed) for seed in range(4)]
    releases, trained = tuple(made[:3]), made[3]
    personal = personal_adapter(trained, releases[2])
    charter = Charter(
        name="Hedge",
        base_name=base.stem,
        base_sha256=sha256_file(base),
        base_bytes=base.stat().st_size,
        rank=4,
        target_modules=NAMES,
        training=TrainingPlan(window=32),
    )
    membership = Membership(
        community="c" * 32,
        broker="mqtt://127.0.0.1:1",
        hub=Identity.generate().public.encode(),
        username="",
        password="",
        base=base,
        charter=charter,
        joined=0,
    )
    blobs = BlobStore(home.blobs)
    with open_device_store(home, create=True) as store:
        store.save_membership(membership)
        for number, adapter in enumerate(releases):
            data = adapter.to_bytes()
            sha256 = blobs.put(data)
            manifest = Manifest(number=number, sha256=sha256, parent="", size=len(data), round=number)
            store.save_release(manifest, adopt=True)
        blobs.discard(blobs.put(releases[1].to_bytes()))  # the device forgets what it needs no more
        record = RoundRecord(
            round=2,
            transfer="d" * 32,
            update_id="e" * 64,
            wire_bytes=1,
            fp32_bytes=1,
            report={"trained": blobs.put(trained.to_bytes())},
        )
        with store.transaction() as connection:
            store.add_round(record)
            if text is not None:
                ConsentBook(connection).grant(text, survey([text]), granted_by="ada")
        path = AdapterFiles(store=store, base=base).personal
        path.parent.mkdir(parents=True)
        write_gguf_adapter(personal, model, path)
    return Member(home, base, releases, trained, personal)
