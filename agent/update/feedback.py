"""What a compression leaves out is not lost: it is kept on the device and added to a later update.

Compressions that leave numbers out for good would stall: what is small every time is never learned. With a memory of
what was not sent they converge as if everything had been sent, only later (Seide et al. 2014, *1-bit stochastic
gradient descent*, section 2; Stich et al. 2018, *Sparsified SGD with memory*, theorem 2.4; Karimireddy et al. 2019,
*Error feedback fixes SignSGD*, algorithm 2)::

    wanted   = clip(delta + residual)
    sent     = what the receiver decodes of it
    residual = wanted - sent

What clipping takes off is dropped, not kept: it exists to bound what one device can ever do to the merge, and a
residual that kept it would only grow. So the norm of a residual is bounded too.

The residual must outlive the basis that it was made in. A merge may decompose the adapter anew, and then row 3 of ``A``
is another direction than before: on updates of the seedling under ``stack``, the factors' residual used as it is in the
next release's basis is further from what was meant (1.3 to 1.5 of its squared norm) than nothing at all. So what is
kept is the change of the layers' weights that was not sent, which no basis matters to. It has low rank, so it is
an adapter of its own::

    (B + wB)(A + wA) - (B + sB)(A + sA)  =  (wB - sB)(A + wA) + (B + sB)(wA - sA)

with ``w`` for wanted and ``s`` for sent. In the next basis ``A'``, ``B'`` it becomes the factors ``X``, ``Y`` that give
it best, ``B' X + Y A' = P`` by least squares with a small penalty on large factors; this keeps 0.97 of its squared
norm on the same updates. What cannot be said in the new basis could not be sent in it either, and is dropped. Of what
three devices learned in three rounds, ``topk`` at a density of 0.1 then leaves 0.20 behind (squared) instead of 0.45.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.llm.adapter import Adapter, FloatArray, LoraFactors, ModulePath
from agent.update.compression import compression_of
from agent.update.delta import Delta, Factors, check_fit, clip
from agent.update.layout import layout_of
from agent.update.wire import EncodedUpdate, UpdateHeader, encode

_TRIES = 8
_PENALTY = 0.1
"""Components of the basis below this share of the largest one are not relied upon to express a residual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """An update to send, and what stays behind.

    Attributes:
        update: its bytes, and what the receiver makes of them; the norm of that is within the bound.
        residual: the change of the weights that was wanted and is not sent, to be added next time; None where the
            compression leaves nothing out.
    """

    update: EncodedUpdate
    residual: Adapter | None


def send(
    header: UpdateHeader,
    start: Adapter,
    delta: Delta,
    residual: Adapter | None,
    *,
    compression: str,
    density: float,
    max_norm: float,
) -> Sending:
    """Encode an update so that what the receiver reads is within the norm bound, and say what is left over.

    Args:
        header: what it says about itself.
        start: what was trained from.
        delta: what was learned, finite.
        residual: what earlier updates left over, if anything; of the same base and modules (:func:`fits`).
        compression: by name.
        density: share of the numbers that ``topk`` sends.
        max_norm: bound on the Euclidean norm of what is sent.

    Raises:
        AdapterError: the delta does not fit the start.
        ValueError: the delta or the residual cannot be sent as they are.
    """
    check_fit(start, delta)
    keeps = compression_of(compression, density).keeps_residual
    wanted = delta
    if keeps and residual is not None:
        wanted = added(delta, expressed(residual, start, delta.factors))
    wanted = clip(wanted, max_norm)
    update = encode(header, wanted, compression, density=density)
    for _ in range(_TRIES):  # rounding may lift the norm; a little less is wanted then
        if update.sent.norm <= max_norm:
            break
        wanted = clip(wanted, wanted.norm * 0.99 * max_norm / update.sent.norm)
        update = encode(header, wanted, compression, density=density)
    return Sending(update=update, residual=unsent(start, wanted, update.sent) if keeps else None)


def fits(residual: Adapter, start: Adapter) -> bool:
    """Tell whether a residual can be added to what is learned from this start: same base, same modules, any rank."""
    return residual.base_sha256 == start.base_sha256 and residual.shapes == start.shapes


def added(delta: Delta, other: Delta) -> Delta:
    """Give the sum of two deltas of one layout."""
    layout = layout_of(delta)
    if layout_of(other) != layout:
        raise ValueError("only deltas of one rank, one set of modules and the same factors can be added")
    return layout.restore(layout.flatten(delta) + layout.flatten(other))


def unsent(start: Adapter, wanted: Delta, sent: Delta) -> Adapter:
    """Give the change of the weights that was wanted and is not sent, as an adapter of the start's scaling."""
    kept = {"both": slice(None), "b": slice(0, 1), "a": slice(1, 2)}[
        wanted.factors
    ]  # of a frozen factor's term: nothing
    modules: dict[ModulePath, LoraFactors] = {}
    for name, w in wanted.modules.items():
        s, f = sent.modules[name], start.modules[name]
        modules[name] = LoraFactors(
            a=np.vstack([f.a + w.a, w.a - s.a][kept]), b=np.hstack([w.b - s.b, f.b + s.b][kept])
        )
    rank = next(iter(modules.values())).a.shape[0]
    return Adapter(rank=rank, alpha=start.scaling * rank, modules=modules, base_sha256=start.base_sha256)


def expressed(residual: Adapter, start: Adapter, factors: Factors) -> Delta:
    """Give the change of the start's factors that changes the weights as the residual does, as nearly as it can be.

    Args:
        residual: a change of weights; must fit the start.
        start: whose factors are changed.
        factors: which of them may be.

    Raises:
        ValueError: it does not fit.
    """
    if not fits(residual, start):
        raise ValueError("the residual is of another base or other modules")
    ratio = residual.scaling / start.scaling
    modules = {
        name: _solve(f, ratio * residual.modules[name].b.astype(np.float64), residual.modules[name].a, factors)
        for name, f in sorted(start.modules.items())
    }
    return Delta(rank=start.rank, modules=modules, factors=factors)


def _solve(basis: LoraFactors, left: NDArray[np.float64], right: FloatArray, factors: Factors) -> LoraFactors:
    """Give X, Y with the smallest ``|B X + Y A - left @ right|^2 + penalty * (|X|^2 + |Y|^2)``.

    In the bases of singular vectors of ``A`` and ``B`` the problem falls apart into single numbers: those within both
    spaces are shared among X and Y as their singular values command, those within one are its alone.
    """
    u, b, w = np.linalg.svd(basis.b.astype(np.float64), full_matrices=False)  # B = u b w
    x, a, vt = np.linalg.svd(basis.a.astype(np.float64), full_matrices=False)  # A = x a vt
    if factors == "a":
        a = np.zeros_like(a)
    if factors == "b":
        b = np.zeros_like(b)
    penalty = (_PENALTY * max(a.max(initial=0.0), b.max(initial=0.0))) ** 2 or 1.0
    left_u, right_v = u.T @ left, right @ vt.T
    both = left_u @ right_v
    shared = both / (b[:, None] ** 2 + a[None, :] ** 2 + penalty)
    only_x = left_u @ right - both @ vt
    only_y = left @ right_v - u @ both
    change_a = w.T @ ((b[:, None] * shared) @ vt + (b / (b**2 + penalty))[:, None] * only_x)
    change_b = (u @ (shared * a[None, :]) + only_y * (a / (a**2 + penalty))[None, :]) @ x.T
    return LoraFactors(a=change_a.astype(np.float32), b=change_b.astype(np.float32))
