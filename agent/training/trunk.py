"""The trunk cache: hidden states below the lowest adapted layer, computed once and kept on disk in bfloat16.

With adapters on the last layers only, everything below them gives the same numbers in every epoch. Windows are computed
in fixed groups, so that a cache which was filled in several parts holds the same bits as one filled at once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.data.packing import WindowSet
from agent.errors import StateError
from agent.paths import explained_disk, write_atomically
from agent.training.batches import pass_of
from agent.training.decoder import Decoder


class TrunkCache:
    """Hidden states of windows on disk.

    Args:
        directory: gets ``trunk.bf16`` and ``trunk.json``, which says how much of it is filled.
        key: of what is computed; a cache with another key is thrown away.
        windows: all windows of the job.
        wanted: indices of the windows that will be asked for, without repeats.
        layer: layer whose input is kept.
        group: windows computed at a time.
        flush_seconds: time between notes of how much is filled.
    """

    def __init__(
        self,
        *,
        directory: Path,
        key: str,
        windows: WindowSet,
        wanted: Sequence[int],
        layer: int,
        group: int,
        flush_seconds: float,
    ) -> None:
        self._windows = windows
        self._wanted = sorted(wanted)
        self._place = {window: place for place, window in enumerate(self._wanted)}
        self._layer = layer
        self._group = group
        self._flush_seconds = flush_seconds
        self._rows = windows.length - 1
        self._data = directory / "trunk.bf16"
        self._index = directory / "trunk.json"
        self._key = f"{key} {len(self._wanted)} {layer} {group}"
        self._hidden = 0

    def bytes_for(self, hidden: int) -> int:
        """Give the size of the file."""
        return len(self._wanted) * self._rows * hidden * 2

    def fill(self, model: Decoder, on_group: Callable[[int, int], None]) -> None:
        """Compute what is not there yet; ``on_group`` hears how many windows of how many are done, and may raise.

        Raises:
            DiskFullError: there was no room.
        """
        hidden = model.gguf.config.hidden
        size = self.bytes_for(hidden)
        done = self._filled(size)
        with explained_disk(self._data):
            self._data.parent.mkdir(parents=True, exist_ok=True)
            if done == 0:
                self._index.unlink(missing_ok=True)
                self._allocate(size)
        self._hidden = hidden
        noted, began = done, time.monotonic()
        try:
            for first in range(done, len(self._wanted), self._group):
                which = np.asarray(self._wanted[first : first + self._group], dtype=np.int64)
                with torch.no_grad():
                    states = model.hidden(pass_of(self._windows.take(which)), last=self._layer)
                with explained_disk(self._data), self._data.open("r+b", buffering=0) as file:
                    file.seek(first * self._rows * hidden * 2)
                    file.write(states.bfloat16().view(torch.int16).numpy().data)
                done = first + len(which)
                if time.monotonic() - began >= self._flush_seconds:
                    self._note(done)
                    noted, began = done, time.monotonic()
                on_group(done, len(self._wanted))
        finally:
            if done > noted:
                self._note(done)

    def _note(self, done: int) -> None:
        """Write down how many windows are there, once they are on disk."""
        with self._data.open("rb") as file:
            os.fsync(file.fileno())
        write_atomically(self._index, json.dumps({"key": self._key, "done": done}).encode())

    def take(self, which: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        """Give the hidden states of some windows, float32 ``(rows, hidden)``."""
        states = torch.empty(len(which), self._rows, self._hidden, dtype=torch.bfloat16)
        with self._data.open("rb", buffering=0) as file:  # mapped, it would count as memory taken
            for row, window in zip(states.view(torch.int16).numpy(), which, strict=True):
                file.seek(self._place[int(window)] * self._rows * self._hidden * 2)
                if file.readinto(row.data) != row.nbytes:
                    raise StateError(
                        f"{self._data} was cut short while it was used",
                        advice="Start the same job again: it is made anew.",
                    )
        return states.view(-1, self._hidden).float()

    def _filled(self, size: int) -> int:
        """Say how many windows are there already."""
        try:
            found = json.loads(self._index.read_bytes())
            if found["key"] == self._key and self._data.stat().st_size == size:
                return int(found["done"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0

    def _allocate(self, size: int) -> None:
        """Take the room now, so that a full disk is an error here and not a signal while the file is written."""
        try:
            with self._data.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, max(1, size))
                else:
                    file.truncate(size)
        except OSError:
            self._data.unlink(missing_ok=True)  # what room it got is missing elsewhere now
            raise
