"""What a compression leaves out is not lost: it is kept on the device and added to the next update.

Compressions that leave numbers out for good would stall (what is small every time is never learned). With the memory
of what was not sent they converge as if everything had been sent, only later (Seide et al. 2014, *1-bit stochastic
gradient descent*, section 2; Stich et al. 2018, *Sparsified SGD with memory*, theorem 2.4; Karimireddy et al. 2019,
*Error feedback fixes SignSGD*, algorithm 2)::

    wanted   = clip(delta + residual)
    sent     = what the receiver decodes of it
    residual = wanted - sent

What clipping takes off is dropped, not kept: it exists to bound what one device can ever do to the merge, and a
residual that kept it would only grow. So the norm of a residual is bounded too.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.llm.adapter import FloatArray
from agent.update.compression import compression_of
from agent.update.delta import Delta, clip
from agent.update.layout import layout_of
from agent.update.wire import EncodedUpdate, UpdateHeader, encode

_TRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """An update to send, and what stays behind.

    Attributes:
        update: its bytes, and what the receiver makes of them; the norm of that is within the bound.
        residual: what was wanted and is not sent, to be added next time; None where the compression leaves nothing out.
    """

    update: EncodedUpdate
    residual: Delta | None


def with_residual(delta: Delta, residual: Delta | None) -> Delta:
    """Give what a device wants to send: what it learned now, and what it could not send before.

    Raises:
        ValueError: the residual is of another rank, other modules, or other factors.
    """
    if residual is None:
        return delta
    layout = layout_of(delta)
    if layout_of(residual) != layout:
        raise ValueError("a residual can only be added to a delta of its own layout")
    return layout.restore(layout.flatten(delta) + layout.flatten(residual))


def left_over(wanted: Delta, sent: Delta) -> Delta:
    """Give what was wanted and is not sent."""
    layout = layout_of(wanted)
    kept: FloatArray = layout.flatten(wanted) - layout.flatten(sent)
    return layout.restore(kept)


def send(
    header: UpdateHeader,
    delta: Delta,
    residual: Delta | None,
    *,
    compression: str,
    density: float,
    max_norm: float,
) -> Sending:
    """Encode an update so that what the receiver reads is within the norm bound, and say what is left over.

    Args:
        header: what it says about itself.
        delta: what was learned, finite.
        residual: what earlier updates left over, if anything; of the delta's layout.
        compression: by name.
        density: share of the numbers that ``topk`` sends.
        max_norm: bound on the Euclidean norm of what is sent.

    Raises:
        ValueError: the delta or the residual cannot be sent as they are.
    """
    keeps = compression_of(compression, density).keeps_residual
    wanted = clip(with_residual(delta, residual if keeps else None), max_norm)
    update = encode(header, wanted, compression, density=density)
    for _ in range(_TRIES):  # rounding may lift the norm; a little less is wanted then
        if update.sent.norm <= max_norm:
            break
        wanted = clip(wanted, wanted.norm * 0.99 * max_norm / update.sent.norm)
        update = encode(header, wanted, compression, density=density)
    return Sending(update=update, residual=left_over(wanted, update.sent) if keeps else None)
