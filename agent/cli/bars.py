"""Progress on standard error, where a person watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(words: str, *, of_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while the block runs; call what it gives with what is done and what there is.

    Args:
        words: what is under way.
        of_bytes: show megabytes, their speed and the time left instead of counts.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    numbers = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *numbers,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with progress:
        task = progress.add_task(words, total=None)
        begun = False

        def show(done: int, total: int) -> None:
            nonlocal begun
            if begun:
                progress.update(task, completed=done, total=total or None)
            else:  # what an earlier call did counts for the bar, not for the speed
                progress.reset(task, completed=done, total=total or None)
            begun = True

        yield show
