"""What runs in the processes of a fault run: the real hub and the real device, in a world that turns against them.

Children are forked from a server that has imported everything, so that one is up in a tenth of a second. Their disk is
real: a process that is to find it full gets no more bytes from the kernel (``RLIMIT_FSIZE``, which needs no rights),
for files and SQLite alike. It dies of SIGKILL from within, at the Nth time that it is about to write.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import shutil
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import agent.federation.device
import agent.federation.sending
import agent.hub.hub
import agent.hub.merging
import agent.hub.process
import agent.service
from agent.errors import BrambleError
from agent.events import Events
from agent.hub.rounds import RoundState
from agent.hub.store import HubStore
from agent.paths import BlobStore, Home
from agent.settings import PROTOCOL_VARIABLE
from agent.training.process import Workers, run_worker
from agent.transport.mqtt import MqttLink
from engines.synthetic import synthetic_workers
from tests.faults.plan import Fault

BEFORE_MERGES = "before-merges"
"""Where the hub's process keeps what it is about to merge, by round: the check merges it once more."""

FREE_BYTES = 10 * 1024
"""What is still written when the disk is full is cut off somewhere in the first so many bytes of a file."""

_connect, _time = sqlite3.connect, time.time  # before anything stands in their way
_WRITES = ("INSERT", "UPDATE", "DELETE", "CREATE", "COMMIT", "RELEASE")


def hub_process(home: Path, protocol: str, faults: Sequence[Fault], output: Connection) -> None:
    """Run a hub until it is asked to leave."""
    _settle_in(faults, protocol, output)
    _keep_what_is_merged(home / BEFORE_MERGES)
    _end_with(lambda: agent.hub.process.run_hub_process(Home(home), events=_events()))


def device_process(
    home: Path, protocol: str, work: tuple[float, float] | None, faults: Sequence[Fault], output: Connection
) -> None:
    """Run a device until it is asked to leave; ``work`` is how long a synthetic job takes and how much they quarrel."""
    _settle_in(faults, protocol, output)
    workers: Workers = run_worker if work is None else synthetic_workers(seconds=work[0], quarrel=work[1])
    _end_with(lambda: agent.service.run_device(Home(home), events=_events(), workers=workers))


def _settle_in(faults: Sequence[Fault], protocol: str, output: Connection) -> None:
    """Speak into the pipe, be impatient, and arm what is to go wrong."""
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    os.environ[PROTOCOL_VARIABLE] = protocol
    _hurry()
    trap = _Trap(faults)
    trap.arm()


def _events() -> Events:
    return Events(stream=sys.stdout, as_json=True)


def _end_with(work: Callable[[], None]) -> None:
    """Do the work; say why it ended where it ended by itself, as the command line does."""
    status = 0
    try:
        work()
    except BrambleError as error:
        _events().say("ended", str(error), code=error.code, advice=error.advice)
        status = error.exit_status
    except BaseException:  # noqa: BLE001 - the one thing a run must never see
        _events().say("crashed", traceback.format_exc())
        status = 1
    sys.stdout.flush()
    os._exit(status)


def _hurry() -> None:
    """Wait for seconds where owners wait for minutes.

    Not for less: on a busy machine everybody would repeat themselves before anybody could answer, and nothing else.
    """
    agent.federation.device.RETRY_SECONDS = (0.2, 1.0)
    agent.federation.device.LOOK_AGAIN_SECONDS = 1.0
    agent.federation.device.CONSENT_SECONDS = 0.5
    agent.federation.sending.MAX_PATIENCE = 8.0
    agent.hub.hub.TICK_SECONDS = 0.05
    quick = functools.partial(MqttLink, keepalive=4, backoff=(0.05, 0.5), answer_seconds=4.0)
    for room in (agent.service, agent.hub.process):
        vars(room)["MqttLink"] = quick


def _keep_what_is_merged(room: Path) -> None:
    """Have the hub's database and blobs kept as they are before each merge; the latest attempt at each round."""
    merge_round = agent.hub.merging.merge_round

    def keep(home: Home, number: int) -> None:
        kept = Home(room / str(number))
        shutil.rmtree(kept.root, ignore_errors=True)
        kept.blobs.mkdir(parents=True)
        for blob in home.blobs.iterdir():
            if not blob.name.startswith("."):  # one that is being written goes away by itself
                os.link(blob, kept.blobs / blob.name)
        with closing(_connect(home.database)) as source, closing(_connect(kept.database)) as target:
            source.backup(target)

    def merge(store: HubStore, blobs: BlobStore, state: RoundState, **options: Any) -> Any:
        try:
            keep(store.home, state.number)
        except (OSError, sqlite3.Error):  # the disk is full: then this round is not checked
            shutil.rmtree(room / str(state.number), ignore_errors=True)
        return merge_round(store, blobs, state, **options)

    for name, module in list(sys.modules.items()):
        if name.startswith("agent.hub.") and vars(module).get("merge_round") is merge_round:
            vars(module)["merge_round"] = merge


class _Trap:
    """Counts what is about to be written, and springs.

    Args:
        faults: ``kill-at-write``, ``full-disk`` and ``clock``.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._left = sorted(faults, key=lambda fault: fault.at)
        self._count = 0
        self._ahead = 0.0
        self._full = False
        self._lock = threading.Lock()

    def arm(self) -> None:
        """Stand in the way of whatever reaches the disk, and of the clock."""
        real_fsync, real_replace = os.fsync, Path.replace

        def fsync(descriptor: int) -> None:
            self._about_to_write()
            if self._full:  # as file systems do that find room for what was written only now
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real_fsync(descriptor)

        def replace(path: Path, target: Path) -> Path:
            self._about_to_write()
            return real_replace(path, target)

        def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = _connect(*arguments, **options)
            connection.set_trace_callback(self._statement)
            return connection

        os.fsync, Path.replace = fsync, replace  # type: ignore[assignment, method-assign]
        for room in (sqlite3, sqlite3.dbapi2):
            vars(room)["connect"] = connect
        self._bend_time()

    def _bend_time(self) -> None:
        def bent() -> float:
            return _time() + self._ahead

        time.time = bent
        time.time_ns = lambda: int(bent() * 1e9)
        defaults = agent.hub.hub.Hub.__init__.__kwdefaults__  # it took the real clock when it was imported
        assert defaults is not None
        defaults["clock"] = bent

    def _statement(self, sql: str) -> None:
        if sql.lstrip().upper().startswith(_WRITES):
            self._about_to_write()

    def _about_to_write(self) -> None:
        with self._lock:
            self._count += 1
            due = [fault for fault in self._left if fault.at <= self._count]
            self._left = [fault for fault in self._left if fault not in due]
        for fault in due:
            self._spring(fault)

    def _spring(self, fault: Fault) -> None:
        _tell(fault)
        if fault.kind == "kill-at-write":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "clock":
            self._ahead = max(fault.seconds, 1.0 - _time())  # 1970 is where clocks begin
        elif fault.kind == "full-disk":
            self._fill_disk(fault.seconds, room=fault.extra % FREE_BYTES)

    def _fill_disk(self, seconds: float, *, room: int) -> None:
        """Let no file grow beyond ``room`` bytes, for so long."""
        _soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        self._full = True
        real_usage = shutil.disk_usage
        shutil.disk_usage = lambda path: real_usage(path)._replace(free=0)

        def free() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            self._full = False
            shutil.disk_usage = real_usage

        timer = threading.Timer(seconds, free)
        timer.daemon = True
        timer.start()


def _tell(fault: Fault) -> None:
    """Say that it happened, past everything that could be in the way."""
    line = json.dumps({"event": "fault", "kind": fault.kind, "at": fault.at})
    os.write(1, f"{line}\n".encode())
