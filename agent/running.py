"""How a long-running process of Bramble ends: by itself, with an error, on a signal, or with its parent. In order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_until_signalled(work: Coroutine[Any, Any, T], *, with_parent: bool = False) -> T | None:
    """Run a coroutine until it ends, or something asks it to; its ``finally`` blocks run either way.

    Args:
        work: what to run.
        with_parent: also end when standard input does, that is, with whoever started this process.

    Returns:
        What the coroutine gave, or None where it was asked to end.

    Raises:
        Exception: the coroutine's own first error, never a group of them.
    """

    async def main() -> T | None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, task.cancel)
        if with_parent:
            threading.Thread(target=_wait_for_parent, args=(loop, task), daemon=True, name="parent").start()
        with contextlib.suppress(asyncio.CancelledError):
            return await task
        return None

    try:
        return asyncio.run(main())
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _wait_for_parent(loop: asyncio.AbstractEventLoop, task: asyncio.Future[T]) -> None:
    """Cancel the task when standard input ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(task.cancel)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
