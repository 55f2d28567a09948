"""Linear algebra on sums of thin products, and of one dense matrix where that is smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.floating]

_OVERSAMPLING = 8
_POWERS = 2
"""Rounds of subspace iteration; two are enough for spectra that hardly decay (Halko et al., section 4.5)."""
_EXACT = 4
"""Where more than a quarter of all components is wanted, all of them cost no more."""


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


@dataclass(frozen=True, slots=True)
class Components:
    """The largest components of a matrix, ``u @ diag(s) @ vt``, with their signs fixed.

    Attributes:
        u: shape ``(out, k)``.
        s: shape ``(k,)``, descending, none negative.
        vt: shape ``(k, in)``.
        energy: the squared Frobenius norm of the whole matrix, which these are part of.
    """

    u: Matrix
    s: Matrix
    vt: Matrix
    energy: float

    def between(self, first: int, last: int) -> Product:
        """Give some components as a product in which each factor has the root of the singular value."""
        roots = np.sqrt(self.s[first:last])
        return Product(left=self.u[:, first:last] * roots, right=roots[:, None] * self.vt[first:last])


@dataclass(frozen=True, slots=True)
class Combination:
    """A sum of matrices times numbers: nothing is multiplied out before it must be.

    Attributes:
        terms: products and dense matrices of one shape, each with what it is multiplied by.
    """

    terms: tuple[tuple[float, Product | Matrix], ...] = ()

    def scaled(self, factor: float) -> Combination:
        """Give ``factor`` times the sum."""
        return Combination(tuple((factor * share, term) for share, term in self.terms))

    def plus(self, other: Combination) -> Combination:
        """Give the sum of both."""
        return Combination(self.terms + other.terms)

    def matrix(self, dtype: type[np.floating] = np.float64) -> Matrix:
        """Multiply everything out; there must be a term."""
        shape = self.terms[0][1].shape
        total: Matrix = np.zeros(shape, dtype)
        products = [(share, term) for share, term in self.terms if isinstance(term, Product)]
        if products:
            left = np.hstack([np.asarray(share * term.left, dtype) for share, term in products])
            right = np.vstack([np.asarray(term.right, dtype) for _, term in products])
            total = left @ right
        for share, term in self.terms:
            if not isinstance(term, Product):
                total += np.asarray(share, dtype) * term
        return total

    def thin(self) -> Product | None:
        """Give the sum as one product in float64; none where a matrix would be no larger."""
        products = [(share, term) for share, term in self.terms if isinstance(term, Product)]
        if len(products) < len(self.terms) or sum(term.rank for _, term in products) >= min(self.terms[0][1].shape) / 2:
            return None
        return Product(
            left=np.hstack([(share * term.left).astype(np.float64) for share, term in products]),
            right=np.vstack([term.right.astype(np.float64) for _, term in products]),
        )

    def energy(self) -> float:
        """Give the squared Frobenius norm."""
        if not self.terms:
            return 0.0
        thin = self.thin()
        return _energy(self.matrix()) if thin is None else product_energy(thin)

    def components(self, count: int) -> Components:
        """Give the ``count`` largest components (or as many as there are); there must be a term."""
        thin = self.thin()
        if thin is not None:
            return _cut(_of_product(thin), count)
        if count * _EXACT >= min(self.terms[0][1].shape):
            return _cut(_of_matrix(self.matrix()), count)
        return _largest(self.matrix(np.float32), count)

    def truncated(self, rank: int) -> Product:
        """Give the best product of at most this rank for it (Eckart and Young 1936); there must be a term."""
        thin = self.thin()
        if thin is not None and thin.rank <= rank:
            return thin
        return self.components(rank).between(0, rank)


def product_energy(product: Product) -> float:
    """Give the squared Frobenius norm of a product: the inner product of its two Gram matrices."""
    left, right = product.left, product.right
    return max(0.0, float(np.sum((left.T @ left) * (right @ right.T))))


def _of_product(product: Product) -> Components:
    """Decompose a thin product.

    The thin QR of both factors leaves a small square to decompose (Golub and Van Loan, *Matrix Computations*,
    section 5.4.5, applied to either side).
    """
    left_q, left_r = np.linalg.qr(product.left)
    right_q, right_r = np.linalg.qr(product.right.T)
    small_u, s, small_vt = np.linalg.svd(left_r @ right_r.T)
    return _signed(left_q @ small_u, s, small_vt @ right_q.T, float(s @ s))


def _of_matrix(matrix: Matrix) -> Components:
    """Decompose a dense matrix by the eigenvectors of its smaller Gram matrix.

    That is three times as fast as a singular value decomposition. Components below about 1e-8 of the largest are lost,
    which is below float32, in which they would be kept.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = _of_matrix(matrix.T)
        return _signed(turned.vt.T, turned.s, turned.u.T, turned.energy)
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    s = np.sqrt(np.maximum(values[::-1], 0.0))
    u = vectors[:, ::-1]
    vt = np.divide(u.T @ matrix, s[:, None], out=np.zeros(matrix.shape), where=s[:, None] > 0)
    return _signed(u, s, vt, _energy(matrix))


def _largest(matrix: Matrix, count: int) -> Components:
    """Give the largest components of a dense matrix by subspace iteration.

    Halko, Martinsson and Tropp 2011, *Finding structure with randomness*, algorithms 4.4 and 5.1; the start is drawn
    from a fixed seed. What is missed of the best is a small part of the first component that is not wanted, so it stays
    in what is carried.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    width = count + _OVERSAMPLING
    basis: Matrix = matrix @ rng.standard_normal((matrix.shape[1], width), dtype=np.float32)
    for _ in range(_POWERS):
        basis = matrix @ np.linalg.qr(matrix.T @ np.linalg.qr(basis)[0])[0]
    q = np.linalg.qr(basis)[0]
    small = _of_matrix((q.T @ matrix).astype(np.float64))
    found = _signed(q @ small.u, small.s, small.vt, _energy(matrix))
    return _cut(found, count)


def _signed(u: Matrix, s: Matrix, vt: Matrix, energy: float) -> Components:
    """Fix signs: the entry of largest magnitude in each left vector is positive, the first one in a tie."""
    signs = np.ones(u.shape[1])
    if u.size:
        largest = np.take_along_axis(u, np.abs(u).argmax(axis=0)[None, :], axis=0)[0]
        signs = np.where(largest < 0, -1.0, 1.0)
    return Components(u=u * signs, s=s, vt=vt * signs[:, None], energy=energy)


def _cut(components: Components, count: int) -> Components:
    """Keep the first components."""
    return Components(
        u=components.u[:, :count], s=components.s[:count], vt=components.vt[:count], energy=components.energy
    )


def _energy(matrix: Matrix) -> float:
    flat = matrix.reshape(-1)
    return float(flat @ flat)


def combine(*terms: Product | Matrix) -> Combination:
    """Give the plain sum of matrices."""
    return Combination(tuple((1.0, term) for term in terms))


class CrossSum:
    """The running sum of thin float32 products of several layers of one shape, in bounded memory.

    Products are stacked; when their factors would have half as many numbers as the matrix, they are multiplied into it,
    in one large matrix product. So a layer costs at most one and a half times its own float32 matrix, however many
    products come, and nothing is lost but float32 roundings: a product of inner dimension k is off by at most k of
    them, relative to the product of magnitudes, and a sum of n of these by n more (Higham 2002, section 3.5).

    Args:
        count: layers.
        shape: ``(out, in)`` of each.
        rank: of the products, at most.
    """

    def __init__(self, count: int, shape: tuple[int, int], rank: int) -> None:
        out, in_ = shape
        self._room = max(rank, (out * in_) // (2 * (out + in_)))
        self._left = np.empty((count, out, self._room), np.float32)
        self._right = np.empty((count, self._room, in_), np.float32)
        self._used = 0
        self._dense: NDArray[np.float32] | None = None

    def room(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give where to write the factors of one more product of each layer.

        Args:
            rank: of the product, at most that of the constructor.

        Returns:
            Views of shape ``(count, out, rank)`` and ``(count, rank, in)``.
        """
        if self._used + rank > self._room:
            self._fold()
        begin, self._used = self._used, self._used + rank
        return self._left[:, :, begin : self._used], self._right[:, begin : self._used]

    def total(self, index: int) -> Combination:
        """Give the sum of one layer."""
        terms: list[Product | Matrix] = []
        if self._used:
            terms.append(Product(left=self._left[index, :, : self._used], right=self._right[index, : self._used]))
        if self._dense is not None:
            terms.append(self._dense[index])
        return combine(*terms)

    def _fold(self) -> None:
        """Multiply what is stacked into the matrices."""
        left, right = self._left[:, :, : self._used], self._right[:, : self._used]
        if self._dense is None:
            self._dense = np.matmul(left, right)
        else:
            one = np.empty(self._dense.shape[1:], np.float32)
            for index in range(len(left)):
                np.matmul(left[index], right[index], out=one)
                self._dense[index] += one
        self._used = 0
