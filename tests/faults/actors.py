"""The processes of a fault run, heard while they live, started again when they end for a reason."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from agent.errors import BrokerRefusedError, BrokerUnreachableError, DiskFullError, StateError
from tests.faults.invariants import Spoken
from tests.faults.plan import Fault, Plan

STATED = {kind.code for kind in (DiskFullError, StateError, BrokerUnreachableError, BrokerRefusedError)}
"""Reasons for which a process may end by itself: whoever looks after it starts it again."""

ENDS = {"kill-at-write", "full-disk"}
"""Faults inside a process of which each of its lives has one at most."""

LEAVING_SECONDS = 20.0
MOST_LIVES = 30

_context: ForkServerContext | None = None

ONE_AT_A_TIME = threading.Lock()
"""Held by whoever starts a process or asks for its status. multiprocessing can read a status only once, and reads all
there are whenever a process is started: of two who do it at once, the later takes the end of the pipe for a 255."""


def fork_server() -> ForkServerContext:
    """Give the server that children are forked from; it imports everything once."""
    global _context  # noqa: PLW0603 - one a process, as multiprocessing has it
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(["tests.faults.child"])
    return _context


@dataclass(kw_only=True, eq=False)
class Actor:
    """A hub or a device over all its lives.

    Attributes:
        who: its name in the plan.
        start: gives a new process for a life with these faults, which speaks into this pipe.
        plan: of the run.
        said: gets all that it says; shared by all actors.
        heard: called after each thing said.
        happened: told of every fault that came about.
    """

    who: str
    start: Callable[[Sequence[Fault], Connection], ForkServerProcess]
    plan: Plan
    said: list[Spoken]
    heard: Callable[[Actor, Spoken], None]
    happened: Callable[[Fault], None]
    lives: int = 0
    wrong: list[str] = field(default_factory=list)
    """What it did that nothing excuses."""
    spoken: int = 0
    workers: int = 0
    _process: ForkServerProcess | None = None
    _killed: bool = False
    _leaving: bool = False

    def __post_init__(self) -> None:
        inside = self.plan.of(self.who, "kill-at-write", "full-disk", "clock")
        self._ends = [fault for fault in inside if fault.kind in ENDS]
        self._clocks = [fault for fault in inside if fault.kind == "clock"]

    async def live(self) -> None:
        """Run it, life after life, until it is asked to leave or does what nothing excuses."""
        while not self._leaving and not self.wrong:
            if self.lives >= MOST_LIVES:
                self.wrong.append(f"{self.who} was started {self.lives} times")
                return
            await self._one_life()
            if not self._leaving:
                await asyncio.sleep(0.1)

    def kill(self) -> None:
        """Kill it (-9)."""
        if self._process is not None and _status(self._process) is None:
            self._killed = True
            self._process.kill()

    def leave(self) -> None:
        """Ask it to leave, as a service manager does."""
        self._leaving = True
        if self._process is not None and _status(self._process) is None:
            self._process.terminate()

    async def gone(self, living: asyncio.Task[None]) -> None:
        """Wait until it has left; kill it if it stays."""
        done, _pending = await asyncio.wait({living}, timeout=LEAVING_SECONDS)
        if not done:
            self.wrong.append(f"{self.who} did not leave within {LEAVING_SECONDS:g} s of being asked to")
            self.kill()
            await asyncio.wait({living}, timeout=LEAVING_SECONDS)

    async def _one_life(self) -> None:
        self.lives += 1
        self._killed = False
        faults = [*self._ends[:1], *self._clocks]
        ours, theirs = multiprocessing.Pipe(duplex=False)
        self._process = await asyncio.to_thread(self.start, faults, theirs)
        theirs.close()
        last: Spoken | None = None
        try:
            if self._leaving:
                self._process.terminate()
            async for spoken in self._listen(ours):
                last = spoken
            await asyncio.to_thread(wait, [self._process.sentinel], LEAVING_SECONDS)
        finally:
            ours.close()
            if _status(self._process) is None:
                self._process.kill()
                wait([self._process.sentinel])
        self._judge(_status(self._process), last)

    async def _listen(self, ours: Connection) -> Any:
        """Give everything said in one life."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 22)
        pipe = os.fdopen(os.dup(ours.fileno()), "rb", buffering=0)
        transport, _protocol = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            async for line in reader:
                spoken = self._understood(line)
                if spoken is not None:
                    yield spoken
        finally:
            transport.close()

    def _understood(self, line: bytes) -> Spoken | None:
        try:
            fields = json.loads(line)
            spoken = Spoken(self.who, str(fields.pop("event")), fields)
        except (ValueError, TypeError, AttributeError, KeyError):
            self.said.append(Spoken(self.who, "words", {"text": line.decode("utf-8", "replace").rstrip()}))
            return None
        self.said.append(spoken)
        if spoken.name == "fault":
            self._came_about(str(fields["kind"]), int(fields["at"]))
        else:
            self.spoken += 1
            self.workers += spoken.name == "worker"
        self.heard(self, spoken)
        return spoken

    def _came_about(self, kind: str, at: int) -> None:
        """A fault inside has happened: the next life has the next one."""
        for fault in (*self._ends, *self._clocks):
            if (fault.kind, fault.at) == (kind, at):
                if fault in self._ends:
                    self._ends.remove(fault)
                self.happened(fault)
                return

    def _judge(self, status: int | None, last: Spoken | None) -> None:
        """Say whether this end was one that a process may come to."""
        if self._leaving and (status == 0 or (status == -signal.SIGTERM and last is None)):
            return  # in order, or before it could hear that it was asked to
        if status == -signal.SIGKILL and (self._killed or (last is not None and last.name == "fault")):
            return
        if last is not None and last.name == "ended" and last.fields.get("code") in STATED:
            return
        words = last.fields.get("text", "") if last is not None else "without a word"
        self.wrong.append(f"{self.who} ended with status {status}: {last.name if last else ''} {words}")


def _status(process: ForkServerProcess) -> int | None:
    """Give how a process ended; None while it lives."""
    with ONE_AT_A_TIME:
        return process.exitcode


def kill_worker(actor: Actor) -> bool:
    """Kill (-9) the worker that a device has started last, if it is there still."""
    pids = [int(spoken.fields["pid"]) for spoken in actor.said if spoken.who == actor.who and spoken.name == "worker"]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pids[-1], signal.SIGKILL)
        return True
    return False
