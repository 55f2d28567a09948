"""Many whole devices in one process: each joins with an invite, then takes part until it is asked to leave.

    python -m engines.fleet_devices ORDER    (from bench/; ORDER is JSON, see :class:`Order`)

A device here is the product's own :class:`~agent.federation.device.Device` with its database, outbox, keys, consent,
link and files. Two things are simulated: its training (:mod:`engines.synthetic`), and that it has a machine of its own.
Every second a line of JSON on standard output says how far they are: ``joined``, ``current`` (how many have judged the
release that the fleet is to reach), and ``said``, the events of all devices by name.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import signal
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from agent.crypto.identity import Identity
from agent.data.sources import survey
from agent.errors import BrambleError
from agent.events import Events, Value
from agent.federation.store import open_device_store
from agent.joining import join_community
from agent.paths import Home
from agent.service import add_source, build_device, create_device, settings_of
from engines.synthetic import synthetic_workers

JOINING_AT_ONCE = 4
"""Devices of one process that stand at the hub's door together."""


class Order(BaseModel):
    """What one process has to do.

    Attributes:
        homes: of the devices; made by the process.
        invite: that lets all of them in.
        base: the community's.
        release: number of the release that ends it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    homes: tuple[Path, ...]
    invite: str
    base: Path
    release: int


class _Fleet:
    """The devices of this process."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._doors = asyncio.Semaphore(JOINING_AT_ONCE)
        self._joined = 0
        self._current: set[Path] = set()
        self._said: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        """Run all of them until cancelled."""
        text = self._order.homes[0].parent / "text"
        text.mkdir(exist_ok=True)
        (text / "note.txt").write_text("Synthetic workers do not read this.\n")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._report())
            for root in self._order.homes:
                tasks.create_task(self._live(Home(root), text))

    async def _live(self, home: Home, text: Path) -> None:
        """Make a device, let it join, and run it; where it ends for a reason, again, as a service manager does."""
        async with self._doors:
            await asyncio.to_thread(_make, home, text)
            await self._join(home)
        self._joined += 1
        events = Events(quiet=True, listeners=[lambda event, fields: self._heard(home.root, event, fields)])
        settings, workers = settings_of(home), synthetic_workers()
        while True:
            with contextlib.suppress(BrambleError), open_device_store(home) as store:
                await build_device(store, Identity.load(home.keys), settings, events=events, workers=workers).run()
            self._said["ended"] += 1
            await asyncio.sleep(1.0)

    async def _join(self, home: Home) -> None:
        while True:
            try:
                await join_community(home, self._order.invite, base=self._order.base, agree=lambda _door: True)
            except BrambleError as error:  # the hub did not answer in time, say: its owner would try again
                self._said[f"join-{error.code}"] += 1
                await asyncio.sleep(1.0)
            else:
                return

    def _heard(self, root: Path, event: str, fields: dict[str, Value]) -> None:
        self._said[event] += 1
        if event in {"adopted", "declined"} and fields["release"] == self._order.release:
            self._current.add(root)

    async def _report(self) -> None:
        while True:
            line = {"joined": self._joined, "current": len(self._current), "said": dict(self._said)}
            print(json.dumps(line), flush=True)
            await asyncio.sleep(1.0)


def _make(home: Home, text: Path) -> None:
    if not home.database.exists():
        create_device(home)
        home.settings.write_text("threads = 1\n")
        add_source(home, text, survey([text]))


async def _main(order: Order) -> None:
    task = asyncio.ensure_future(_Fleet(order).run())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(_main(Order.model_validate_json(Path(sys.argv[1]).read_bytes())))
