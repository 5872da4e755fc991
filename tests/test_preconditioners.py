"""The preconditioners against the Hessian by differences, and what they do for a fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression

import softmax_xp as sx
from softmax_xp import preconditioners
from softmax_xp.backend import backend_of
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import L2
from softmax_xp.preconditioners import Curvature


def problem(xp, rng, n=60, d=4, c=3, *, weighted=False, fit_intercept=True, dtype="float64", strength=0.01):
    X, y = rng.normal(size=(n, d)) * [1, 5, 0.2, 2][:d] + 1, np.arange(n) % c
    weight = xp.asarray(rng.uniform(0.2, 3, size=n), dtype) if weighted else None
    X = xp.asarray(X, dtype)
    return LinearObjective(backend_of(X), X, xp.asarray(y), c, L2(strength), weight, fit_intercept)


def matrix_of(xp, product, n_params):
    """The symmetric matrix that a product stands for, column by column."""
    columns = [xp.to_numpy(product(xp.asarray(np.eye(n_params)[i]))) for i in range(n_params)]
    return np.array(columns, dtype=np.float64).T


def hessian(xp, objective, params, step=1e-5):
    """By central differences of the gradient."""
    columns = []
    for i in range(objective.n_params):
        move = step * np.eye(objective.n_params)[i]
        up, down = (objective.value_and_grad(xp.asarray(params + s * move))[1] for s in (1, -1))
        columns.append((xp.to_numpy(up) - xp.to_numpy(down)) / (2 * step))
    return np.array(columns).T


CASES = [{}, {"c": 2}, {"weighted": True}, {"fit_intercept": False}, {"c": 2, "weighted": True, "fit_intercept": False}]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bound_is_above_the_hessian_everywhere(xp, rng, case):
    if "float64" not in xp.float_dtypes:
        pytest.skip(f"{xp} has no float64 to difference in")
    f = problem(xp, rng, **case)
    bound = np.linalg.inv(matrix_of(xp, Curvature(f, 1e-4).first(), f.n_params))
    np.testing.assert_allclose(bound, bound.T, atol=1e-8 * np.abs(bound).max())
    for scale in (0.0, 0.3, 2.0):
        H = hessian(xp, f, scale * rng.normal(size=f.n_params))
        assert np.linalg.eigvalsh(bound - H).min() > -1e-6
    # At zero the probabilities are equal, and the bound is not far off.
    H = hessian(xp, f, np.zeros(f.n_params))
    assert np.linalg.eigvalsh(3 * H - bound).max() > 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_class_blocks_are_those_of_the_hessian(xp, rng, case, monkeypatch):
    if "float64" not in xp.float_dtypes:
        pytest.skip(f"{xp} has no float64 to difference in")
    monkeypatch.setattr(preconditioners, "FLOOR", 0.0)
    f = problem(xp, rng, **case)
    params = 0.3 * rng.normal(size=f.n_params)
    inverse = matrix_of(xp, Curvature(f, 1e-4).class_blocks(xp.asarray(params)), f.n_params)
    H = hessian(xp, f, params)
    n_coef, n_features = f.coef_shape
    for k in range(n_coef):
        own = list(range(k * n_features, (k + 1) * n_features))
        own += [n_coef * n_features + k] if f.fit_intercept else []
        np.testing.assert_allclose(np.linalg.inv(inverse[np.ix_(own, own)]), H[np.ix_(own, own)], atol=1e-6)
        others = [i for i in range(f.n_params) if i not in own]
        np.testing.assert_array_equal(inverse[np.ix_(own, others)], 0)


def test_products_are_positive_definite_where_features_are_not_independent(rng):
    for X in (
        np.zeros((10, 3)),
        np.ones((10, 3)) * [1, 2, 0],
        np.tile(rng.normal(size=(10, 1)), (1, 4)),
        rng.normal(size=(5, 20)),  # more features than rows
        rng.normal(size=(10, 3)) * [1e-8, 1, 1e8],
    ):
        for strength in (0.0, 1e-3):
            y = np.arange(len(X)) % 3
            f = LinearObjective(backend_of(X), X, y, 3, L2(strength))
            for product in (Curvature(f, 1e-4).bound(), Curvature(f, 1e-4).class_blocks(np.zeros(f.n_params))):
                v = rng.normal(size=f.n_params)
                assert np.isfinite(product(v)).all()
                assert v @ product(v) > 0


def test_float32_rows_give_float64_products(xp, rng):
    for dtype in xp.float_dtypes:
        f = problem(xp, rng, dtype="float32")
        v = xp.asarray(rng.normal(size=f.n_params), dtype)
        for product in (Curvature(f, 1e-4).first(), Curvature(f, 1e-4).class_blocks(v)):
            xp.assert_here(product(v), dtype, (f.n_params,))


def test_sample_of_the_rows_is_near_all_of_them(rng, monkeypatch):
    X = rng.normal(size=(20_000, 5)) @ rng.normal(size=(5, 5)) + 2
    f = LinearObjective(backend_of(X), X, np.arange(20_000) % 4, 4, L2(1e-3))
    params, v = 0.3 * rng.normal(size=f.n_params), rng.normal(size=f.n_params)
    sampled = Curvature(f, 1e-4)
    assert sampled.n_sampled == 4000
    monkeypatch.setattr(preconditioners, "MIN_ROWS", 10**9)
    whole = Curvature(f, 1e-4)
    assert whole.n_sampled == 20_000
    np.testing.assert_allclose(
        sampled.first()(v), whole.first()(v), rtol=0.3, atol=0.1 * np.abs(whole.first()(v)).max()
    )
    a, b = (c.class_blocks(params)(v) for c in (sampled, whole))
    assert v @ a == pytest.approx(v @ b, rel=0.3)


def test_cost_counts_evaluations_and_knows_what_does_not_fit(rng, monkeypatch):
    X = rng.normal(size=(1000, 30))
    f = LinearObjective(backend_of(X), X, np.arange(1000) % 5, 5, L2(1e-3), fit_intercept=False)
    curvature = Curvature(f, 1e-4)
    each = 1000 * 30 * 30 / 2 + 30**3
    assert curvature.cost(5) == 0.0
    monkeypatch.setattr(preconditioners, "FREE", 0.0)
    assert curvature.cost(5) == pytest.approx(5 * each / (2 * 1000 * 30 * 5))
    monkeypatch.setattr(preconditioners, "MAX_BYTES", 8 * 30 * 30)
    assert curvature.cost(1) < math.inf
    assert curvature.cost(2) == math.inf
    monkeypatch.setattr(preconditioners, "CHEAP", 0.0)
    assert curvature.first() is None


def test_changes_come_where_they_pay(rng, monkeypatch):
    """A gradient that falls slowly brings the class blocks, one that falls fast brings nothing."""
    monkeypatch.setattr(preconditioners, "FREE", 0.0)
    f = problem(np_library(), rng)
    for fall, changed in ((0.99, True), (0.1, False)):
        curvature = Curvature(f, 1e-8)
        curvature.first()
        norms = [fall**i for i in range(40)]
        changes = [
            i for i, norm in enumerate(norms, 1) if norm > 1e-8 and curvature.after(i, norm, np.zeros(f.n_params))
        ]
        assert bool(changes) is changed
        if changed:
            assert changes[0] == 1 + preconditioners.LOOK_EVERY


def np_library():
    from conftest import Library

    return Library("numpy")


RAW = {"wine": load_wine, "breast_cancer": load_breast_cancer, "digits": load_digits}


@pytest.mark.parametrize("name", RAW)
def test_data_as_they_come_are_fitted_in_a_few_dozen_steps(name):
    """Without a warning, to a lower objective than scikit-learn's lbfgs finds in as many as it needs."""
    X, y = RAW[name](return_X_y=True)
    ours = sx.SoftmaxClassifier(tol=1e-4, device="cpu").fit(X, y)
    best = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(X, y)
    optimum = LinearObjective(backend_of(X), X, y, len(ours.classes_), L2(1 / len(X)))
    parts = [best.coef_.ravel(), best.intercept_]
    assert ours.objective_ == pytest.approx(float(optimum.value_and_grad(np.concatenate(parts))[0]), rel=1e-3)
    assert ours.n_iter_[0] <= 150


def test_badly_scaled_and_shifted_features_reach_the_optimum(rng):
    """Scales of 10^U(-3, 3) and shifts: the fit to which scikit-learn's lbfgs does not come in 1000 steps."""
    Z = rng.normal(size=(4000, 60))
    y = (Z @ rng.normal(size=(60, 5)) * 0.5 + rng.gumbel(size=(4000, 5))).argmax(axis=1)
    scale = 10 ** rng.uniform(-3, 3, size=60)
    X = (Z + 3 * rng.normal(size=60)) * scale
    ours = sx.SoftmaxClassifier(tol=1e-4, max_iter=200, device="cpu").fit(X, y)
    plain = LinearObjective(backend_of(X), X, y, 5, L2(1 / 4000))
    best = LogisticRegression(solver="newton-cholesky", tol=1e-9, max_iter=200).fit(X, y)
    expected = float(plain.value_and_grad(np.concatenate([best.coef_.ravel(), best.intercept_]))[0])
    assert ours.objective_ <= expected * (1 + 1e-6)
