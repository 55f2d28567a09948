"""The folder that a training alone writes to, and what it keeps there to go on from after an interruption."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import filelock
from pydantic import ValidationError

from agent.errors import AlreadyRunningError, StateError
from agent.federation.alone.order import Order
from agent.paths import explained_disk, write_atomically

RECORD = "training.json"
MADE = ("adapter.safetensors", "adapter.gguf", "peft", RECORD)
"""What lies in the folder in the end; the record comes last, so that its presence says that all is there."""

State: TypeAlias = Literal["empty", "same", "other", "done"]
"""Nothing here; the same order begun; another one begun; one brought to its end."""


class OutRoom:
    """A folder for what one training makes.

    Args:
        out: the folder, which need not exist.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.work = self.out / ".work"
        self.checkpoint = self.work / "checkpoint"
        self.trained = self.work / "trained"
        self._order = self.work / "order.json"

    def state(self, order: Order) -> State:
        """Say what lies here.

        Raises:
            StateError: files of these names that no training here made; they are not touched.
        """
        known = self._known()
        if known is not None:
            return "same" if order.is_same_as(known) else "other"
        if (self.out / RECORD).is_file():
            return "done"
        foreign = [name for name in MADE if (self.out / name).exists()]
        if foreign or (self.out.exists() and not self.out.is_dir()):
            raise StateError(
                f"{self.out / foreign[0] if foreign else self.out} is there already, and no `bramble train` made it",
                advice="Choose another folder with --out. Nothing was changed.",
            )
        return "empty"

    @contextlib.contextmanager
    def working(self, order: Order) -> Iterator[None]:
        """Hold the folder for the training of an order, from where the same one stopped, or from its beginning.

        Raises:
            AlreadyRunningError: another process trains into it.
            DiskFullError, StateError: the folder cannot be used.
        """
        with explained_disk(self.work):
            self.out.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.work.mkdir(mode=0o700, exist_ok=True)
        lock = filelock.FileLock(self.work / "lock", timeout=0)
        with explained_disk(self.work):
            try:
                lock.acquire()
            except filelock.Timeout as cause:  # which is an OSError too
                raise AlreadyRunningError(
                    f"another `bramble train` is writing to {self.out}",
                    advice="Wait for it, or choose another folder with --out.",
                ) from cause
        try:
            known = self._known()
            if known is None or not order.is_same_as(known):
                self._begin(order)
            yield
        finally:
            lock.release()

    def publish(self) -> None:
        """Put what was made where the owner finds it, and forget what it was made from. Can be repeated."""
        with explained_disk(self.out):
            for name in MADE:
                made, there = self.trained / name, self.out / name
                if made.exists():
                    if there.is_dir():
                        shutil.rmtree(there)
                    made.replace(there)
        self.discard()

    def discard(self) -> None:
        """Forget what an unfinished training keeps here."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _begin(self, order: Order) -> None:
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        write_atomically(self._order, order.model_dump_json().encode())

    def _known(self) -> Order | None:
        try:
            return Order.model_validate_json(self._order.read_bytes())
        except (OSError, ValidationError):
            return None
