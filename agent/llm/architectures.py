"""What Bramble knows about each model architecture: which tensor is which layer, and what else it may hold.

A further architecture is a further row in :data:`ARCHITECTURES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

Width: TypeAlias = Literal["hidden", "ffn", "attention", "key_value"]
"""hidden; feed-forward; heads x head size; key-value heads x head size."""


@dataclass(frozen=True, slots=True)
class LinearRow:
    """One linear layer of a block.

    Attributes:
        module: its path inside the transformers block, such as ``self_attn.q_proj``.
        tensor: its name inside ``blk.N.`` of the GGUF, such as ``attn_q``.
        out_width: which width its output has.
        in_width: which width its input has.
        rotary: its rows are stored in the order of interleaved rotary pairs, where transformers expects halves.
    """

    module: str
    tensor: str
    out_width: Width
    in_width: Width
    rotary: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of ``general.architecture``.

    Attributes:
        name: that value, which is also the prefix of its metadata.
        linears: the linear layers of a block.
        norms: transformers path inside the block by GGUF name inside ``blk.N.``.
        ignored: tensor suffixes that may be there and are not needed.
    """

    name: str
    linears: tuple[LinearRow, ...]
    norms: MappingProxyType[str, str]
    ignored: frozenset[str]


_LLAMA = Architecture(
    name="llama",
    linears=(
        LinearRow("self_attn.q_proj", "attn_q", "attention", "hidden", rotary=True),
        LinearRow("self_attn.k_proj", "attn_k", "key_value", "hidden", rotary=True),
        LinearRow("self_attn.v_proj", "attn_v", "key_value", "hidden"),
        LinearRow("self_attn.o_proj", "attn_output", "hidden", "attention"),
        LinearRow("mlp.gate_proj", "ffn_gate", "ffn", "hidden"),
        LinearRow("mlp.up_proj", "ffn_up", "ffn", "hidden"),
        LinearRow("mlp.down_proj", "ffn_down", "hidden", "ffn"),
    ),
    norms=MappingProxyType({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}),
    ignored=frozenset({"attn_rot_embd.weight", "attn_rot_embd"}),
)

ARCHITECTURES: MappingProxyType[str, Architecture] = MappingProxyType({row.name: row for row in (_LLAMA,)})
"""Every architecture that can be trained, by its name in ``general.architecture``."""
