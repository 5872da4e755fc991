"""What the preconditioners make of a sample of the rows, and of rows without a say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest

from softmax_xp.curvature.costs import COSTS
from softmax_xp.curvature.sampling import SMALLEST
from softmax_xp.curvature.timetable import Curvature
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows

PLENTY, DIAGONAL = 1 << 30, 100  # bytes
CASES = [{"c": 3}, {"c": 2}, {"c": 3, "weighted": True}]


SMALL_SAMPLES = replace(COSTS, min_rows=50)


def problem(rng, n, c, *, weighted=False):
    X, y = rng.normal(size=(n, 4)) + 1, np.arange(n) % c
    weight = rng.exponential(size=n) if weighted else None
    return LinearObjective(DenseRows(X, weight), y, c, Penalty(0.01))


def drawn_from(f, params):
    """The sizes of the directions of the classes, the weight of each row in their blocks (K, n), and what is drawn."""
    coef, intercept = f.split(params)
    X, weight = f.rows.part(slice(None)), f.rows.sample_weight
    logits = X @ coef.T + intercept
    p = oracle.softmax(logits if len(coef) > 1 else np.hstack([np.zeros_like(logits), logits]))[:, -len(coef) :]
    S = np.einsum("ik,kl->ikl", p, np.eye(len(coef))) - np.einsum("ik,il->ikl", p, p)
    weight = np.ones(len(X)) if weight is None else weight
    weight = weight / weight.sum()
    sizes, basis = np.linalg.eigh(np.einsum("i,ikl->kl", weight, S))
    sizes = np.maximum(sizes, SMALLEST * sizes.max())
    shares = np.einsum("i,ikl,km,lm->mi", weight, S, basis, basis)
    return sizes, shares, Curvature(f, PLENTY, costs=SMALL_SAMPLES)._drawn(params, basis, sizes)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_take_every_row_of_large_weight_and_a_share_of_the_others(rng, case):
    f = problem(rng, 1000, **case)
    params = rng.normal(size=f.n_params)
    sizes, shares, drawn = drawn_from(f, params)
    for k in range(f.coef_shape[0] > 1, f.coef_shape[0]):  # the first is that of a shift of all classes
        weights, index = drawn[k]
        assert set(np.nonzero(shares[k] >= sizes[k] / 50 * (1 + 1e-9))[0]) <= set(index)
        assert 20 < len(set(index)) == len(index) <= 51
        np.testing.assert_allclose(weights, np.maximum(shares[k][index], sizes[k] / 50), rtol=1e-6)
        assert weights.sum() == pytest.approx(shares[k].sum(), abs=1.01 * sizes[k] / 50)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_are_right_in_the_mean(rng, case):
    """Over random orders of the rows, the blocks drawn are those of all rows."""
    f, n, tries = problem(rng, 400, **case), 400, 300
    params = rng.normal(size=f.n_params)
    X, weight = f.rows.part(slice(None)), f.rows.sample_weight
    estimates = []
    for _ in range(tries):
        order = rng.permutation(n)
        f.rows = DenseRows(X[order], None if weight is None else weight[order])
        _, shares, drawn = drawn_from(f, params)
        estimates.append([np.einsum("i,ia,ib->ab", w, X[order][i], X[order][i]) for w, i in drawn])
    X = f.rows.part(slice(None))
    full = np.array([np.einsum("i,ia,ib->ab", share, X, X) for share in shares])
    spread = np.std(estimates, axis=0)
    assert spread[-1].max() > 1e-3 * full[-1].max()  # they are samples
    error = (np.mean(estimates, axis=0) - full) / (spread / np.sqrt(tries) + 1e-12)
    assert np.abs(error[f.coef_shape[0] > 1 :]).max() < 5


@pytest.mark.parametrize("max_bytes", [PLENTY, DIAGONAL])
@pytest.mark.parametrize("make", ["kronecker", "class_blocks"])
@pytest.mark.parametrize("c", [2, 3])
def test_products_are_finite_where_every_row_is_sure(rng, c, make, max_bytes):
    """Probabilities that have rounded to zeros and ones leave no curvature but that of the penalty."""
    f = problem(rng, 30, c)
    params = np.zeros(f.n_params)
    params[: f.n_params - len(f.split(params)[1])] = 1e5 * rng.normal(size=f.coef_shape).ravel()
    product = getattr(Curvature(f, max_bytes), make)(params)
    P = product(np.eye(f.n_params))
    assert np.isfinite(P).all()
    _, grad = f.value_and_grad(params)
    assert grad @ product(grad[None])[0] > 0
