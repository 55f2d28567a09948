"""Windows of tokens on disk: ``.npz`` with ``tokens`` (uint32), ``targets`` (bool) and ``segments`` (uint16).

All three have shape ``(n, window)`` and mean what :class:`~agent.data.packing.WindowSet` says. A file with ``tokens``
alone holds windows of one segment each, in which every token but the first counts.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from agent.data.packing import WindowSet
from agent.errors import DataError
from agent.paths import write_atomically

_ADVICE = "Prepare the text again for this base."


def write_windows(path: Path, windows: WindowSet) -> None:
    """Write windows; the file appears whole or not at all.

    Raises:
        DiskFullError: there was no room for it.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        tokens=np.ascontiguousarray(windows.tokens, dtype=np.uint32),
        targets=np.ascontiguousarray(windows.targets, dtype=np.bool_),
        segments=np.ascontiguousarray(windows.segments, dtype=np.uint16),
    )
    write_atomically(path, buffer.getvalue())


def read_windows(path: Path, *, n_vocab: int, at_most: int | None = None) -> WindowSet:
    """Read windows and check them against a vocabulary.

    Args:
        path: the ``.npz``.
        n_vocab: how many tokens the base has.
        at_most: give only the first so many windows; None for all.

    Raises:
        DataError: there is no such file, it holds no windows, or they belong to another base.
    """
    windows = _read(path)
    if len(windows) < 1 or windows.length < 2:
        raise DataError(f"{path} holds windows of shape {windows.tokens.shape}", advice=_ADVICE)
    if int(windows.tokens.max()) >= n_vocab:
        raise DataError(f"{path} holds token {int(windows.tokens.max())}, the base has only {n_vocab}", advice=_ADVICE)
    _check_segments(path, windows)
    return windows if at_most is None else windows.take(slice(at_most))


def _read(path: Path) -> WindowSet:
    """Read the arrays, of the right types and shapes."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            tokens = archive["tokens"]
            rest = [archive[name] for name in ("targets", "segments") if name in archive.files]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as cause:
        raise DataError(f"{path} holds no windows of tokens: {cause}", advice=_ADVICE) from cause
    if tokens.dtype != np.uint32 or tokens.ndim != 2:
        raise DataError(f"{path} holds {tokens.dtype} of shape {tokens.shape}, not windows of tokens", advice=_ADVICE)
    if not rest:
        return WindowSet.plain(tokens)
    found = [(array.dtype, array.shape) for array in rest]
    if found != [(np.bool_, tokens.shape), (np.uint16, tokens.shape)]:
        raise DataError(f"{path} holds targets or segments that do not fit its tokens", advice=_ADVICE)
    return WindowSet(tokens, *rest)


def _check_segments(path: Path, windows: WindowSet) -> None:
    """Check that segments never fall, and that what nothing comes before is no target."""
    steps = np.diff(windows.segments.astype(np.int32), axis=1)
    first = np.concatenate([np.ones((len(windows), 1), dtype=np.bool_), steps != 0], axis=1)
    if (steps < 0).any() or (windows.targets & first).any():
        raise DataError(f"{path} holds segments out of order, or a target that nothing comes before", advice=_ADVICE)
