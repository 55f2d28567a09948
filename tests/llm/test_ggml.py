from __future__ import annotations

import gguf
import numpy as np
import pytest

from agent.errors import UnsupportedModelError
from agent.llm.ggml import F16, F32, Q8_0, BlockFormat, dequantize, format_of, formats


@pytest.mark.parametrize("block_format", formats().values(), ids=lambda f: f.name)
def test_every_format_unpacks_as_the_reference_in_numpy_does(block_format: BlockFormat) -> None:
    kind = gguf.GGMLQuantizationType(block_format.type)
    blocks = np.random.default_rng(0).integers(0, 256, (24, block_format.block_bytes), dtype=np.uint8)
    out = np.empty(24 * block_format.block_elements, dtype=np.float32)
    with np.errstate(all="ignore"):  # random scales overflow, in both alike
        try:
            expected = gguf.quants.dequantize(blocks, kind).reshape(-1)
        except NotImplementedError:
            pytest.skip(f"gguf has no reference for {block_format.name}")
        dequantize(block_format, blocks, out)
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-30)


def test_block_sizes_agree_with_the_gguf_package() -> None:
    for block_format in formats().values():
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(block_format.type)]
        assert (block_format.block_elements, block_format.block_bytes) == sizes, block_format.name


def test_the_common_formats_are_all_there() -> None:
    names = {block_format.name for block_format in formats().values()}
    assert {"F32", "F16", "BF16", "Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "MXFP4"} <= names


@pytest.mark.parametrize("number", [4, 24, 31, 43, 10_000, 2**31])
def test_a_type_that_cannot_be_unpacked_is_named_with_those_that_can(number: int) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        format_of(number, tensor="blk.0.attn_q.weight")
    assert "blk.0.attn_q.weight" in caught.value.message
    assert "Q4_K" in caught.value.advice


@pytest.mark.parametrize("size", [0, 33, 34 * 2 + 1])
def test_sizes_that_do_not_agree_are_refused_before_anything_is_written(size: int) -> None:
    out = np.full(32, 7.0, dtype=np.float32)
    with pytest.raises(ValueError, match="are not 32 elements"):
        dequantize(format_of(Q8_0), np.zeros(size, dtype=np.uint8), out)
    assert (out == 7.0).all()


def test_outputs_that_ggml_could_not_write_to_are_refused() -> None:
    packed = np.zeros(64, dtype=np.uint8)
    frozen = np.empty(32, dtype=np.float32)
    frozen.flags.writeable = False
    for out in (np.empty(32, dtype=np.float64), np.empty(64, dtype=np.float32)[::2], frozen):
        with pytest.raises(ValueError, match="writeable, contiguous float32"):
            dequantize(format_of(F16), packed, out)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous bytes"):
        dequantize(format_of(F32), np.zeros(256, dtype=np.uint8)[::2], np.empty(32, dtype=np.float32))
