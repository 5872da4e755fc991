"""Penalties: value, gradient and curvature against differences, and the proximal operator against its definition."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows

K, D = 3, 5
STRENGTHS = ["number", "feature", "class", "coefficient"]


def strengths(kind, rng):
    """A strength of each shape that a penalty takes, in float64."""
    shape = {"number": (), "feature": (D,), "class": (K, 1), "coefficient": (K, D)}[kind]
    x = rng.uniform(0.1, 2.0, size=shape)
    return float(x) if kind == "number" else x


def given(xp, strength, dtype):
    return strength if isinstance(strength, float) else xp.asarray(strength, dtype)


@pytest.mark.parametrize("kind", STRENGTHS)
def test_value_gradient_and_curvature_are_the_definition(xp, rng, kind):
    for dtype in xp.float_dtypes:
        l2, l1 = strengths(kind, rng), strengths(kind, rng)
        coef, direction = rng.normal(size=(2, K, D))
        penalty = Penalty(given(xp, l2, dtype), given(xp, l1, dtype))
        tolerance = 1e-6 if dtype == "float32" else 1e-14
        x, v = xp.asarray(coef, dtype), xp.asarray(direction, dtype)
        assert float(penalty.value(x)) == pytest.approx((l2 / 2 * coef**2).sum(), rel=tolerance)
        assert float(penalty.absolute_value(x)) == pytest.approx((l1 * abs(coef)).sum(), rel=tolerance)
        for actual, expected in ((penalty.grad(x), l2 * coef), (penalty.hessian_product(v), l2 * direction)):
            xp.assert_here(actual, dtype, (K, D))
            np.testing.assert_allclose(xp.to_numpy(actual), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", STRENGTHS)
def test_the_gradient_is_the_difference_of_values(rng, kind):
    penalty, coef = Penalty(strengths(kind, rng), 0.3), rng.normal(size=(K, D))
    expected = oracle.central_difference(penalty.value, coef)
    np.testing.assert_allclose(penalty.grad(coef), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", STRENGTHS)
@pytest.mark.parametrize("step", [0.0, 0.3, 5.0])
def test_prox_is_the_minimiser_of_its_definition(xp, rng, kind, step):
    l1, coef = strengths(kind, rng), rng.normal(size=(K, D))
    coef[0, 0] = 0.0
    for dtype in xp.float_dtypes:
        moved = Penalty(7.0, given(xp, l1, dtype)).prox(xp.asarray(coef, dtype), step)
        xp.assert_here(moved, dtype, (K, D))
        x = xp.to_numpy(moved).astype(np.float64)
        # Moreau: (coef - x) / step is a subgradient of l1 |.| at x. So it is l1 sign(x), or lies in [-l1, l1] at zero.
        slack = 1e-5 if dtype == "float32" else 1e-12
        pull, bound = coef - x, step * np.broadcast_to(l1, coef.shape)
        np.testing.assert_allclose(pull[x != 0], (bound * np.sign(x))[x != 0], rtol=0, atol=slack)
        assert (abs(pull) <= bound + slack).all()
        grid = np.linspace(-4, 4, 80_001)
        for i in [(0, 0), (1, 2), (2, 4)]:
            costs = bound[i] * abs(grid) + (grid - coef[i]) ** 2 / 2
            assert x[i] == pytest.approx(grid[costs.argmin()], abs=2e-4)


def test_prox_makes_exact_zeros(xp):
    for dtype in xp.float_dtypes:
        moved = Penalty(l1=1.0).prox(xp.asarray([[0.5, -1.0, 2.0, -3.0]], dtype), 1.0)
        np.testing.assert_array_equal(xp.to_numpy(moved), [[0.0, 0.0, 1.0, -2.0]])


@pytest.mark.parametrize("kind", STRENGTHS)
def test_an_objective_takes_every_shape_of_strength(xp, rng, kind):
    X, y, l2 = rng.normal(size=(40, D)), rng.integers(0, K, 40), strengths(kind, rng)
    for dtype in xp.float_dtypes:
        X_here = xp.asarray(X, dtype)
        f = LinearObjective(DenseRows(X_here), xp.asarray(y), K, Penalty(given(xp, l2, dtype)))
        params, along = rng.normal(size=(2, K * (D + 1)))
        value, grad = f.value_and_grad(xp.asarray(params, dtype))
        plain, plain_grad = LinearObjective(DenseRows(X_here), xp.asarray(y), K, Penalty(0.0)).value_and_grad(
            xp.asarray(params, dtype)
        )
        coef = params[: K * D].reshape(K, D)
        tolerance = 1e-5 if dtype == "float32" else 1e-12
        assert float(value) - float(plain) == pytest.approx((l2 / 2 * coef**2).sum(), rel=tolerance)
        difference = (xp.to_numpy(grad) - xp.to_numpy(plain_grad))[: K * D].reshape(K, D)
        np.testing.assert_allclose(difference, l2 * coef, rtol=0, atol=tolerance)
        product = f.hessian_product(xp.asarray(params, dtype))(xp.asarray(along, dtype))
        step = 1e-3 if dtype == "float32" else 1e-5
        if dtype == "float64":
            ahead, behind = (f.value_and_grad(xp.asarray(params + s * along, dtype))[1] for s in (step, -step))
            expected = (xp.to_numpy(ahead) - xp.to_numpy(behind)) / (2 * step)
            np.testing.assert_allclose(xp.to_numpy(product), expected, rtol=0, atol=1e-7)


def test_what_is_known_of_strengths(rng):
    assert (Penalty(0.5).least, Penalty(np.array([0.5, 0.0])).least) == (0.5, 0.0)
    np.testing.assert_array_equal(Penalty(0.5).diagonal(3), [0.5] * 3)
    np.testing.assert_array_equal(Penalty(np.array([1.0, 2.0])).diagonal(2), [1.0, 2.0])
    np.testing.assert_array_equal(Penalty(np.array([[1.0], [3.0]])).diagonal(2), [2.0, 2.0])
    assert (Penalty(1.0).has_l1, Penalty(l1=0.1).has_l1, Penalty(l1=np.zeros(3)).has_l1) == (False, True, False)


def test_an_objective_refuses_what_no_solver_minimises():
    X = np.ones((4, 2))
    with pytest.raises(
        ValueError, match=r"`penalty` must have no l1 part, which no solver here minimises; pass Penalty"
    ):
        LinearObjective(DenseRows(X), np.array([0, 1, 0, 1]), 2, Penalty(0.1, l1=0.1))
