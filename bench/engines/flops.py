"""How many floating-point operations a token of LoRA training takes, as the arithmetic demands and not as it is done.

A product of ``(m, k)`` by ``(k, n)`` counts ``2 m k n``. For each token:

- linear layers of a block, ``P`` weights: ``2 P`` forward and ``2 P`` for the gradient of the input; none for the
  gradient of a frozen weight, none backward through blocks below the lowest adapted one, and in that one none for the
  input of q, k and v, which nobody asks for;
- output layer, ``vocab x hidden``: ``2`` forward and ``2`` backward a weight;
- attention, causal: a token sees ``(seq + 1) / 2`` tokens on average; scores and mixing are two products forward and
  four backward, so ``6 (seq + 1) x heads x head_dim`` an adapted block, and a third of it where nothing goes back;
- adapter, ``rank x (in + out)`` weights a layer: ``2`` forward, ``2`` for the input, ``2`` for the adapter itself.

Not counted: what is computed twice (checkpointing, attention's own recomputation, unpacking), the embedding, norms,
activations, softmax, and the optimiser. So a fraction of the machine's best product understates how busy it was.
"""

from __future__ import annotations

from engines.shapes import Shape

ENTRY = ("attn_q", "attn_k", "attn_v")
"""The layers that a block's input enters by."""


def flops_per_token(
    shape: Shape, *, seq: int, rank: int, adapted_layers: int | None = None, trunk_passes: float = 1.0
) -> float:
    """Give the operations that one token of training takes.

    Args:
        shape: the model.
        seq: tokens in a window.
        rank: of the adapter on all linear layers.
        adapted_layers: how many of the last blocks have adapters; None for all.
        trunk_passes: how often the blocks below are computed for each time that a token is trained on: one over the
            number of epochs where their result is kept.
    """
    adapted = shape.layers if adapted_layers is None else adapted_layers
    trunk = shape.layers - adapted
    linear = sum(rows * columns for rows, columns in shape.linears.values())
    adapter = sum(rank * (rows + columns) for rows, columns in shape.linears.values())
    attention = (seq + 1) * shape.heads * shape.head_dim  # one product of half a square, twice: scores and mixing
    forward = 2 * linear + 2 * attention
    head = 4 * shape.vocab * shape.hidden
    entry = sum(2 * columns * (rows + rank) for rows, columns in (shape.linears[name] for name in ENTRY))
    backward = adapted * (2 * linear + 4 * attention + 4 * adapter) - entry
    return head + (adapted + trunk * trunk_passes) * forward + adapted * 2 * adapter + backward
