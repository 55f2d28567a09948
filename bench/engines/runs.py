"""Runs of a bench that take long: each in a process, kept as they come, and gone on with when begun again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from agent.paths import write_atomically

Row: TypeAlias = dict[str, Any]


class Keyed(Protocol):
    """A run that is told from all others by a text."""

    @property
    def key(self) -> str:
        """What tells it."""
        ...


SomeRun = TypeVar("SomeRun", bound=Keyed)


def do_all(
    runs: Sequence[SomeRun],
    do: Callable[[SomeRun], Row],
    *,
    report_of: Callable[[Sequence[SomeRun], Mapping[str, Row]], Row],
    words: Callable[[SomeRun, Row], str],
    target: str,
    processes: int,
) -> Row:
    """Do all runs that are not done yet, and give the report.

    Args:
        runs: in order; the report is written anew after each, and each is kept in TARGET.runs.
        do: does one, in a process of its own.
        report_of: makes a report of all runs and of what is done, by key.
        words: what to tell whoever waits of one that is done.
        target: a file, or - for standard output.
        processes: runs at once.
    """
    done = earlier(target)
    waiting = [run for run in runs if run.key not in done]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(do, run): run for run in waiting}
        for future in as_completed(futures):
            run, row = futures[future], future.result()
            done[run.key] = row
            left = sum(each.key not in done for each in runs)
            say(f"{words(run, row)}; {left} of {len(runs)} left")
            if target != "-":
                write_atomically(Path(target + ".runs"), json.dumps(done).encode())
                write_report(report_of(runs, done), target)
    found = report_of(runs, done)
    write_report(found, target)
    return found


def say(what: str) -> None:
    """Tell whoever waits how far the bench is."""
    print(time.strftime("%H:%M:%S ") + what, file=sys.stderr, flush=True)


def earlier(target: str) -> dict[str, Row]:
    """Give the runs that an interrupted bench has finished, by key."""
    path = Path(target + ".runs")
    return json.loads(path.read_text()) if target != "-" and path.is_file() else {}


def write_report(found: Row, target: str) -> None:
    """Write the result into a file, or to standard output."""
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_atomically(Path(target), text.encode(), mode=0o644)
