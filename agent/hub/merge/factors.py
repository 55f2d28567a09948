"""Linear algebra on products of two thin matrices, without writing the product out while the factors are smaller.

A :class:`Product` stands for ``left @ right``. All numbers are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix as the product of two.

    Attributes:
        left: shape ``(out, k)``.
        right: shape ``(k, in)``.
    """

    left: Matrix
    right: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return (self.left.shape[0], self.right.shape[1])

    @property
    def rank(self) -> int:
        """The inner dimension, which bounds the rank."""
        return int(self.left.shape[1])

    def scaled(self, factor: float) -> Product:
        """Give ``factor`` times the matrix."""
        return Product(left=factor * self.left, right=self.right)


@dataclass(frozen=True, slots=True)
class Components:
    """A singular value decomposition ``u @ diag(s) @ vt``, largest first, with its signs fixed.

    Attributes:
        u: shape ``(out, k)``.
        s: shape ``(k,)``, descending, none negative.
        vt: shape ``(k, in)``.
    """

    u: Matrix
    s: Matrix
    vt: Matrix


def stack(products: Sequence[Product]) -> Product:
    """Give the sum of products: their left factors side by side, their right factors one below another."""
    return Product(
        left=np.hstack([product.left for product in products]),
        right=np.vstack([product.right for product in products]),
    )


def decompose(product: Product) -> Components:
    """Give the singular value decomposition of a product.

    The thin QR of both factors leaves a small square to decompose (Golub and Van Loan, *Matrix Computations*,
    section 5.4.5, applied to either side); factors wider than the matrix are multiplied out instead, being larger.
    """
    if product.rank >= min(product.shape):
        u, s, vt = np.linalg.svd(product.left @ product.right, full_matrices=False)
    else:
        left_q, left_r = np.linalg.qr(product.left)
        right_q, right_r = np.linalg.qr(product.right.T)
        small_u, s, small_vt = np.linalg.svd(left_r @ right_r.T)
        u, vt = left_q @ small_u, small_vt @ right_q.T
    signs = _signs(u)
    return Components(u=u * signs, s=s, vt=vt * signs[:, None])


def truncate(products: Sequence[Product], rank: int) -> list[Product]:
    """Give the best product of at most this rank for a sum of products (Eckart and Young 1936); none for nothing."""
    if not products or not rank:
        return []
    whole = stack(products)
    if whole.rank <= rank:
        return [whole]
    return [balanced(decompose(whole), 0, rank)]


def balanced(components: Components, first: int, last: int) -> Product:
    """Give components ``first`` to ``last`` as a product in which each factor has the root of the singular value."""
    roots = np.sqrt(components.s[first:last])
    return Product(left=components.u[:, first:last] * roots, right=roots[:, None] * components.vt[first:last])


def sum_of_squares(products: Sequence[Product]) -> float:
    """Give the squared Frobenius norm of a sum of products."""
    if not products:
        return 0.0
    whole = stack(products)
    return max(0.0, float(np.sum((whole.left.T @ whole.left) * (whole.right @ whole.right.T))))


class Sum:
    """A running sum of products in bounded memory, with nothing lost.

    Products are stacked until their factors would be larger than the matrix itself, and added into the matrix from then
    on: no form that loses nothing is smaller. So a layer costs at most ``8 * out * in`` bytes (and one buffer of that
    size while stacking), however many products come.

    Args:
        shape: ``(out, in)``.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        out, in_ = shape
        self._shape = shape
        self._limit = max(1, (out * in_) // (out + in_))
        self._stacked: list[Product] = []
        self._rank = 0
        self._dense: Matrix | None = None

    def add(self, product: Product) -> None:
        """Add one product, whose factors must not be altered afterwards."""
        self._stacked.append(product)
        self._rank += product.rank
        if self._rank > self._limit:
            self._fold()

    def total(self) -> list[Product]:
        """Give products whose sum is the total; none where nothing was added."""
        if self._dense is None:
            return list(self._stacked)
        self._fold()
        out, in_ = self._shape
        if out < in_:
            return [Product(left=np.eye(out), right=self._dense)]
        return [Product(left=self._dense, right=np.eye(in_))]

    def _fold(self) -> None:
        """Multiply what is stacked out, in one matrix product."""
        if not self._stacked:
            return
        stacked = stack(self._stacked)
        dense = stacked.left @ stacked.right
        self._dense = dense if self._dense is None else self._dense + dense
        self._stacked, self._rank = [], 0


def _signs(u: Matrix) -> Matrix:
    """Give the signs that make the entry of largest magnitude in each column positive: the first one in a tie."""
    if not u.size:
        return np.ones(u.shape[1])
    largest = np.take_along_axis(u, np.abs(u).argmax(axis=0)[None, :], axis=0)[0]
    return np.where(largest < 0, -1.0, 1.0)
