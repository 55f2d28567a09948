"""Windows of tokens on disk: ``.npz`` with one uint32 array ``tokens`` of shape ``(n, window)``."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError
from agent.paths import write_atomically

WindowArray: TypeAlias = NDArray[np.uint32]


def write_windows(path: Path, tokens: WindowArray) -> None:
    """Write windows; the file appears whole or not at all.

    Raises:
        DiskFullError: there was no room for it.
    """
    buffer = io.BytesIO()
    np.savez(buffer, tokens=np.ascontiguousarray(tokens, dtype=np.uint32))
    write_atomically(path, buffer.getvalue())


def read_windows(path: Path, *, n_vocab: int, at_most: int | None = None) -> WindowArray:
    """Read windows and check them against a vocabulary.

    Raises:
        DataError: there is no such file, it holds no windows, or they belong to another base.
    """
    advice = "Prepare the text again for this base."
    try:
        with np.load(path, allow_pickle=False) as archive:
            tokens: WindowArray = archive["tokens"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as cause:
        raise DataError(f"{path} holds no windows of tokens: {cause}", advice=advice) from cause
    if tokens.dtype != np.uint32 or tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise DataError(f"{path} holds {tokens.dtype} of shape {tokens.shape}, not windows of tokens", advice=advice)
    if int(tokens.max()) >= n_vocab:
        raise DataError(f"{path} holds token {int(tokens.max())}, the base has only {n_vocab}", advice=advice)
    return tokens if at_most is None else tokens[:at_most]
