"""Models of well-known shapes with random weights, written as GGUF once and kept.

    python -m engines.shapes SHAPE QUANT TARGET    (from bench/; a process of its own, so that its memory is given back)

Speed and memory depend on shapes and block formats, not on what a model has learnt. Weights are float16 first, one
tensor at a time, and then go through llama.cpp's own quantiser, so that mixed types such as Q4_K_M are laid out as in
a published file.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Part of the files' names: raised when what is written changes."""

NORM_EPS = 1e-5

_BENCH = Path(__file__).resolve().parents[1]
_CHUNK = 1 << 22  # random numbers drawn at a time


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The dimensions of a llama model with tied embeddings.

    Attributes:
        name: as rows of the report call it.
        layers: blocks.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of one head.
        ffn: width inside the feed-forward layers.
        vocab: tokens in the vocabulary.
        rope_base: base of the rotary frequencies.
        rope_factors: whether the file holds llama 3's frequency factors.
        context: tokens it claims to look at.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_base: float
    rope_factors: bool = False
    context: int = 8192

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """``(out, in)`` of the linear layers of one block by their GGUF name inside ``blk.N.``."""
        attention, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "attn_q": (attention, self.hidden),
            "attn_k": (key_value, self.hidden),
            "attn_v": (key_value, self.hidden),
            "attn_output": (self.hidden, attention),
            "ffn_gate": (self.ffn, self.hidden),
            "ffn_up": (self.ffn, self.hidden),
            "ffn_down": (self.hidden, self.ffn),
        }


SHAPES = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            Shape(
                name="smollm2-135m",
                layers=30,
                hidden=576,
                heads=9,
                kv_heads=3,
                head_dim=64,
                ffn=1536,
                vocab=49_152,
                rope_base=100_000.0,
            ),
            Shape(
                name="llama-3.2-1b",
                layers=16,
                hidden=2048,
                heads=32,
                kv_heads=8,
                head_dim=64,
                ffn=8192,
                vocab=128_256,
                rope_base=500_000.0,
                rope_factors=True,
                context=131_072,
            ),
            Shape(  # to try the bench itself
                name="tiny",
                layers=4,
                hidden=256,
                heads=4,
                kv_heads=2,
                head_dim=64,
                ffn=512,
                vocab=2048,
                rope_base=10_000.0,
            ),
        )
    }
)


def model_file(shape: Shape, quant: str, folder: Path) -> Path:
    """Give the path of a model in a folder, after writing it where it is not there yet."""
    path = folder / f"{shape.name}-{quant}-{VERSION}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "engines.shapes", shape.name, quant, str(path)], cwd=_BENCH, check=True)
    return path


def zipf_windows(count: int, length: int, *, vocab: int, seed: int = 0) -> NDArray[np.uint32]:
    """Draw windows whose tokens are as unevenly frequent as words are; uint32 ``(count, length)``.

    Zipf-Mandelbrot with exponent 1 and offset 2.7 (Mandelbrot 1953), over a random order of the vocabulary.
    """
    generator = np.random.default_rng(seed)
    weights = 1.0 / (np.arange(vocab) + 2.7)
    drawn = generator.choice(vocab, size=(count, length), p=weights / weights.sum())
    return generator.permutation(vocab)[drawn].astype(np.uint32)


def write_float16(shape: Shape, path: Path, *, seed: int = 0) -> None:
    """Write a model with float16 matrices; takes as much memory as its largest tensor."""
    generator = np.random.default_rng(seed)
    sizes = dict(_matrices(shape))
    norms = [
        *(f"blk.{n}.{norm}.weight" for n in range(shape.layers) for norm in ("attn_norm", "ffn_norm")),
        "output_norm.weight",
    ]
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    for name, size in sizes.items():
        writer.add_tensor_info(name, size, np.dtype(np.float16), 2 * size[0] * size[1])
    for name in norms:
        writer.add_tensor_info(name, (shape.hidden,), np.dtype(np.float32), 4 * shape.hidden)
    if shape.rope_factors:
        writer.add_tensor_info("rope_freqs.weight", (shape.head_dim // 2,), np.dtype(np.float32), 2 * shape.head_dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for size in sizes.values():
        # logits of about unit variance from a normed hidden state; layers that keep the size of what goes through them
        writer.write_tensor_data(_normal(generator, size, size[-1] ** -0.5))
    for _ in norms:
        writer.write_tensor_data(generator.uniform(0.8, 1.2, shape.hidden).astype(np.float32))
    if shape.rope_factors:
        writer.write_tensor_data(np.linspace(1.0, 32.0, shape.head_dim // 2, dtype=np.float32))
    writer.close()


def quantise(source: Path, target: Path, quant: str) -> None:
    """Write a quantised copy as llama.cpp's own tool does.

    Raises:
        RuntimeError: it does not.
    """
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp does not quantise {source} to {quant}")


def _matrices(shape: Shape) -> Iterator[tuple[str, tuple[int, int]]]:
    """Give every matrix with its ``(rows, columns)``."""
    yield "token_embd.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        for name, size in shape.linears.items():
            yield f"blk.{layer}.{name}.weight", size


def _normal(generator: np.random.Generator, size: tuple[int, int], scale: float) -> NDArray[np.float16]:
    """Draw a float16 matrix in pieces, without a float32 copy of all of it."""
    out = np.empty(size[0] * size[1], np.float16)
    for start in range(0, out.size, _CHUNK):
        piece = out[start : start + _CHUNK]
        piece[:] = generator.standard_normal(piece.size, dtype=np.float32) * np.float32(scale)
    return out.reshape(size)


_SILENT = llama_cpp.llama_log_callback(lambda _level, _text, _user: None)


def main() -> None:
    """Write the model that the command line names; the file appears whole or not at all."""
    name, quant, target = sys.argv[1:]
    path = Path(target)
    source, partial = path.with_suffix(".f16.partial"), path.with_suffix(".partial")
    try:
        write_float16(SHAPES[name], source)
        quantise(source, partial, quant)
        partial.replace(path)
    finally:
        source.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
