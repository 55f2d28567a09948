"""A whole community in one directory: a hub, devices with text of their own, and the processes that run them."""

from __future__ import annotations

import contextlib
import json
import shutil
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.data.sources import survey
from agent.demo.text import _pieces
from agent.federation.invite import Invite
from agent.hub.reporting import hub_status
from agent.hub.setup import make_invite
from agent.hub.store import HubConfig, open_store
from agent.paths import Home
from agent.service import add_source, create_device, device_status
from tests.integration.processes import Running, Said, bramble, succeed
from tests.transport.brokers import free_port

CHARACTERS = 40_000
"""Of each device's text: a few hundred windows of 64 tokens."""

_MODULES = (("argparse", "pathlib", "tarfile", "zipfile", "shutil"), ("statistics", "fractions", "random", "enum"))


def write_text(directory: Path, part: int, *, characters: int = CHARACTERS) -> Path:
    """Write real text, that the seedling has never seen, under names that nobody else uses."""
    directory.mkdir(parents=True)
    library = Path(sysconfig.get_paths()["stdlib"])
    left = characters
    for module in _MODULES[part % len(_MODULES)]:
        source = library / f"{module}.py"
        text = "\n\n".join(_pieces(source if source.is_file() else library / module / "__init__.py"))[:left]
        (directory / f"letters-about-{module}-1987.txt").write_text(text)
        left -= len(text)
    return directory


@dataclass
class Community:
    """A hub and its devices. Made by :func:`make_community`."""

    directory: Path
    devices: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[Running] = field(default_factory=list)
    """What runs at this moment."""

    @property
    def hub_home(self) -> Home:
        return Home(self.directory / "hub")

    def home(self, device: str) -> Home:
        return Home(self.directory / device)

    def text(self, device: str) -> Path:
        return self.directory / "private-letters" / device

    @property
    def config(self) -> HubConfig:
        with open_store(self.hub_home) as store:
            return store.config

    def hub(self) -> Running:
        """Give the hub's process, not yet started."""
        return self._running("hub", "hub", "run", "--home", self.hub_home.root, "--events-json")

    @contextlib.contextmanager
    def running(self, *devices: str) -> Iterator[list[Running]]:
        """Run the hub until it is ready, then these devices; give them in this order."""
        with contextlib.ExitStack() as stack:
            hub = stack.enter_context(self.hub())
            hub.wait_for("hub-ready")
            yield [hub, *(stack.enter_context(self.device(name)) for name in devices)]

    def device(self, name: str) -> Running:
        """Give a device's process, not yet started."""
        return self._running(name, "run", "--home", self.home(name).root, "--events-json", "--threads", "1")

    def _running(self, name: str, *arguments: str | Path) -> Running:
        return Running(
            name=name,
            arguments=arguments,
            log=self.directory / f"{name}.log",
            environment=dict(self.environment),
            beside=self.processes,
        )

    def invite(self, *, uses: int = 1, expires_seconds: float = 3600.0, broker: str | None = None) -> Invite:
        """Give out an invite; with a broker's URL that leads through a proxy, if given."""
        made = make_invite(self.hub_home, uses=uses, expires_seconds=expires_seconds)
        return made if broker is None else replace(made, broker=broker)

    def join_all(self, *, broker: str | None = None) -> None:
        """Let every device join, at the same time; the hub runs."""
        line = self.invite(uses=len(self.devices), broker=broker).encode()
        failures: list[str] = []

        def join(name: str) -> None:
            done = bramble("join", line, "--yes", "--home", self.home(name).root, environment=self.environment)
            if done.returncode:
                failures.append(f"{name}: {done.stderr}")

        threads = [threading.Thread(target=join, args=(name,)) for name in self.devices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures

    def status(self) -> dict[str, Any]:
        """Everything about the rounds, read from the hub's database."""
        with open_store(self.hub_home) as store:
            return json.loads(json.dumps(hub_status(store), default=str))

    def device_id(self, name: str) -> str:
        return str(device_status(self.home(name))["device"])

    def counted(self, number: int) -> list[str]:
        """The devices whose updates count in a round, as often as they count."""
        return sorted(row["device"] for row in self.status()["updates"] if row["round"] == number)

    def everybody(self) -> list[str]:
        return sorted(self.device_id(name) for name in self.devices)

    def copy(self, directory: Path) -> Community:
        """Give a copy of everything on the disk, as it is now. Only one of the copies may run at a time."""
        shutil.copytree(self.directory, directory, dirs_exist_ok=True)
        return Community(directory=directory, devices=self.devices, environment=dict(self.environment))


def make_community(
    directory: Path,
    *,
    broker: str | None = None,
    devices: Sequence[str] = ("ada", "bob"),
    rounds: int | None = None,
    steps: int = 2,
    settings: str = "",
    options: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> Community:
    """Make a hub and devices with text; nobody has joined yet and nothing runs.

    Args:
        directory: an empty one.
        broker: URL of a broker; the embedded one, on a port that is free now, if not given.
        devices: their names.
        rounds: close after so many.
        steps: of training in a round.
        settings: lines for every device's ``settings.toml``.
        options: more of `bramble hub init`.
        environment: of every process.
    """
    made = Community(directory=directory, devices=tuple(devices), environment=environment or {})
    where = ("--broker", broker) if broker else ("--port", str(free_port()))
    plan = ("--steps", str(steps), "--batch-size", "1", "--window", "64", "--heartbeat", "2s")
    gate = ("--quorum", str(len(devices)), "--target", str(len(devices)))
    last = ("--rounds", str(rounds)) if rounds else ()
    succeed("hub", "init", "--home", made.hub_home.root, *where, *plan, *gate, *last, *options)
    for part, name in enumerate(devices):
        home = made.home(name)
        create_device(home, nickname=f"nickname-of-{name}")
        home.settings.write_text(
            f'threads = 1\nnickname = "nickname-of-{name}"\nresend_seconds = 1.0\nmax_heldout_windows = 4\n{settings}\n'
        )
        text = write_text(made.text(name), part)
        add_source(home, text, survey([text]))
    return made


def grown_release(hub: Running, number: int, *, after: Said | None = None) -> Said:
    """Wait until the hub has decided on the candidate of a round."""
    return hub.wait_for("promoted", "rejected", after=after, where=lambda said: said["round"] == number)


def wait_next_round(hub: Running, number: int) -> Said:
    """Wait until a round is open or resumed."""
    return hub.wait_for("round-open", "round-resumed", where=lambda said: said["round"] == number)
