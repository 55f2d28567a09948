"""Starts worker processes in a moment: a process that has imported torch, and does nothing but fork.

Each line of standard input names a job file, a pipe for the worker's events, and a moment at which the worker kills
itself (``never``, or ``PLACE:NUMBER`` for the so manieth time that it comes by a place). The worker's process id and
then its wait status come back on standard output.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from agent.training import session, trainer, worker  # all that a train job imports
from agent.training.packed import Scratch
from agent.training.trunk import TrunkCache

assert session
assert trainer

PLACES: dict[str, tuple[object, str]] = {
    "use": (Scratch, "about_to_use"),
    "fsync": (os, "fsync"),
    "rename": (os, "replace"),
    "checkpoint": (session, "save_checkpoint"),
    "trunk note": (TrunkCache, "_note"),
    "look": (session.Session, "_look_at_heldout"),
}
"""What a worker comes by: before a weight is unpacked, a file is on disk, and so on."""


def main() -> None:
    """Fork a worker for every line, one after another."""
    for line in sys.stdin:
        job, events, moment = line.rstrip("\n").split("\t")
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(events, os.O_WRONLY), 1)
            if moment != "never":
                place, number = moment.split(":")
                kill_at(*PLACES[place], int(number))
            os._exit(worker.main([job]))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


def kill_at(owner: object, name: str, number: int) -> None:
    """Let this process be killed when it comes by for the so manieth time, counted from 1."""
    function: Callable[..., Any] = getattr(owner, name)
    times = itertools.count(1)

    def killing(*arguments: Any, **named: Any) -> Any:
        if next(times) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(owner, name, killing)


if __name__ == "__main__":
    main()
