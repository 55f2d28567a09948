"""How much memory a training will take at most, from its dimensions: nothing is computed.

What is kept for the backward pass follows from what each step saves (``projection.py``, ``attention.py``); the largest
moment is the backward pass of one block, or of the loss, on top of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.llm.gguf_file import EMBEDDING, OUTPUT, GgufModel, TargetModule, target_modules

MIB = 1024 * 1024
LOGIT_BYTES = 48 * MIB
"""What the logits held at a time may take; their softmax and its gradient lie in the same place."""
ROUND = 16
"""Shapes that vary are rounded up to a multiple of it."""
TILE_ROWS = 128
"""Query rows of a tile of attention."""
KEPT_SHARES = 4
"""Shares are kept for the backward pass while they take at most so many times what queries, keys and values take."""
_INPUTS = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}  # roles that share their input
LARGEST_LAYER_PIECE = 16 << 20
LARGEST_HEAD = 32 << 20
_LIBRARIES = 60 * MIB  # what the libraries take once they compute, beside what importing them takes (measured)
_HOLES = 2  # the general allocator keeps about so many times what one block needs at a time (measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides how much memory a training takes.

    Attributes:
        rows: tokens a pass.
        length: tokens of the longest segment.
        itemsize: bytes of a number in the compute type.
        rank: of the adapter.
        target_modules: last names of the layers it changes.
        first_layer: lowest block that it changes.
        checkpointing: whether only the input of each block is kept.
        keeps_best: whether a second copy of the adapter is kept.
    """

    rows: int
    length: int
    itemsize: int
    rank: int
    target_modules: Sequence[str]
    first_layer: int = 0
    checkpointing: bool = False
    keeps_best: bool = False


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of memory at the largest moment of a training, by what takes them.

    Attributes:
        weights: pages of the mapped base; llama.cpp shares them.
        adapter: the adapter, its gradients, and the optimiser's moments.
        scratch: unpacked weights, room for logits, and the libraries' own buffers.
        kept: what the forward pass keeps for the backward pass.
        moment: what the largest step has beside that while it is computed.
    """

    weights: int
    adapter: int
    scratch: int
    kept: int
    moment: int

    @property
    def total(self) -> int:
        """All together, without the process itself."""
        return self.weights + self.adapter + self.scratch + self.kept + self.moment


def footprint(gguf: GgufModel, shape: Shape) -> Footprint:
    """Predict the memory of a training on a base."""
    config = gguf.config
    blocks = config.n_layers - shape.first_layer
    adapted = [
        target
        for path, target in target_modules(gguf).items()
        if target.layer >= shape.first_layer and path.rsplit(".", 1)[-1] in set(shape.target_modules)
    ]
    numbers = shape.rank * sum(target.out_features + target.in_features for target in adapted)
    lows = shape.rank * len([target for target in adapted if target.layer == shape.first_layer])
    query, key = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    item = shape.itemsize
    head_norms = (query + key) * item + query * item + 2 * key * item if _has(gguf, "attn_q_norm") else 0
    all_heads = query + 2 * key
    shares = config.n_heads * (shape.length + TILE_ROWS) // 2
    shares = shares if shares <= KEPT_SHARES * all_heads else 0
    after_norms = sum(config.hidden * item for name in ("post_attention_norm", "post_ffw_norm") if _has(gguf, name))
    block = (
        item * (2 * config.hidden + 2 * query + 2 * key + 2 * config.ffn + lows + shares) + head_norms + after_norms + 8
    )
    through = config.hidden * 4
    spread = item * _spread_numbers([target for target in adapted if target.layer == shape.first_layer], shape.rank)
    kept = blocks * (shape.rows * through if shape.checkpointing else shape.rows * block + spread)
    backward = shape.rows * (item * (4 * config.ffn + 2 * config.hidden) + 3 * through)
    logits = rounded(min(shape.rows, logit_rows(gguf, item))) * config.vocab * item
    return Footprint(
        weights=_weights(gguf),
        adapter=numbers * 4 * (5 + shape.keeps_best),
        scratch=scratch_elements(gguf) * item + _LIBRARIES,
        kept=kept + (shape.rows * block + spread if shape.checkpointing else 0),
        moment=_HOLES * backward + logits,
    )


def _spread_numbers(targets: Sequence[TargetModule], rank: int) -> int:
    """Count the numbers of every B of a block, each beside zeros for those that share its layer's input."""
    inputs: dict[str, list[int]] = {}
    for target in targets:
        inputs.setdefault(_INPUTS.get(target.role, target.role), []).append(target.out_features)
    return sum(rank * len(outs) * sum(outs) for outs in inputs.values())


def rounded(rows: int) -> int:
    """Give the round number that holds so many rows: the library makes and keeps a kernel for every shape it meets."""
    return -(-rows // ROUND) * ROUND


def logit_rows(gguf: GgufModel, itemsize: int) -> int:
    """Say for how many positions logits are held at a time."""
    config = gguf.config
    rows = max(16, LOGIT_BYTES // (itemsize * config.vocab))
    unpacked_again = config.vocab * config.hidden > scratch_elements(gguf)  # for every piece of positions, twice
    return rows * 2 if unpacked_again else rows


def scratch_elements(gguf: GgufModel) -> int:
    """Say how many weights are unpacked at a time: a layer's group where it is not too large, else its pieces."""
    config = gguf.config
    targets = list(target_modules(gguf).values())
    groups: dict[tuple[int, str], int] = {}
    for target in targets:
        key = (target.layer, _INPUTS.get(target.role, target.role))
        groups[key] = groups.get(key, 0) + target.out_features * target.in_features
    head = config.vocab * config.hidden
    wanted = min(max(groups.values()), LARGEST_LAYER_PIECE)
    return max(wanted, config.hidden, config.ffn, head if head <= LARGEST_HEAD else 0)


def _weights(gguf: GgufModel) -> int:
    """Give the bytes of the file that a training touches; of an embedding by itself it touches a few rows."""
    total = sum(tensor.packed.size for tensor in gguf.tensors.values())
    return total - gguf.tensors[EMBEDDING].packed.size if OUTPUT in gguf.tensors else total


def _has(gguf: GgufModel, norm: str) -> bool:
    return f"blk.0.{norm}.weight" in gguf.tensors
