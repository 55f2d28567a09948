"""Writes tiny but complete models as GGUF: random weights, a byte-level BPE tokenizer, a chat template."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import llama_cpp
import numpy as np

from agent.llm.adapter import Adapter, LoraFactors
from agent.llm.gguf_file import GgufModel, sha256_file, target_shapes

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGED = ("th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "the", "ing", "and", "Ġt", "Ġa", "Ġthe", "Ġs")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The dimensions of a tiny model; rows are multiples of 256, so that every block format fits.

    ``window`` and ``period`` are for gemma3: how many tokens sliding layers see, and every how many layers one sees all
    (None: as usual, the sixth). ``rotated`` is for phi3: how many values of a head are turned. ``scaling`` stretches
    ``original_context`` by ``factor``; longrope is for phi3 alone, ``rope_factors`` for llama.
    """

    layers: int = 2
    hidden: int = 256
    ffn: int = 512
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vocab: int = 320
    tied: bool = True
    biases: bool = False
    rope_factors: bool = False
    scaling: Literal["none", "linear", "yarn", "longrope"] = "none"
    factor: float = 4.0
    original_context: int = 512
    rotated: int | None = None
    window: int | None = None
    period: int | None = None
    context: int = 512


SHAPES = {
    "llama": Shape(),
    "qwen2": Shape(biases=True),
    "qwen3": Shape(heads=8, kv_heads=4),
    "gemma3": Shape(heads=8, kv_heads=2, window=24, period=2),
    "phi3": Shape(tied=False, scaling="longrope", rotated=48),
}
"""For each architecture what is usual in it; the heads of qwen3 and gemma3 are wider together than the model."""

_EMBEDDING_SIZE = {"gemma3": 0.05}  # it multiplies embeddings by 16 here, and would only repeat itself with larger ones

BLOCK_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q4_0": "MOSTLY_Q4_0",
    "Q4_1": "MOSTLY_Q4_1",
    "Q5_0": "MOSTLY_Q5_0",
    "Q5_1": "MOSTLY_Q5_1",
    "Q8_0": "MOSTLY_Q8_0",
    "Q2_K": "MOSTLY_Q2_K",
    "Q3_K": "MOSTLY_Q3_K_M",
    "Q4_K": "MOSTLY_Q4_K_S",
    "Q5_K": "MOSTLY_Q5_K_S",
    "Q6_K": "MOSTLY_Q6_K",
    "IQ4_NL": "MOSTLY_IQ4_NL",
    "IQ4_XS": "MOSTLY_IQ4_XS",
    "Q4_K_M": "MOSTLY_Q4_K_M",
}
"""llama.cpp's file type by the name of the blocks in it; Q4_K_M mixes several, the others are pure."""


def byte_symbols() -> list[str]:
    """Give GPT-2's printable symbol for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_model(path: Path, shape: Shape | None = None, architecture: str = "llama", *, seed: int = 0) -> Path:
    """Write a model with random float32 weights whose predictions are far from uniform."""
    shape = shape or SHAPES[architecture]
    writer = gguf.GGUFWriter(path, arch=architecture)
    _add_dimensions(writer, shape, architecture)
    _add_tokenizer(writer, shape.vocab)
    weights = _Weights(writer, np.random.default_rng(seed))
    embedding = _EMBEDDING_SIZE.get(architecture, 0.12)
    weights.add("token_embd.weight", shape.vocab, shape.hidden, scale=embedding)
    for layer in range(shape.layers):
        _add_block(weights, f"blk.{layer}", shape, architecture)
    weights.add_norm("output_norm.weight", shape.hidden)
    if not shape.tied:
        weights.add("output.weight", shape.vocab, shape.hidden, scale=0.12)
    _add_rotary_factors(writer, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rewritten(source: Path, target: Path, **changes: object) -> Path:
    """Copy a model with other metadata (by key; None leaves it out) or tensors (``extra``, likewise)."""
    reader = gguf.GGUFReader(source)
    tensors: dict[str, object] = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    tensors |= changes.pop("extra", {})  # type: ignore[call-overload]
    prefixes = tuple(f"{name}." for name in SHAPES)
    found = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, arch=str(changes.pop("architecture", found)))
    kept = {key: field.contents() for key, field in reader.fields.items() if key.startswith(prefixes)}
    adders = {
        str: writer.add_string,
        list: writer.add_array,
        float: writer.add_float32,
        int: writer.add_uint32,
        bool: writer.add_bool,
    }
    for key, value in (kept | changes).items():
        if value is not None:
            negative = isinstance(value, int) and value < 0
            (writer.add_int32 if negative else adders[type(value)])(key, value)
    for name, values in tensors.items():
        if values is not None:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def quantise(source: Path, target: Path, file_type: str) -> Path:
    """Write a copy whose matrices are all of one type (mixed for Q4_K_M), by llama.cpp's own quantiser."""
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{file_type}")
    params.pure = file_type != BLOCK_TYPES["Q4_K_M"]
    params.nthread = 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp does not quantise to {file_type}")
    return target


def windows(path: Path, *, count: int, length: int, vocab: int = 300, seed: int = 0) -> Path:
    """Write windows that can be learnt: short random phrases, repeated with variations."""
    rng = np.random.default_rng(seed)
    phrases = rng.integers(0, vocab, (8, 16))
    tokens = phrases[rng.integers(0, len(phrases), (count, -(-length // 16)))].reshape(count, -1)[:, :length]
    np.savez(path, tokens=tokens.astype(np.uint32))
    return path


def random_adapter(
    base: GgufModel, *, rank: int, alpha: float, names: Sequence[str], size: float = 0.05, seed: int = 0
) -> Adapter:
    """Give an adapter whose A and B are both at random, so that it changes what the model says."""
    rng = np.random.default_rng(seed)
    modules = {
        path: LoraFactors(
            a=rng.normal(0, size, (rank, width)).astype(np.float32),
            b=rng.normal(0, size, (height, rank)).astype(np.float32),
        )
        for path, (height, width) in sorted(target_shapes(base, names).items())
    }
    return Adapter(rank=rank, alpha=alpha, modules=modules, base_sha256=sha256_file(base.path))


class _Weights:
    """Adds random tensors to a file."""

    def __init__(self, writer: gguf.GGUFWriter, rng: np.random.Generator) -> None:
        self._writer = writer
        self._rng = rng

    def add(self, name: str, *size: int, scale: float | None = None) -> None:
        values = self._rng.normal(0, scale or size[-1] ** -0.5, size)
        self._writer.add_tensor(name, values.astype(np.float32))

    def add_norm(self, name: str, width: int) -> None:
        self._writer.add_tensor(name, self._rng.uniform(0.8, 1.2, width).astype(np.float32))

    def add_linear(self, name: str, *size: int, bias: bool) -> None:
        self.add(f"{name}.weight", *size)
        if bias:
            self.add(f"{name}.bias", size[0], scale=0.3)


def _add_block(weights: _Weights, block: str, shape: Shape, architecture: str) -> None:
    weights.add_norm(f"{block}.attn_norm.weight", shape.hidden)
    biases = shape.biases and architecture == "llama"
    for name, size in _attention(shape, architecture).items():
        weights.add_linear(f"{block}.{name}", *size, bias=shape.biases and (biases or name != "attn_output"))
    if architecture in {"qwen3", "gemma3"}:
        weights.add_norm(f"{block}.attn_q_norm.weight", shape.head_dim)
        weights.add_norm(f"{block}.attn_k_norm.weight", shape.head_dim)
    if architecture == "gemma3":
        weights.add_norm(f"{block}.post_attention_norm.weight", shape.hidden)
    weights.add_norm(f"{block}.ffn_norm.weight", shape.hidden)
    for name, size in _feed_forward(shape, architecture).items():
        weights.add_linear(f"{block}.{name}", *size, bias=biases)
    if architecture == "gemma3":
        weights.add_norm(f"{block}.post_ffw_norm.weight", shape.hidden)


def _add_rotary_factors(writer: gguf.GGUFWriter, shape: Shape) -> None:
    half = (shape.rotated or shape.head_dim) // 2
    if shape.rope_factors:
        writer.add_tensor("rope_freqs.weight", np.linspace(1.0, 4.0, half, dtype=np.float32))
    if shape.scaling == "longrope":
        writer.add_tensor("rope_factors_long.weight", np.linspace(1.0, 9.0, half, dtype=np.float32))
        writer.add_tensor("rope_factors_short.weight", np.linspace(1.0, 1.5, half, dtype=np.float32))


def _add_dimensions(writer: gguf.GGUFWriter, shape: Shape, architecture: str) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    if shape.head_dim * shape.heads != shape.hidden:
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.rotated or shape.head_dim)
    writer.add_rope_freq_base(1_000_000.0 if architecture == "gemma3" else 10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    if shape.window is not None:
        writer.add_sliding_window(shape.window)
    if shape.period is not None:
        writer.add_sliding_window_pattern(shape.period)
    if shape.scaling != "none":
        writer.add_rope_scaling_type(gguf.RopeScalingType(shape.scaling))
        writer.add_rope_scaling_orig_ctx_len(shape.original_context)
    if shape.scaling in {"linear", "yarn"}:
        writer.add_rope_scaling_factor(shape.factor)
    if shape.scaling == "longrope":
        writer.add_rope_scaling_attn_factors(1.2)


def _attention(shape: Shape, architecture: str) -> dict[str, tuple[int, int]]:
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inputs = {"attn_qkv": q + 2 * kv} if architecture == "phi3" else {"attn_q": q, "attn_k": kv, "attn_v": kv}
    return {name: (rows, shape.hidden) for name, rows in inputs.items()} | {"attn_output": (shape.hidden, q)}


def _feed_forward(shape: Shape, architecture: str) -> dict[str, tuple[int, int]]:
    inputs = {"ffn_up": 2 * shape.ffn} if architecture == "phi3" else {"ffn_gate": shape.ffn, "ffn_up": shape.ffn}
    return {name: (rows, shape.hidden) for name, rows in inputs.items()} | {"ffn_down": (shape.hidden, shape.ffn)}


def _add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    symbols = byte_symbols()
    tokens = [*symbols, *_MERGED]
    types = [gguf.TokenType.NORMAL] * len(tokens)
    while len(tokens) < vocab - len(SPECIAL):
        tokens.append(f"<unused{len(tokens)}>")
        types.append(gguf.TokenType.UNUSED)
    tokens.extend(SPECIAL)
    types.extend([gguf.TokenType.CONTROL] * len(SPECIAL))
    known = set(tokens)
    merges = [f"{m[:cut]} {m[cut:]}" for m in _MERGED for cut in range(1, len(m)) if {m[:cut], m[cut:]} <= known]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(value=False)
    writer.add_chat_template(CHATML)


_SILENT = llama_cpp.llama_log_callback(lambda _level, _text, _user: None)
