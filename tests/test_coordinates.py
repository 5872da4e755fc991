"""The coordinates of a fit: the same objective, in numbers that the dtype holds."""

from __future__ import annotations

import newton
import numpy as np
import pytest

import softmax_xp as sx
from softmax_xp.coordinates import coordinates, far_from_zero


def shifted(rng, dtype, shift=1e6, n=400):
    Z = rng.normal(size=(n, 4))
    y = (Z @ rng.normal(size=(4, 3)) + rng.gumbel(size=(n, 3))).argmax(axis=1)
    return (Z + shift * np.array([1.0, 0.0, -1.0, 0.001])).astype(dtype), y


def test_features_are_far_from_zero_for_what_most_rows_vary_by(rng):
    near, far = rng.normal(size=(1000, 1)), 1e5 + rng.normal(size=(1000, 1))
    outliers = far.copy()
    outliers[::50] = 1e12
    ones, mostly_one = np.ones((1000, 1)), (rng.random((1000, 1)) < 0.9).astype(float)
    sample = np.hstack([near, far, outliers, ones, mostly_one, 1e-300 * far, np.zeros((1000, 1))])
    np.testing.assert_array_equal(far_from_zero(sample), [False, True, True, False, False, True, False])


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("rank", [4, 12])
def test_coefficients_in_either_coordinates_make_the_same_logits(rng, fit_intercept, shift, rank):
    X = rng.normal(size=(60, rank)) @ rng.normal(size=(rank, 12)) + shift
    where = coordinates(X, 1e-3, fit_intercept)
    assert (where.centre is not None) == (shift != 0.0)
    Z = where.applied(X, "float64")
    if rank == 4 and (fit_intercept or not shift):
        assert 4 <= Z.shape[1] <= 5  # the centre need not lie in the span
    else:
        assert Z.shape[1] == 12
    coef, intercept = rng.normal(size=(3, Z.shape[1])), rng.normal(size=3) if fit_intercept else np.zeros(3)
    W, b = where.features(coef, intercept)
    np.testing.assert_allclose(X @ W.T + b, Z @ coef.T + intercept, rtol=1e-8, atol=1e-7)
    assert (W**2).sum() == pytest.approx((coef**2).sum())
    assert fit_intercept or not b.any()
    for back, expected in zip(where.inverse(W, b), (coef, intercept), strict=True):
        np.testing.assert_allclose(back, expected, rtol=1e-8, atol=1e-7)


def test_a_direction_that_only_rows_outside_of_the_sample_have_is_kept(rng):
    X = rng.normal(size=(5000, 3)) @ rng.normal(size=(3, 10))
    assert coordinates(X, 1e-3, True).basis is not None
    X[4999] += rng.normal(size=10)
    assert coordinates(X, 1e-3, True).basis is None


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "lbfgs"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_float32_features_far_from_zero_come_to_the_minimum(rng, solver, fit_intercept):
    X, y = shifted(rng, "float32")
    best = newton.minimum(X, y, 1.0, fit_intercept)[0]
    model = sx.SoftmaxClassifier(solver=solver, fit_intercept=fit_intercept, device="cpu").fit(X, y)
    value, _ = newton.value_and_size(X, y, model.coef_, model.intercept_, 1.0)
    assert model.converged_
    assert value <= best * (1 + 1e-4)
    assert model.objective_ == pytest.approx(float(value), rel=1e-6)
    assert model.coef_.dtype == np.float64  # float32 does not hold the intercept
    assert model.predict_proba(X).dtype == np.float32
    logits = newton.logits_of(X, model.coef_, model.intercept_)
    np.testing.assert_allclose(model.decision_function(X), logits.astype(float), rtol=1e-5, atol=1e-5)


def test_float64_features_are_centred_before_they_become_float32(rng):
    """Differences of 1 are lost in float32 at 1e9."""
    X, y = shifted(rng, "float64", shift=1e9)
    model = sx.SoftmaxClassifier(dtype="float32", device="cpu").fit(X, y)
    exact = sx.SoftmaxClassifier(device="cpu").fit(X, y)
    assert model.objective_ == pytest.approx(exact.objective_, rel=1e-5)
    assert model.score(X, y) == exact.score(X, y)


def test_features_of_low_rank_take_few_steps_and_a_warm_start_none(rng):
    """All monomials up to the fourth degree of unit vectors: 34 columns of rank 24."""
    u = rng.normal(size=(800, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    powers = [(i, j, k) for i in range(5) for j in range(5) for k in range(5) if 1 <= i + j + k <= 4]
    X = np.stack([np.prod(u**p, axis=1) for p in powers], axis=1)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    y = (u @ rng.normal(size=(3, 12)) * 8 + rng.gumbel(size=(800, 12))).argmax(axis=1)
    model = sx.SoftmaxClassifier(C=100, warm_start=True, device="cpu").fit(X, y)
    assert model.converged_
    assert model.n_iter_[0] <= 100
    y = model.classes_.searchsorted(y)
    assert model.objective_ <= float(newton.minimum(X, y, 100.0)[0]) * (1 + 1e-4)
    again = model.objective_
    assert model.fit(X, y).n_iter_[0] <= 2
    assert model.objective_ == pytest.approx(again, rel=1e-4)


UNITS = [
    *(("float64", unit) for unit in (1e-306, 1e-165, 1e-155, 1e155, 1e200, 1e306)),
    *(("float32", unit) for unit in (1e-38, 1e-25, 1e25, 1e37)),
]


def of_three_classes(rng, dtype):
    X = rng.normal(size=(300, 4)).astype(dtype)
    return X, (X @ rng.normal(size=(4, 3)) + rng.gumbel(size=(300, 3))).argmax(axis=1)


@pytest.mark.parametrize("columns", [[1], slice(None)], ids=["one feature", "all features"])
@pytest.mark.parametrize("solver", ["auto", "newton-cg", "lbfgs"])
@pytest.mark.parametrize(("dtype", "unit"), UNITS)
def test_without_a_penalty_units_whose_squares_the_dtype_cannot_hold_change_nothing(rng, dtype, unit, solver, columns):
    X, y = of_three_classes(rng, dtype)
    expected = sx.SoftmaxClassifier(C=np.inf, tol=1e-10, device="cpu").fit(X.astype("float64"), y)
    probabilities = expected.predict_proba(X)
    X[:, columns] *= X.dtype.type(unit)
    model = sx.SoftmaxClassifier(C=np.inf, solver=solver, warm_start=True, device="cpu").fit(X, y)
    assert model.converged_
    assert model.objective_ == pytest.approx(expected.objective_, rel=1e-4)
    np.testing.assert_allclose(model.predict_proba(X), probabilities, atol=0.03)
    assert model.fit(X, y).n_iter_[0] <= 2


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "lbfgs"])
@pytest.mark.parametrize("unit", [1e155, 1e306])
def test_with_a_penalty_features_whose_squares_float64_cannot_hold_are_refused_by_name(rng, unit, solver):
    X, y = of_three_classes(rng, "float64")
    X[7, 2] = unit
    with pytest.raises(ValueError, match=r"`X` must hold numbers whose squares float64 can sum.* column 2 "):
        sx.SoftmaxClassifier(solver=solver, device="cpu").fit(X, y)
