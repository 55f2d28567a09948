"""The trunk cache: what it holds, how it is filled in several goes, and when it is not used."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.data.packing import WindowSet
from agent.errors import DiskFullError, TrainingPausedError
from agent.llm.gguf_file import GgufModel, open_gguf
from agent.training.batches import pass_of
from agent.training.decoder import Decoder
from agent.training.trunk import TrunkCache

COUNT, LENGTH, LAYER = 11, 17, 1
WANTED = [0, 1, 2, 4, 5, 7, 8, 9, 10]


@pytest.fixture
def base(tiny_q8: Path) -> GgufModel:
    return open_gguf(tiny_q8)


@pytest.fixture
def model(base: GgufModel) -> Decoder:
    return Decoder(base, context=LENGTH)


def some_windows() -> WindowSet:
    return WindowSet.plain(np.random.default_rng(8).integers(0, 300, (COUNT, LENGTH)).astype(np.uint32))


def make(directory: Path, **changes: object) -> TrunkCache:
    given = {
        "directory": directory,
        "key": "a job",
        "windows": some_windows(),
        "wanted": WANTED,
        "layer": LAYER,
        "group": 2,
        "flush_seconds": 0.0,
    }
    return TrunkCache(**(given | changes))  # type: ignore[arg-type]


class Heard:
    """Notes how far filling is, and leaves after so many groups."""

    def __init__(self, leave_after: int = 10**9) -> None:
        self.done: list[int] = []
        self.leave_after = leave_after

    def __call__(self, done: int, of: int) -> None:
        assert of == len(WANTED)
        self.done.append(done)
        if len(self.done) == self.leave_after:
            raise TrainingPausedError("left", advice="")


def test_it_gives_the_states_below_a_layer_rounded_to_bfloat16(tmp_path: Path, model: Decoder) -> None:
    cache, heard = make(tmp_path), Heard()
    cache.fill(model, heard)
    assert heard.done == [2, 4, 6, 8, 9]
    which = np.array([7, 0, 10])
    with torch.no_grad():
        expected = model.hidden(pass_of(some_windows().take(which)), last=LAYER)
    found = cache.take(which)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-6)
    assert torch.equal(found, found.bfloat16().float())
    assert (tmp_path / "trunk.bf16").stat().st_size == cache.bytes_for(256) == len(WANTED) * (LENGTH - 1) * 256 * 2


@pytest.mark.parametrize("flush_seconds", [0.0, 1000.0])
@pytest.mark.parametrize("groups", [1, 3, 5])
def test_filling_goes_on_where_it_was_left_and_ends_with_the_same_bits(
    tmp_path: Path, model: Decoder, groups: int, flush_seconds: float
) -> None:
    make(tmp_path / "whole").fill(model, Heard())
    with pytest.raises(TrainingPausedError):
        make(tmp_path / "parts", flush_seconds=flush_seconds).fill(model, Heard(groups))
    heard = Heard()
    make(tmp_path / "parts").fill(model, heard)
    assert heard.done == [2, 4, 6, 8, 9][groups:], "what was done when it was asked to leave is kept"
    whole, parts = ((tmp_path / name / "trunk.bf16").read_bytes() for name in ("whole", "parts"))
    assert parts == whole


def test_what_was_written_after_the_last_note_is_computed_again(tmp_path: Path, model: Decoder) -> None:
    make(tmp_path).fill(model, Heard())
    whole = (tmp_path / "trunk.bf16").read_bytes()
    index = json.loads((tmp_path / "trunk.json").read_bytes())
    (tmp_path / "trunk.json").write_text(json.dumps(index | {"done": 4}))
    with (tmp_path / "trunk.bf16").open("r+b") as file:
        file.seek(len(whole) * 5 // 9)
        file.write(b"half a group that a kill left behind" * 100)
    heard = Heard()
    make(tmp_path).fill(model, heard)
    assert heard.done == [6, 8, 9]
    assert (tmp_path / "trunk.bf16").read_bytes() == whole


@pytest.mark.parametrize(
    "changes",
    [{"key": "another job"}, {"group": 3}, {"layer": 2}, {"wanted": WANTED[1:]}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_cache_of_something_else_is_filled_anew(tmp_path: Path, model: Decoder, changes: dict[str, object]) -> None:
    make(tmp_path, **changes).fill(model, lambda _done, _of: None)
    heard = Heard()
    cache = make(tmp_path)
    cache.fill(model, heard)
    assert heard.done == [2, 4, 6, 8, 9]
    make(tmp_path / "fresh").fill(model, Heard())
    assert (tmp_path / "trunk.bf16").read_bytes() == (tmp_path / "fresh" / "trunk.bf16").read_bytes()


def _no_index(folder: Path) -> None:
    (folder / "trunk.json").unlink()


def _damaged_index(folder: Path) -> None:
    (folder / "trunk.json").write_text("{")


def _cut_data(folder: Path) -> None:
    os.truncate(folder / "trunk.bf16", 100)


def _no_data(folder: Path) -> None:
    (folder / "trunk.bf16").unlink()


@pytest.mark.parametrize("damage", [_no_index, _damaged_index, _cut_data, _no_data])
def test_a_damaged_cache_is_filled_anew(tmp_path: Path, model: Decoder, damage: Callable[[Path], None]) -> None:
    make(tmp_path).fill(model, Heard())
    whole = (tmp_path / "trunk.bf16").read_bytes()
    damage(tmp_path)
    heard = Heard()
    make(tmp_path).fill(model, heard)
    assert heard.done == [2, 4, 6, 8, 9]
    assert (tmp_path / "trunk.bf16").read_bytes() == whole


def test_a_full_cache_computes_nothing(tmp_path: Path, model: Decoder, base: GgufModel) -> None:
    make(tmp_path).fill(model, Heard())

    def never() -> None:
        raise AssertionError

    heard, cache = Heard(), make(tmp_path)
    cache.fill(Decoder(base, context=LENGTH, before_use=never), heard)
    assert heard.done == []
    assert cache.take(np.array([0])).shape == (LENGTH - 1, 256)


def test_a_full_disk_is_explained_and_nothing_of_the_file_is_left_behind(
    tmp_path: Path, model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(DiskFullError, match=r"trunk\.bf16") as caught:
            make(tmp_path).fill(model, Heard())
    assert "space" in caught.value.advice
    assert not (tmp_path / "trunk.bf16").exists(), "it would keep others from the room that is missing"
    heard = Heard()
    make(tmp_path).fill(model, heard)
    assert heard.done[-1] == len(WANTED)


def test_the_room_is_taken_before_the_first_window_is_computed(tmp_path: Path, model: Decoder) -> None:
    with pytest.raises(TrainingPausedError):
        make(tmp_path).fill(model, Heard(1))
    path = tmp_path / "trunk.bf16"
    assert path.stat().st_blocks * 512 >= path.stat().st_size
