"""One fault run: a community on a broken network, with failing disks and dying processes, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.faults import child
from tests.faults.actors import ONE_AT_A_TIME, Actor, fork_server, kill_worker
from tests.faults.community import Disks, make_disks
from tests.faults.invariants import Spoken, breaches
from tests.faults.plan import BROKER, HUB, WIRE, Fault, Plan
from tests.faults.proxy import FaultProxy
from tests.transport.brokers import mosquitto

BOUND_SECONDS = 240.0
"""A run that has not ended by then has failed. Most take five; others may need the machine at the same time."""

POLL_SECONDS = 0.05


@dataclass(kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
        wrong: what must not be; nothing where the run is good.
        happened: the faults that came about, by kind.
        rounds: how each round ended.
        refusals: updates that were refused, by reason.
        restarts: how often a process was started again.
    """

    seed: int
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    happened: dict[str, int] = field(default_factory=dict)
    rounds: list[str] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    updates: int = 0
    restarts: int = 0


async def run(plan: Plan, *, base: Path, keep: Path | None = None) -> Outcome:
    """Let a community live through a plan, and check what is left.

    Args:
        plan: what goes wrong.
        base: the tiny base.
        keep: where to leave everything if the run fails; nowhere if None.
    """
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix=f"bramble-faults-{plan.seed}-"))
    try:
        outcome = (await live_through(plan, directory, base=base)).outcome
        outcome.seconds = round(time.monotonic() - began, 2)
        if outcome.wrong and keep is not None:
            shutil.copytree(directory, keep / f"seed-{plan.seed}", dirs_exist_ok=True)
        return outcome
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Remains:
    """What a run leaves."""

    outcome: Outcome
    disks: Disks
    said: Sequence[Spoken]


async def live_through(plan: Plan, directory: Path, *, base: Path) -> Remains:
    """Let a community live through a plan, in a directory that stays."""
    return await _Run(plan, directory, base).remains()


class _Run:
    """One run under way."""

    def __init__(self, plan: Plan, directory: Path, base: Path) -> None:
        self._plan = plan
        self._directory = directory
        self._base = base
        self._said: list[Spoken] = []
        self._happened: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._outside = [fault for fault in plan.faults if fault.kind in {"kill-at-event", "kill-worker"}]
        self._broker_deaths = sorted(plan.of(BROKER, "kill-broker"), key=lambda fault: fault.at)
        self._tasks: set[asyncio.Task[None]] = set()
        self._actors: list[Actor] = []
        self._spoken = 0

    async def remains(self) -> Remains:
        with mosquitto(self._directory, _broker_lines(self._plan, self._directory)) as broker:
            self._broker = broker
            async with contextlib.AsyncExitStack() as stack:
                urls = {}
                for who in (HUB, *self._plan.devices):
                    faults = self._plan.of(who, *WIRE)
                    proxy = FaultProxy(upstream=broker.port, faults=faults, happened=self._note)
                    urls[who] = (await stack.enter_async_context(proxy)).url
                disks = await asyncio.to_thread(make_disks, self._directory, self._plan, base=self._base, urls=urls)
                await self._live(disks)
        wrong = [*self._wrong, *(breach for actor in self._actors for breach in actor.wrong)]
        wrong += await asyncio.to_thread(breaches, disks, self._said)
        _write_log(self._directory / "said.log", self._said)
        return Remains(self._summary(disks, wrong), disks, self._said)

    async def _live(self, disks: Disks) -> None:
        """Run everybody until there is nothing left to do, and have them leave."""
        plan = self._plan
        work = None if plan.real_workers else (plan.work_seconds, plan.quarrel)
        starts: dict[str, Any] = {HUB: partial(_start, child.hub_process, (disks.hub.root, plan.protocol))}
        for name, home in disks.devices.items():
            starts[name] = partial(_start, child.device_process, (home.root, plan.protocol, work))
        self._actors = [
            Actor(who=who, start=start, plan=plan, said=self._said, heard=self._heard, happened=self._note)
            for who, start in starts.items()
        ]
        lives = [asyncio.create_task(actor.live(), name=actor.who) for actor in self._actors]
        ends = time.monotonic() + BOUND_SECONDS
        while not (over := await asyncio.to_thread(_all_settled, disks)) and not any(a.wrong for a in self._actors):
            if time.monotonic() > ends:
                break
            await asyncio.sleep(POLL_SECONDS)
        if not over and not any(actor.wrong for actor in self._actors):
            self._wrong.append(f"it did not end within {BOUND_SECONDS:g} s; {_where(disks)}")
        for actor in self._actors:
            actor.leave()
        await asyncio.gather(*(actor.gone(life) for actor, life in zip(self._actors, lives, strict=True)))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what goes wrong outside the processes and the wires ---------------------------------------------------

    def _note(self, fault: Fault) -> None:
        self._happened[fault.kind] += 1
        self._said.append(Spoken("fault", fault.kind, {"who": fault.who, "at": fault.at, "on": fault.direction}))

    def _heard(self, actor: Actor, _spoken: Spoken) -> None:
        """Something was said: see whose turn has come."""
        self._spoken += 1
        while self._broker_deaths and self._broker_deaths[0].at <= self._spoken:
            self._do(self._kill_broker(self._broker_deaths.pop(0)))
        for fault in tuple(self._outside):
            count = actor.spoken if fault.kind == "kill-at-event" else actor.workers
            if fault.who == actor.who and fault.at <= count:
                self._outside.remove(fault)
                self._do(self._kill(actor, fault))

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _kill(self, actor: Actor, fault: Fault) -> None:
        await asyncio.sleep(fault.seconds)
        if fault.kind == "kill-at-event":
            actor.kill()
            self._note(fault)
        elif kill_worker(actor):
            self._note(fault)

    async def _kill_broker(self, fault: Fault) -> None:
        self._note(fault)
        await asyncio.to_thread(self._broker.kill)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await asyncio.shield(asyncio.to_thread(self._broker.start))

    def _summary(self, disks: Disks, wrong: list[str]) -> Outcome:
        with contextlib.closing(_read(disks.hub.database)) as hub:
            rounds = [str(row[0]) for row in hub.execute("SELECT outcome FROM rounds ORDER BY round")]
            refusals = Counter(str(row[0]) for row in hub.execute("SELECT reason FROM refusals"))
            (updates,) = hub.execute("SELECT COUNT(*) FROM updates").fetchone()
        return Outcome(
            seed=self._plan.seed,
            wrong=wrong,
            happened=dict(self._happened),
            rounds=rounds,
            refusals=dict(refusals),
            updates=updates,
            restarts=sum(actor.lives - 1 for actor in self._actors),
        )


def _broker_lines(plan: Plan, directory: Path) -> Sequence[str]:
    lines = ["allow_anonymous true"]
    if plan.persistence:
        room = directory / "broker"
        room.mkdir()
        lines += [
            "persistence true",
            f"persistence_location {room}/",
            "autosave_on_changes true",
            "autosave_interval 1",
        ]
    return lines


def _start(
    target: Callable[..., None], arguments: tuple[object, ...], faults: Sequence[Fault], output: Connection
) -> ForkServerProcess:
    """Fork a hub or a device for one life."""
    process = fork_server().Process(target=target, args=(*arguments, tuple(faults), output), daemon=True)
    with ONE_AT_A_TIME:
        process.start()
    return process


# --- has everything come to rest? ------------------------------------------------------------------------------


def _read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)


def _all_settled(disks: Disks) -> bool:
    """Say whether the community is closed, and every device has its last release and an answer to all it made."""
    try:
        with contextlib.closing(_read(disks.hub.database)) as hub:
            row = hub.execute("SELECT value FROM facts WHERE key = 'round'").fetchone()
            if row is None or b'"closed"' not in bytes(row[0]):
                return False
            (last,) = hub.execute(
                "SELECT sha256 FROM releases WHERE state = 'promoted' ORDER BY number DESC LIMIT 1"
            ).fetchone()
        return all(_device_settled(home.database, last) for home in disks.devices.values())
    except sqlite3.OperationalError:
        return False


def _device_settled(database: Path, last: str) -> bool:
    with contextlib.closing(_read(database)) as device:
        (open_rounds,) = device.execute("SELECT COUNT(*) FROM rounds WHERE state = 'sending'").fetchone()
        (waiting,) = device.execute("SELECT COUNT(*) FROM outbox").fetchone()
        judged = device.execute("SELECT 1 FROM releases WHERE sha256 = ?", (last,)).fetchone()
    return not open_rounds and not waiting and judged is not None


def _where(disks: Disks) -> str:
    """Say where everybody is stuck."""
    words = []
    with contextlib.closing(_read(disks.hub.database)) as hub:
        row = hub.execute("SELECT value FROM facts WHERE key = 'round'").fetchone()
        words.append(f"hub: {bytes(row[0]).decode() if row else 'no round'}")
    for name, home in disks.devices.items():
        with contextlib.closing(_read(home.database)) as device:
            status = device.execute("SELECT value FROM facts WHERE key = 'status'").fetchone()
            rounds = device.execute("SELECT round, state FROM rounds").fetchall()
            waiting = device.execute("SELECT kind, COUNT(*) FROM outbox GROUP BY kind").fetchall()
        said = bytes(status[0]).decode() if status else "nothing"
        words.append(f"{name}: {said}, rounds {rounds}, outbox {waiting}")
    return "; ".join(words)


def _write_log(path: Path, said: Sequence[Spoken]) -> None:
    path.write_text("".join(f"{spoken.who:<10} {spoken.name:<16} {dict(spoken.fields)}\n" for spoken in said))
