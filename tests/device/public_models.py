"""Base models by the dimensions that their makers publish: enough to predict memory, without their weights.

Each row is the model's ``config.json`` on Hugging Face (``HuggingFaceTB/SmolLM2-*``, ``Qwen/Qwen3-*``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.llm.architectures import ARCHITECTURES
from agent.llm.ggml import format_of, formats
from agent.llm.gguf_file import EMBEDDING, GgufModel, GgufTensor
from agent.llm.model_config import ModelConfig
from agent.llm.rotary import RotaryScaling


@dataclass(frozen=True)
class Dimensions:
    """What a ``config.json`` says, of a model whose output layer is its embedding."""

    architecture: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


PUBLIC_MODELS = {
    "SmolLM2-135M": Dimensions("llama", 30, 576, 1536, 9, 3, 64, 49152),
    "SmolLM2-360M": Dimensions("llama", 32, 960, 2560, 15, 5, 64, 49152),
    "Qwen3-0.6B": Dimensions("qwen3", 28, 1024, 3072, 16, 8, 128, 151936),
    "SmolLM2-1.7B": Dimensions("llama", 24, 2048, 8192, 32, 32, 64, 49152),
    "Qwen3-1.7B": Dimensions("qwen3", 28, 2048, 6144, 16, 8, 128, 151936),
    "Qwen3-4B": Dimensions("qwen3", 36, 2560, 9728, 32, 8, 128, 151936),
}
_LIKE_Q4_K_M = {"attn_v": "Q6_K", "ffn_down": "Q6_K"}
"""Of llama.cpp's mix: these in half of the blocks, and the embedding; everything else is Q4_K."""


def public_model(name: str, quantisation: str) -> GgufModel:
    """Give a model of these dimensions whose packed tensors have a size and take no memory."""
    size = PUBLIC_MODELS[name]
    architecture = ARCHITECTURES[size.architecture]
    config = ModelConfig(
        n_layers=size.layers,
        hidden=size.hidden,
        ffn=size.ffn,
        n_heads=size.heads,
        n_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        vocab=size.vocab,
        context_length=8192,
        norm_eps=1e-5,
        activation="silu",
        attention_scale=size.head_dim**-0.5,
        embedding_scale=1.0,
        rope=RotaryScaling(dimensions=size.head_dim, base=1e4),
        sliding_window=None,
        sliding_layers=(False,) * size.layers,
        sliding_rope_base=1e4,
        tied=True,
    )
    mixed = quantisation == "Q4_K_M"
    plain = "Q4_K" if mixed else quantisation
    tensors = [_tensor(EMBEDDING, (size.vocab, size.hidden), "Q6_K" if mixed else plain)]
    for layer in range(size.layers):
        for row in architecture.linears:
            better = _LIKE_Q4_K_M.get(row.tensor, plain) if mixed and layer % 2 else plain
            shape = (config.width(row.out_width), config.width(row.in_width))
            tensors.append(_tensor(f"blk.{layer}.{row.tensor}.weight", shape, better))
        norms = (*architecture.norms, *architecture.head_norms)
        tensors.extend(_tensor(f"blk.{layer}.{norm}.weight", (size.hidden,), "F32") for norm in norms)
    return GgufModel(Path(f"{name}.gguf"), architecture, config, {tensor.name: tensor for tensor in tensors}, {})


def _tensor(name: str, shape: tuple[int, ...], quantisation: str) -> GgufTensor:
    found = next(known for known in formats().values() if known.name == quantisation)
    packed = np.broadcast_to(np.zeros(1, dtype=np.uint8), (found.bytes_for(int(np.prod(shape))),))
    return GgufTensor(name, shape, format_of(found.type), packed)
