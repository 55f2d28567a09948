from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.governance.charter import OuterOptimiser
from agent.hub.merge.factors import Product, combine
from agent.hub.merge.outer import Moments, ProductMoments, product_step, vector_step

NESTEROV = OuterOptimiser(name="nesterov", learning_rate=0.7, momentum=0.9)
FEDADAM = OuterOptimiser(name="fedadam", learning_rate=0.1, momentum=0.9, beta2=0.99, epsilon=1e-3)


def dense(products: list[Product]) -> np.ndarray:
    return combine(*products).matrix()


def change(seed: int, rank: int = 3) -> Product:
    rng = np.random.default_rng(seed)
    return Product(left=rng.normal(size=(9, rank)), right=rng.normal(size=(rank, 7)))


def test_without_an_optimiser_the_step_is_the_change_times_the_rate_and_nothing_is_remembered() -> None:
    step, kept = vector_step(OuterOptimiser(learning_rate=0.5), np.array([2.0, -4.0]), Moments())
    np.testing.assert_array_equal(step, [1.0, -2.0])
    assert kept == Moments()


def test_nesterov_on_a_vector_is_torchs_sgd() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(6, 5))
    parameter = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    ours, kept = np.zeros(5), Moments()
    for gradient in gradients:
        parameter.grad = torch.from_numpy(-gradient)  # a pseudo-gradient points downhill
        theirs.step()
        step, kept = vector_step(NESTEROV, gradient, kept)
        ours += step
        np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-12)


def test_fedadam_on_a_vector_is_algorithm_2_written_out() -> None:
    gradients = [0.3, -0.1, 0.2]
    m, v = 0.0, 1e-3**2
    kept = Moments()
    for gradient in gradients:
        m = 0.9 * m + 0.1 * gradient
        v = 0.99 * v + 0.01 * gradient**2
        step, kept = vector_step(FEDADAM, np.array([gradient]), kept)
        assert step[0] == pytest.approx(0.1 * m / (math.sqrt(v) + 1e-3))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rounds=st.integers(1, 5))
def test_nesterov_on_products_is_nesterov_on_the_dense_matrix(seed: int, rounds: int) -> None:
    by_vector, by_product = Moments(), ProductMoments()
    for number in range(rounds):
        gradient = [change(seed + number), change(seed + number + 50)]
        step, by_product = product_step(NESTEROV, combine(*gradient), by_product, scaling=2.0, rank=7)
        expected, by_vector = vector_step(NESTEROV, dense(gradient).ravel(), by_vector)
        np.testing.assert_allclose(step.matrix().ravel(), expected, atol=1e-9)


def test_momentum_of_a_product_keeps_its_largest_components() -> None:
    _, kept = product_step(NESTEROV, combine(change(1, rank=7)), ProductMoments(), scaling=2.0, rank=2)
    u, s, vt = np.linalg.svd(dense([change(1, rank=7)]))
    assert kept.first is not None
    np.testing.assert_allclose(dense([kept.first]), u[:, :2] * s[:2] @ vt[:2], atol=1e-9)


def test_fedadam_on_products_divides_by_one_norm_a_layer_that_no_change_of_basis_alters() -> None:
    rng = np.random.default_rng(5)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    kept, turned = ProductMoments(), ProductMoments()
    m, v = np.zeros((9, 7)), 1e-3**2
    for seed in range(4):
        gradient = change(seed)
        in_another_basis = Product(left=gradient.left @ turn, right=turn.T @ gradient.right)
        step, kept = product_step(FEDADAM, combine(gradient), kept, scaling=2.0, rank=7)
        same, turned = product_step(FEDADAM, combine(in_another_basis), turned, scaling=2.0, rank=7)
        m = 0.9 * m + 0.1 * dense([gradient])
        v = 0.99 * v + 0.01 * float(np.sum((2.0 * dense([gradient])) ** 2))
        np.testing.assert_allclose(step.matrix(), 0.1 * m / (math.sqrt(v) + 1e-3), atol=1e-9)
        np.testing.assert_allclose(step.matrix(), same.matrix(), atol=1e-9)
