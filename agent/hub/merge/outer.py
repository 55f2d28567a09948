"""Outer optimisers: what the hub makes of the mean change before it becomes the next release.

The mean change of a round is taken as a pseudo-gradient ``g`` that points downhill (Reddi et al. 2021, *Adaptive
federated optimization*, algorithm 1), and the release moves by a step:

- ``none``: ``lr * g``.
- ``nesterov``: ``m = momentum * m + g``, step ``lr * (g + momentum * m)`` (Douillard et al. 2023, *DiLoCo*, section 2).
- ``fedadam``: ``m = momentum * m + (1 - momentum) * g``, ``v = beta2 * v + (1 - beta2) * g**2``, step
  ``lr * m / (sqrt(v) + epsilon)``; ``v`` begins at ``epsilon**2`` (Reddi et al., algorithm 2; no bias correction).

What ``m`` and ``v`` remember must mean the same in the next round. That decides the space in which they live:

- A linear rule never changes the basis of its factors: number 17 of ``A`` is the same parameter in every release, just
  as in any other model. So moments are kept number by number, in **factor space**. A factor that nobody trained in a
  round has no gradient, which is not a gradient of zero: its moments rest, and it does not move.
- ``stack`` decomposes the product anew in each round, so its components turn, swap places and change signs; momentum
  of its factors would push along directions that are no longer there. The product itself is the same whatever the
  factors are. So ``m`` lives in **product space**, as a product of bounded rank (``g`` and ``m`` have one already; what
  is cut off is the tail of a vector that is multiplied by ``momentum`` each round). A second moment number by number
  would need the dense matrix, and would not stay a product of thin factors; ``v`` is therefore one number a layer, the
  running mean of ``||g||**2`` (Frobenius, scaling included), which no change of basis alters. That is the layer-wise
  second moment of Ginsburg et al. 2019, *NovoGrad*, section 3. So with ``stack``, ``learning_rate`` of ``fedadam`` is
  about the norm of one layer's change in a round; with a linear rule, about the change of one number of a factor.

State goes into the carry, and so belongs to a release: where a candidate is rejected, its moments are too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.governance.charter import OuterOptimiser
from agent.hub.merge.factors import Combination, Product, combine

Vector = NDArray[np.float64]

PLAIN = OuterOptimiser()
"""The mean change as it is."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What is remembered of a vector's gradients; empty at first.

    Attributes:
        first: ``m``, of the vector's size, or nothing.
        second: ``v``, likewise.
    """

    first: Vector | None = None
    second: Vector | None = None

    def part(self, columns: slice) -> Moments:
        """Give what is remembered of a part of the vector."""
        return Moments(*(None if whole is None else whole[columns] for whole in (self.first, self.second)))

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Put parts together that follow one another."""
        firsts = [part.first for part in parts if part.first is not None]
        seconds = [part.second for part in parts if part.second is not None]
        return cls(*(np.concatenate(found) if found else None for found in (firsts, seconds)))


def vector_step(outer: OuterOptimiser, gradient: Vector, before: Moments) -> tuple[Vector, Moments]:
    """Give the step that follows a gradient number by number, and what to remember.

    Args:
        outer: the optimiser.
        gradient: the mean change; it may be the step itself.
        before: what this function gave in the round before.
    """
    rate, momentum = outer.learning_rate, outer.momentum
    if outer.name == "none":
        return (gradient if rate == 1 else rate * gradient), Moments()
    first = np.zeros_like(gradient) if before.first is None else before.first
    if outer.name == "nesterov":
        first = momentum * first + gradient
        return rate * (gradient + momentum * first), Moments(first=first)
    second = np.full_like(gradient, outer.epsilon**2) if before.second is None else before.second
    first = momentum * first + (1 - momentum) * gradient
    second = outer.beta2 * second + (1 - outer.beta2) * gradient**2
    return rate * first / (np.sqrt(second) + outer.epsilon), Moments(first=first, second=second)


@dataclass(frozen=True, slots=True)
class ProductMoments:
    """What is remembered of the changes of one layer's product; empty at first.

    Attributes:
        first: ``m``, or nothing.
        second: ``v``, one number, or nothing.
    """

    first: Product | None = None
    second: float | None = None


def product_step(
    outer: OuterOptimiser, gradient: Combination, before: ProductMoments, *, scaling: float, rank: int
) -> tuple[Combination, ProductMoments]:
    """Give the step that follows the change of one layer's product, and what to remember.

    Args:
        outer: the optimiser.
        gradient: the mean change.
        before: what this function gave in the round before.
        scaling: what a product is multiplied by to be a change of the weight.
        rank: of what is remembered, at most.
    """
    rate, momentum = outer.learning_rate, outer.momentum
    if outer.name == "none":
        return gradient.scaled(rate), ProductMoments()
    older = Combination() if before.first is None else combine(before.first).scaled(momentum)
    if outer.name == "nesterov":
        first = older.plus(gradient)
        return gradient.plus(first.scaled(momentum)).scaled(rate), ProductMoments(first=first.truncated(rank))
    first = older.plus(gradient.scaled(1 - momentum))
    second = outer.epsilon**2 if before.second is None else before.second
    second = outer.beta2 * second + (1 - outer.beta2) * scaling**2 * gradient.energy()
    pace = rate / (math.sqrt(second) + outer.epsilon)
    return first.scaled(pace), ProductMoments(first=first.truncated(rank), second=second)
