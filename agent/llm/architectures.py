"""What Bramble knows about each model architecture: which tensor is which layer, and what else it may hold.

A further architecture is a further row in :data:`ARCHITECTURES`. A row says what llama.cpp computes for that value of
``general.architecture`` (its ``src/models``), since a model runs there after it was trained here. Modules have
the names that transformers gives them, because those are the names in adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

from agent.llm.rotary import ScalingKind

Width: TypeAlias = Literal["hidden", "ffn", "gate_up", "attention", "key_value", "qkv"]
"""hidden; feed-forward, and twice that; heads x head size; key-value heads x head size; attention + 2 x key_value."""

Role: TypeAlias = Literal["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down"]
"""What a layer is for; ``qkv`` has the rows of q, k and v one after another, ``gate_up`` those of gate and up."""

Activation: TypeAlias = Literal["silu", "gelu"]
"""Of the gate; ``gelu`` is the form with tanh."""

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"


@dataclass(frozen=True, slots=True)
class LinearRow:
    """One linear layer of a block.

    Attributes:
        role: what it is for.
        module: its path inside the transformers block, such as ``self_attn.q_proj``.
        tensor: its name inside ``blk.N.`` of the GGUF, such as ``attn_q``.
        out_width: which width its output has.
        in_width: which width its input has.
        rotary: its rows are stored in the order of interleaved rotary pairs, where transformers expects halves.
        may_have_bias: a file may hold a bias for it, in the order of the stored rows.
    """

    role: Role
    module: str
    tensor: str
    out_width: Width
    in_width: Width
    rotary: bool = False
    may_have_bias: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of ``general.architecture``.

    Attributes:
        name: that value, which is also the prefix of its metadata.
        linears: the linear layers of a block.
        norms: norms over the residual stream: transformers path inside the block by GGUF name inside ``blk.N.``.
        head_norms: norms over each head of q and k, likewise.
        activation: of the feed-forward layers.
        scales_embedding: embeddings are multiplied by the square root of the hidden width.
        every_nth_layer_sees_all: the others see a sliding window where the file gives one, unless the file has a
            pattern of its own; None where llama.cpp lets every layer see everything, whatever the file says.
        free_heads: heads x head size may differ from the hidden width.
        partial_rotary: positions may turn only the first part of each head.
        scalings: the kinds of rotary scaling that are applied.
        factor_tensors: tensors of divisors of the rotary frequencies that may be there.
        ignored: other tensor suffixes that may be there and are not needed.
    """

    name: str
    linears: tuple[LinearRow, ...]
    norms: MappingProxyType[str, str]
    head_norms: MappingProxyType[str, str] = field(default_factory=lambda: MappingProxyType({}))
    activation: Activation = "silu"
    scales_embedding: bool = False
    every_nth_layer_sees_all: int | None = None
    free_heads: bool = True
    partial_rotary: bool = False
    scalings: frozenset[ScalingKind] = frozenset({"none", "linear", "yarn"})
    factor_tensors: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()


def _separate(*, interleaved: bool = False, biases: frozenset[Role] = frozenset()) -> tuple[LinearRow, ...]:
    """Give a block with a layer for each of q, k, v, gate and up."""
    rows: tuple[tuple[Role, str, str, Width, Width], ...] = (
        ("q", "self_attn.q_proj", "attn_q", "attention", "hidden"),
        ("k", "self_attn.k_proj", "attn_k", "key_value", "hidden"),
        ("v", "self_attn.v_proj", "attn_v", "key_value", "hidden"),
        ("o", "self_attn.o_proj", "attn_output", "hidden", "attention"),
        ("gate", "mlp.gate_proj", "ffn_gate", "ffn", "hidden"),
        ("up", "mlp.up_proj", "ffn_up", "ffn", "hidden"),
        ("down", "mlp.down_proj", "ffn_down", "hidden", "ffn"),
    )
    return tuple(
        LinearRow(*row, rotary=interleaved and row[0] in {"q", "k"}, may_have_bias=row[0] in biases) for row in rows
    )


_FUSED = (
    LinearRow("qkv", "self_attn.qkv_proj", "attn_qkv", "qkv", "hidden", may_have_bias=True),
    LinearRow("o", "self_attn.o_proj", "attn_output", "hidden", "attention"),
    LinearRow("gate_up", "mlp.gate_up_proj", "ffn_up", "gate_up", "hidden"),
    LinearRow("down", "mlp.down_proj", "ffn_down", "hidden", "ffn"),
)
_ATTENTION_INPUTS: frozenset[Role] = frozenset({"q", "k", "v"})
_EVERY_ROLE: frozenset[Role] = _ATTENTION_INPUTS | {"o", "gate", "up", "down"}

_TWO_NORMS = MappingProxyType({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"})
_FOUR_NORMS = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    }
)
_HEAD_NORMS = MappingProxyType({"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"})

_ROWS = (
    Architecture(
        name="llama",
        linears=_separate(interleaved=True, biases=_EVERY_ROLE),
        norms=_TWO_NORMS,
        factor_tensors=frozenset({ROPE_FACTORS}),
        ignored=frozenset({"attn_rot_embd.weight", "attn_rot_embd"}),
    ),
    Architecture(
        name="qwen2",
        linears=_separate(biases=_ATTENTION_INPUTS),
        norms=_TWO_NORMS,
        free_heads=False,
    ),
    Architecture(
        name="qwen3",
        linears=_separate(biases=_ATTENTION_INPUTS),
        norms=_TWO_NORMS,
        head_norms=_HEAD_NORMS,
    ),
    Architecture(
        name="gemma3",
        linears=_separate(biases=_ATTENTION_INPUTS),
        norms=_FOUR_NORMS,
        head_norms=_HEAD_NORMS,
        activation="gelu",
        scales_embedding=True,
        every_nth_layer_sees_all=6,
    ),
    Architecture(
        name="phi3",
        linears=_FUSED,
        norms=_TWO_NORMS,
        free_heads=False,
        partial_rotary=True,
        scalings=frozenset({"none", "linear", "yarn", "longrope"}),
        factor_tensors=frozenset({LONG_FACTORS, SHORT_FACTORS}),
    ),
)

ARCHITECTURES: MappingProxyType[str, Architecture] = MappingProxyType({row.name: row for row in _ROWS})
"""Every architecture that can be trained, by its name in ``general.architecture``."""


def supported() -> str:
    """Say which models can be trained, for a reader whose model cannot."""
    return f"Use a dense text model of a supported architecture: {', '.join(sorted(ARCHITECTURES))}."
