"""What a Newton step may hide: the bound holds, and it is nothing where the quadratic model does."""

from __future__ import annotations

import families
import numpy as np
import pytest

from softmax_xp.curvature.hidden_gap import hidden_gap
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows
from softmax_xp.solvers import newton_cg


def newton_step(objective, params):
    """Return the Newton step by dense algebra, and the Newton decrement."""
    product, n = objective.hessian_product(params), objective.n_params
    hessian = np.stack([product(row) for row in np.eye(n)])
    _, grad = objective.value_and_grad(params)
    step = -np.linalg.lstsq(hessian, grad, rcond=1e-14)[0]
    return step, -0.5 * float(grad @ step)


def problem(seed, exponent):
    given = families.outlier(exponent, seed)
    X = given.X / np.abs(given.X).max(axis=0)  # so that the dense Hessian has digits; the penalty goes with it
    return LinearObjective(DenseRows(X), given.y, 3, Penalty(1e-9))


@pytest.mark.parametrize("exponent", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_gap_is_at_most_the_decrement_and_what_is_hidden(seed, exponent):
    objective = problem(seed, exponent)
    best = newton_cg.minimize(
        objective.value_and_grad, np.zeros(objective.n_params), objective.hessian_product, tol=1e-12
    )
    params, value = np.zeros(objective.n_params), float(objective.value_and_grad(np.zeros(objective.n_params))[0])
    for _ in range(6):
        step, decrement = newton_step(objective, params)
        start, end = hidden_gap(objective, params, step)
        assert value - best.objective <= 1.4 * (decrement + start) + 1e-12  # e^0.3, and rounding
        params = params + step
        value = float(objective.value_and_grad(params)[0])
        assert end >= 0.0


def test_nothing_is_hidden_where_no_logit_changes_much(rng):
    X = rng.normal(size=(50, 4))
    objective = LinearObjective(DenseRows(X), rng.integers(3, size=50), 3, Penalty(0.1))
    params = rng.normal(size=objective.n_params)
    start, end = hidden_gap(objective, params, 1e-3 * rng.normal(size=objective.n_params))
    assert 0.0 <= start < 1e-25
    assert 0.0 <= end < 1e-25
    start, end = hidden_gap(objective, params, 10.0 * rng.normal(size=objective.n_params))
    assert start > 1e-3
    assert end > 1e-3


def test_rows_that_are_nearly_certain_count_in_float32_too(rng):
    """The bound in float32 is that in float64, with more rounding."""
    X, labels = rng.normal(size=(60, 3)), np.zeros(60, dtype=np.int64)
    X[0] *= 100.0
    hidden = []
    for dtype in ("float32", "float64"):
        objective = LinearObjective(DenseRows(X.astype(dtype)), labels, 3, Penalty(0.0))
        params = np.concatenate([np.zeros(9), [20.0, 0.0, 0.0]])  # the probabilities of classes 1 and 2 are 2e-9
        hidden.append(hidden_gap(objective, params, np.concatenate([[0.05, 0.0, 0.0], np.zeros(9)])))
    assert (np.array(hidden[0]) >= 0.9 * np.array(hidden[1])).all()
    assert min(hidden[1]) > 0.0
