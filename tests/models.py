"""Writes tiny but complete llama models as GGUF: random weights, a byte-level BPE tokenizer, a chat template."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """The dimensions of a tiny model; rows are multiples of 256, so that every block format fits."""

    layers: int = 2
    hidden: int = 256
    ffn: int = 512
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 320
    tied: bool = True
    rope_factors: bool = False
    context: int = 512


def byte_symbols() -> list[str]:
    """Give GPT-2's printable symbol for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_model(path: Path, shape: Shape | None = None, *, seed: int = 0) -> Path:
    """Write a model with random float32 weights whose predictions are far from uniform."""
    shape = shape or Shape()
    rng = np.random.default_rng(seed)
    head_dim = shape.hidden // shape.heads
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    _add_tokenizer(writer, shape.vocab)

    def add(name: str, *size: int, scale: float | None = None) -> None:
        values = rng.normal(0, scale or size[-1] ** -0.5, size)
        writer.add_tensor(name, values.astype(np.float32))

    def add_norm(name: str) -> None:
        writer.add_tensor(name, rng.uniform(0.8, 1.2, shape.hidden).astype(np.float32))

    add("token_embd.weight", shape.vocab, shape.hidden, scale=0.12)
    for layer in range(shape.layers):
        add_norm(f"blk.{layer}.attn_norm.weight")
        add(f"blk.{layer}.attn_q.weight", shape.hidden, shape.hidden)
        add(f"blk.{layer}.attn_k.weight", head_dim * shape.kv_heads, shape.hidden)
        add(f"blk.{layer}.attn_v.weight", head_dim * shape.kv_heads, shape.hidden)
        add(f"blk.{layer}.attn_output.weight", shape.hidden, shape.hidden)
        add_norm(f"blk.{layer}.ffn_norm.weight")
        add(f"blk.{layer}.ffn_gate.weight", shape.ffn, shape.hidden)
        add(f"blk.{layer}.ffn_up.weight", shape.ffn, shape.hidden)
        add(f"blk.{layer}.ffn_down.weight", shape.hidden, shape.ffn)
    add_norm("output_norm.weight")
    if not shape.tied:
        add("output.weight", shape.vocab, shape.hidden, scale=0.12)
    if shape.rope_factors:
        writer.add_tensor("rope_freqs.weight", np.linspace(1.0, 4.0, head_dim // 2, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantise(source: Path, target: Path, file_type: str) -> Path:
    """Write a copy whose matrices are all of one type, by llama.cpp's own quantiser."""
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{file_type}")
    params.pure = True
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
