from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agent.errors import TrainingPausedError
from agent.llm.gguf_file import open_gguf
from agent.llm.rotary import model_order
from agent.training import packed as packed_module
from agent.training.leaving import Leaving
from agent.training.packed import PackedEmbedding, PackedWeight, Scratch, unpack_vector
from tests.models import BLOCK_TYPES, quantise
from tests.training.gradients import unpacked

ORDER = model_order(256, 4)


def weights(path: Path, *names: str, order: NDArray[np.int64] | None = None) -> list[PackedWeight]:
    tensors = open_gguf(path).tensors
    return [PackedWeight(tensors[f"blk.0.{name}.weight"], order if name == "attn_q" else None) for name in names]


def gathered(scratch: Scratch, given: list[PackedWeight]) -> tuple[torch.Tensor, list[int]]:
    """Put the pieces together again, and give how many rows each had."""
    found, sizes, at = [], [], 0
    for first, last, piece in scratch.pieces(given):
        assert first == at
        assert piece.shape == (last - first, given[0].tensor.shape[1])
        found.append(piece.clone())
        sizes.append(last - first)
        at = last
    return torch.cat(found), sizes


@pytest.mark.parametrize("rows", [1024, 512, 500, 256])
@pytest.mark.parametrize("blocks", ["F32", "Q8_0", "Q4_K", "IQ4_XS"])
def test_weights_side_by_side_come_whole_or_in_pieces(tiny_f32: Path, tmp_path: Path, rows: int, blocks: str) -> None:
    path = quantise(tiny_f32, tmp_path / "base.gguf", BLOCK_TYPES[blocks])
    given = weights(path, "attn_q", "attn_k", "attn_v", order=ORDER)
    expected = torch.cat([unpacked(weight.tensor) for weight in given])
    expected[:256] = expected[ORDER]
    found, sizes = gathered(Scratch(elements=rows * 256, compute=torch.float32), given)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert sizes == ([512] if rows >= 512 else [256, 128, 128])


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_a_layer_larger_than_the_scratch_buffer_comes_in_as_many_rows_as_fit(tiny_q8: Path, rows: int) -> None:
    given = weights(tiny_q8, "ffn_gate", "ffn_up")
    found, sizes = gathered(Scratch(elements=rows * 256 + 255, compute=torch.float32), given)
    torch.testing.assert_close(found, torch.cat([unpacked(w.tensor) for w in given]), rtol=0, atol=0)
    assert max(sizes) == rows
    assert len(sizes) == 2 * -(-512 // rows), "no piece reaches over two layers"


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
def test_several_threads_unpack_the_same(
    tiny_q8: Path, compute: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_module, "_PARALLEL_ELEMENTS", 1)
    monkeypatch.setattr(packed_module, "_PART_ELEMENTS", 50 * 256)
    monkeypatch.setattr(packed_module, "_TILE_ELEMENTS", 7 * 256)
    given = weights(tiny_q8, "attn_q", "ffn_up", order=ORDER)
    scratch = Scratch(elements=(256 + 512) * 256, compute=compute, threads=threads)
    expected = torch.cat([unpacked(given[0].tensor)[ORDER], unpacked(given[1].tensor)]).to(compute)
    for _ in range(5):
        scratch._room.zero_()
        assert torch.equal(gathered(scratch, given)[0], expected)


def test_weights_in_bfloat16_are_rounded_to_the_nearest(tiny_q8: Path) -> None:
    given = weights(tiny_q8, "attn_q", order=ORDER)
    found, _ = gathered(Scratch(elements=256 * 256, compute=torch.bfloat16), given)
    assert torch.equal(found, unpacked(given[0].tensor)[ORDER].bfloat16())


def test_every_piece_is_a_moment_to_leave(tiny_q8: Path) -> None:
    leaving = Leaving()
    scratch = Scratch(elements=100 * 256, compute=torch.float32, before_use=leaving.check)
    pieces = scratch.pieces(weights(tiny_q8, "ffn_up"))
    next(pieces)
    leaving._asked.set()
    with pytest.raises(TrainingPausedError):
        next(pieces)


@pytest.mark.parametrize("scale", [1.0, 16.0])
def test_an_embedding_unpacks_what_is_looked_up(tiny_q8: Path, scale: float) -> None:
    table = open_gguf(tiny_q8).tensors["token_embd.weight"]
    tokens = torch.tensor([5, 319, 5, 0, 7, 7])
    found = PackedEmbedding(weight=table, scale=scale)(tokens)
    torch.testing.assert_close(found, scale * unpacked(table)[tokens], rtol=0, atol=0)


def test_a_vector_is_unpacked_to_numbers_of_its_own(tiny_q8: Path) -> None:
    tensor = open_gguf(tiny_q8).tensors["output_norm.weight"]
    found = unpack_vector(tensor)
    assert torch.equal(found, unpacked(tensor))
    found += 1  # the file is mapped read-only
