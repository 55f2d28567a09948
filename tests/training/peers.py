"""The same models by transformers and PEFT, from unpacked weights: what the engine is held against."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from agent.data.packing import WindowSet
from agent.llm.adapter import Adapter, write_peft
from agent.llm.architectures import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from agent.llm.gguf_file import EMBEDDING, OUTPUT, OUTPUT_NORM, GgufModel, target_modules
from agent.llm.rotary import model_order
from tests.training.gradients import unpacked

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before these are imported: they look for the network

import peft
import transformers

Peer: TypeAlias = Any
"""A transformers model, or a PEFT model around one; both without types."""

Pair: TypeAlias = tuple[Tensor, Tensor]
"""What belongs to A and to B of a layer."""


def peer_of(base: GgufModel) -> Peer:
    """Build the transformers model of a base, in float32 with all weights unpacked."""
    model = _MODELS[base.architecture.name](base)
    model.load_state_dict(_state(base), strict=False)
    loaded = set(_state(base)) | ({"lm_head.weight"} if base.config.tied else set())
    missing = set(model.state_dict()) - loaded
    assert not missing, missing
    if ROPE_FACTORS in base.tensors:
        model.model.rotary_emb.inv_freq /= unpacked(base.tensors[ROPE_FACTORS])
    return model.eval()


def peft_of(base: GgufModel, adapter: Adapter, folder: Path) -> Peer:
    """Put an adapter on the transformers model with PEFT, by way of the files that Bramble writes for it."""
    write_peft(adapter, folder, base_name=base.path.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 uses a name that transformers is giving up
        return peft.PeftModel.from_pretrained(peer_of(base), folder, is_trainable=True)


def peer_loss(model: Peer, windows: WindowSet) -> Tensor:
    """Give the summed loss of windows, each of their segments computed alone."""
    total = torch.zeros(())
    groups: dict[int, list[tuple[int, int]]] = {}
    for row in range(len(windows)):
        for first, last in windows.bounds(row):
            groups.setdefault(last - first, []).append((row, first))
    for length, places in groups.items():
        ids = torch.from_numpy(np.stack([windows.tokens[row, at : at + length].astype(np.int64) for row, at in places]))
        counts = torch.from_numpy(np.stack([windows.targets[row, at : at + length] for row, at in places]))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        wanted = torch.where(counts[:, 1:], ids[:, 1:], -100)
        total = total + cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
    return total


def peer_factors(model: Peer) -> dict[str, Pair]:
    """Give A and B of each layer of a PEFT model, by the layer's path."""
    named = dict(model.named_parameters())
    prefix, suffix = "base_model.model.", ".lora_A.default.weight"
    paths = [name.removeprefix(prefix).removesuffix(suffix) for name in named if name.endswith(suffix)]
    return {
        path: (
            named[f"{prefix}{path}.lora_A.default.weight"],
            named[f"{prefix}{path}.lora_B.default.weight"],
        )
        for path in paths
    }


def _state(base: GgufModel) -> Mapping[str, Tensor]:
    """Give all weights under the names, and in the order of rows, that transformers uses."""
    tensors = base.tensors
    state = {"model.embed_tokens.weight": unpacked(tensors[EMBEDDING]), "model.norm.weight": _norm(base, OUTPUT_NORM)}
    if OUTPUT in tensors:
        state["lm_head.weight"] = unpacked(tensors[OUTPUT])
    for path, target in target_modules(base).items():
        parts = {"weight": target.tensor} | ({"bias": target.bias} if target.bias else {})
        for name, tensor in parts.items():
            values = unpacked(tensors[tensor])
            if target.rotary_heads:
                values = values[torch.from_numpy(model_order(target.out_features, target.rotary_heads))]
            state[f"{path}.{name}"] = values
    for layer in range(base.config.n_layers):
        for name, path in {**base.architecture.norms, **base.architecture.head_norms}.items():
            state[f"model.layers.{layer}.{path}.weight"] = _norm(base, f"blk.{layer}.{name}.weight")
    return state


def _norm(base: GgufModel, name: str) -> Tensor:
    """Give the weight of a norm; transformers keeps those of Gemma less one."""
    return unpacked(base.tensors[name]) - (1.0 if base.architecture.name == "gemma3" else 0.0)


def _dimensions(base: GgufModel) -> dict[str, Any]:
    config = base.config
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": "eager",
    }


def _turns(base: GgufModel) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base.config.rope_base}}


def _llama(base: GgufModel) -> Peer:
    attention = "blk.0.attn_output.bias" in base.tensors
    feed_forward = "blk.0.ffn_up.bias" in base.tensors
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**_dimensions(base), **_turns(base), attention_bias=attention, mlp_bias=feed_forward)
    )


def _qwen2(base: GgufModel) -> Peer:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_dimensions(base), **_turns(base)))


def _qwen3(base: GgufModel) -> Peer:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_dimensions(base), **_turns(base)))


def _gemma3(base: GgufModel) -> Peer:
    config = base.config
    kinds = ["sliding_attention" if slides else "full_attention" for slides in config.sliding_layers]
    bases = {"sliding_attention": config.sliding_rope_base, "full_attention": config.rope_base}
    return transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **_dimensions(base),
            layer_types=kinds,
            sliding_window=config.sliding_window,
            query_pre_attn_scalar=round(config.attention_scale**-2),
            rope_parameters={kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in bases.items()},
        )
    )


def _phi3(base: GgufModel) -> Peer:
    rope = base.config.rope
    factors = {
        name: unpacked(base.tensors[tensor]).tolist()
        for name, tensor in (("short_factor", SHORT_FACTORS), ("long_factor", LONG_FACTORS))
    }
    return transformers.Phi3ForCausalLM(
        transformers.Phi3Config(
            **_dimensions(base),
            original_max_position_embeddings=rope.original_context,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": rope.base,
                "partial_rotary_factor": rope.dimensions / base.config.head_dim,
                "attention_factor": rope.magnitude,
                "original_max_position_embeddings": rope.original_context,
                **factors,
            },
        )
    )


_MODELS: Mapping[str, Callable[[GgufModel], Peer]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "phi3": _phi3,
}
