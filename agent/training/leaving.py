"""How a worker learns that it should leave: a signal, or the end of the pipe that its parent holds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from agent.errors import TrainingPausedError
from agent.training.job import PAUSED_STATUS

HARD_EXIT_SECONDS = 30.0


class Leaving:
    """Whether somebody asked this process to leave, as a flag that long work looks at between its steps."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """Ask the process to leave at its next good moment, and see that it does leave."""
        if not self._asked.is_set():
            self._asked.set()
            timer = threading.Timer(HARD_EXIT_SECONDS, os._exit, (PAUSED_STATUS,))
            timer.daemon = True
            timer.start()

    @property
    def asked(self) -> bool:
        """Whether to leave."""
        return self._asked.is_set()

    def check(self) -> None:
        """Leave now, where it was asked and nothing needs to be kept.

        Raises:
            TrainingPausedError: it was asked.
        """
        if self.asked:
            raise TrainingPausedError("the worker was asked to leave", advice="Start the same job again to go on.")

    def on_signals(self) -> None:
        """Take SIGTERM and SIGINT as being asked."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.ask()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    def with_parent(self, read: Callable[[], bytes] | None = None) -> None:
        """Take the end of standard input as being asked: the parent closed it, or is no more."""
        read_more = read or (lambda: os.read(0, 4096))

        def watch() -> None:
            while read_more():
                pass
            self.ask()

        threading.Thread(target=watch, name="parent-watch", daemon=True).start()
