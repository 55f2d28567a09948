"""Rows on the disk, and what a disk that is full says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from agent.errors import DiskFullError, StateError
from agent.hub.merge.row import Places
from agent.hub.merge.spool import Spool
from agent.testing import SMALL_SHAPES

PLACES = Places(SMALL_SHAPES, 4, "both")


def drawn(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, PLACES.length)).astype(np.float32)


@pytest.mark.parametrize("at_once", [1, 50, 1 << 20])
def test_columns_come_back_in_slices_of_a_bounded_size(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.hub.merge.spool.AT_ONCE", at_once)
    rows = drawn(5)
    with Spool(PLACES, tmp_path) as spool:
        for row in rows:
            spool.add(row)
        found = [(columns, some.copy()) for columns, some in spool.slices()]
        assert all(some.size <= max(5, at_once) for _, some in found)
        assert [columns.start for columns, _ in found[1:]] == [columns.stop for columns, _ in found[:-1]]
        np.testing.assert_array_equal(np.hstack([some for _, some in found]), rows)


def test_one_factor_of_some_rows_comes_back_in_its_shape(tmp_path: Path) -> None:
    rows = drawn(3)
    name = sorted(SMALL_SHAPES)[1]
    with Spool(PLACES, tmp_path) as spool:
        for row in rows:
            spool.add(row)
        found = spool.factors(name, "b", [2, 0])
    np.testing.assert_array_equal(found, np.stack([PLACES.view(rows[index], name, "b") for index in (2, 0)]))


def test_the_file_has_no_name_and_goes_with_the_spool(tmp_path: Path) -> None:
    with Spool(PLACES, tmp_path) as spool:
        spool.add(drawn(1)[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a device that is always full")
def test_a_full_disk_is_said_with_what_to_do(tmp_path: Path) -> None:
    with Spool(PLACES, tmp_path) as spool, Path("/dev/full").open("wb", buffering=0) as full:
        spool._file.close()
        spool._file = full
        with pytest.raises(DiskFullError, match="no room on the disk"):
            spool.add(drawn(1)[0])


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot use"):
        Spool(PLACES, tmp_path / "nowhere")
