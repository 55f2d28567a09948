from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.data.packing import WindowSet
from agent.errors import DataError
from agent.training.windows_file import read_windows, write_windows


def some_windows() -> WindowSet:
    tokens = np.arange(24, dtype=np.uint32).reshape(3, 8)
    segments = np.array([[0, 0, 0, 1, 1, 1, 2, 2]] * 3, dtype=np.uint16)
    targets = np.zeros((3, 8), dtype=np.bool_)
    targets[:, [2, 4, 5]] = True
    return WindowSet(tokens, targets, segments)


def test_windows_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_windows(tmp_path / "w.npz", some_windows())
    found = read_windows(tmp_path / "w.npz", n_vocab=24)
    for name in ("tokens", "targets", "segments"):
        kept, was = getattr(found, name), getattr(some_windows(), name)
        assert kept.dtype == was.dtype
        np.testing.assert_array_equal(kept, was)
    assert len(read_windows(tmp_path / "w.npz", n_vocab=24, at_most=2)) == 2


def test_a_file_of_tokens_alone_is_one_segment_a_window(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", tokens=some_windows().tokens)
    found = read_windows(tmp_path / "w.npz", n_vocab=24)
    assert found.counted == 3 * 7
    assert found.bounds(0) == [(0, 8)]


def test_what_holds_no_windows_of_this_base_is_refused(tmp_path: Path) -> None:
    good = some_windows()
    write_windows(tmp_path / "w.npz", good)
    with pytest.raises(DataError, match="token 23, the base has only 23"):
        read_windows(tmp_path / "w.npz", n_vocab=23)
    first = good.targets.copy()
    first[0, 3] = True
    arrays = {"tokens": good.tokens, "targets": good.targets, "segments": good.segments}
    changes = [
        {"tokens": good.tokens.astype(np.int64)},
        {"tokens": good.tokens[0]},
        {"tokens": good.tokens[:0], "targets": good.targets[:0], "segments": good.segments[:0]},
        {"targets": good.targets[:2]},
        {"segments": good.segments.astype(np.int64)},
        {"segments": np.ascontiguousarray(good.segments[:, ::-1])},
        {"targets": first},
    ]
    for number, change in enumerate(changes):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **(arrays | change))
        with pytest.raises(DataError, match=path.name) as caught:
            read_windows(path, n_vocab=24)
        assert "again" in caught.value.advice
    np.savez(tmp_path / "half.npz", tokens=good.tokens, targets=good.targets)
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("missing.npz", "half.npz", "text.npz"):
        with pytest.raises(DataError, match=name):
            read_windows(tmp_path / name, n_vocab=24)
