"""A transformers model whose weights are the packed blocks of a GGUF."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding

from agent.llm.ggml import dequantize
from agent.llm.gguf_file import EMBEDDING, OUTPUT, OUTPUT_NORM, ROPE_FACTORS, GgufModel, GgufTensor, target_modules
from agent.training.head import PackedHead
from agent.training.job import Compute
from agent.training.packed import PackedEmbedding, PackedLinear, Scratch

_HEAD_ELEMENTS = 4 << 20  # as much of the output layer as is unpacked at a time: 16 MiB in float32
_WORTH_NARROWING = 1.25  # how many times faster bfloat16 must be before its coarser products are taken


class PackedModel(Protocol):
    """What a packed model is for the rest of this package: a ``LlamaForCausalLM`` with other layers inside."""

    model: nn.Module
    lm_head: PackedHead

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...  # noqa: D102 - torch's own
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...  # noqa: D102 - torch's own
    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102 - torch's own


def build_packed_model(
    gguf: GgufModel,
    *,
    compute: torch.dtype | Compute = "float32",
    threads: int = 1,
    before_use: Callable[[], None] | None = None,
) -> PackedModel:
    """Build a model that computes what transformers would on the unpacked weights, without unpacking them.

    Args:
        gguf: the opened base; its file stays mapped while the model lives.
        compute: arithmetic of the frozen layers; everything else is float32.
        threads: that unpack large weights together.
        before_use: called before every use of a frozen weight; it may raise to abandon the computation.
    """
    config = gguf.config
    dtype = compute if isinstance(compute, torch.dtype) else resolve_compute(compute)
    targets = target_modules(gguf)
    scratch = Scratch(
        elements=max(
            *(target.out_features * target.in_features for target in targets.values()),
            min(_HEAD_ELEMENTS, config.vocab * config.hidden),
        ),
        reordered=max((t.out_features * t.in_features for t in targets.values() if t.rotary_heads), default=0),
        compute=dtype,
        threads=threads,
        before_use=before_use,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(_transformers_config(gguf))
    for path, target in targets.items():
        weight = gguf.tensors[target.tensor]
        model.set_submodule(path, PackedLinear(weight=weight, scratch=scratch, rotary_heads=target.rotary_heads))
    model.set_submodule("model.embed_tokens", PackedEmbedding(weight=gguf.tensors[EMBEDDING]))
    model.set_submodule(
        "lm_head", PackedHead(weight=gguf.tensors.get(OUTPUT, gguf.tensors[EMBEDDING]), scratch=scratch)
    )
    for layer in range(config.n_layers):
        for tensor, module in gguf.architecture.norms.items():
            _set_norm(
                model.get_submodule(f"model.layers.{layer}.{module}"), gguf.tensors[f"blk.{layer}.{tensor}.weight"]
            )
    _set_norm(model.get_submodule("model.norm"), gguf.tensors[OUTPUT_NORM])
    model.set_submodule("model.rotary_emb", _rotary(gguf))
    model.requires_grad_(requires_grad=False)
    model.eval()
    return cast("PackedModel", model)


def mean_loss(model: PackedModel, tokens: Tensor) -> Tensor:
    """Give the mean loss of predicting every token of some windows but their first, in nats; int64 ``(n, length)``."""
    hidden: Tensor = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    return model.lm_head.loss(hidden, tokens[:, 1:])


def resolve_compute(compute: Compute) -> torch.dtype:
    """Give the type that frozen layers multiply in; ``auto`` measures both on this machine for some milliseconds."""
    if compute != "auto":
        return torch.bfloat16 if compute == "bfloat16" else torch.float32
    seconds = {dtype: _time_product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if seconds[torch.float32] > _WORTH_NARROWING * seconds[torch.bfloat16] else torch.float32


def _time_product(dtype: torch.dtype) -> float:
    """Time the product of a typical layer, with the conversions that it would need."""
    x, weight = torch.ones(512, 512), torch.ones(512, 512)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        (x.to(dtype) @ weight.to(dtype).T).float()
        best = min(best, time.perf_counter() - began)
    return best


def _transformers_config(gguf: GgufModel) -> LlamaConfig:
    config = gguf.config
    return LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.ffn,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context_length,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        tie_word_embeddings=config.tied,
        attention_bias=False,
        mlp_bias=False,
        attn_implementation="sdpa",
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _rotary(gguf: GgufModel) -> LlamaRotaryEmbedding:
    """Make the rotary embedding with the file's own frequency factors and linear scaling, as llama.cpp applies them."""
    rotary = LlamaRotaryEmbedding(_transformers_config(gguf))
    factors = gguf.tensors.get(ROPE_FACTORS)
    frequencies = rotary.inv_freq / gguf.config.rope_linear_factor
    if factors is not None:
        frequencies = frequencies / torch.from_numpy(_unpacked(factors))
    rotary.inv_freq = frequencies
    rotary.original_inv_freq = frequencies.clone()
    return rotary


def _set_norm(norm: nn.Module, tensor: GgufTensor) -> None:
    norm.weight = nn.Parameter(torch.from_numpy(_unpacked(tensor)), requires_grad=False)


def _unpacked(tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    out = np.empty(tensor.shape, dtype=np.float32)
    dequantize(tensor.format, tensor.packed, out)
    return out
