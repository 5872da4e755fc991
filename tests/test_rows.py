"""Rows: their views are those of a copy, and share its memory."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from softmax_xp.backend import backend_of
from softmax_xp.kernels.row_pass import RowPass
from softmax_xp.losses import GeneralizedCrossEntropy
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows

N, D, C = 60, 4, 3


def data(rng):
    X = rng.normal(size=(N, D)) * [1.0, 3.0, 0.2, 1.0] + [2.0, 0.0, 1.0, -1.0]
    return X, rng.integers(0, C, N), rng.uniform(0.5, 2.0, N)


def passes(xp, rows, maps, targets, row_pass):
    """What every pass over rows returns, as NumPy arrays."""
    coef, along, intercept, shift = maps

    def kept(sums):  # the next pass may use their memory again
        return [None if x is None else xp.to_numpy(x).copy() for x in sums]

    results = []
    for b, db in ((intercept, shift), (None, None)):
        results += kept(rows.linear_sums(coef, b, targets, row_pass))
        results += kept(rows.linear_sums(coef, b, targets, row_pass, xp.asarray([3, 5, 8, 8])))
        results += kept(rows.hessian_product(coef, b, targets, along, db, row_pass))
    return results


def assert_same_passes(xp, actual, expected, dtype, rng, y, row_pass=None):
    maps = [xp.asarray(x, dtype) for x in (*rng.normal(size=(2, C, D)), *rng.normal(size=(2, C)))]
    row_pass = row_pass or RowPass(smoothing=0.1)
    results = (passes(xp, rows, maps, xp.asarray(y), row_pass) for rows in (actual, expected))
    for one, other in zip(*results, strict=True):
        if one is None or other is None:
            assert one is other is None
        else:
            tolerance = (2e-5 if dtype == "float32" else 1e-11) * max(1.0, abs(other).max())
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("weighted", [False, True])
def test_standardised_rows_are_those_of_a_copy(xp, rng, weighted):
    X, y, weight = data(rng)
    for dtype in xp.float_dtypes:
        given, own = xp.asarray(X, dtype), xp.asarray(weight, dtype) if weighted else None
        mean, scale = X.mean(axis=0), X.std(axis=0)
        view = DenseRows(given, own).standardised(xp.asarray(mean, dtype), xp.asarray(scale, dtype))
        copied = DenseRows(xp.asarray((X - mean) / scale, dtype), own)
        assert (view.n_rows, view.n_features, view.total_weight) == (N, D, copied.total_weight)
        assert_same_passes(xp, view, copied, dtype, rng, y)
        assert_same_passes(xp, view, copied, dtype, rng, y, RowPass(GeneralizedCrossEntropy()))
        assert_same_passes(xp, view.sample(20), copied.sample(20), dtype, rng, y[::3])
        assert_same_passes(xp, view.reweighted(None), copied.reweighted(None), dtype, rng, y)
        for one, other in (
            (view.part(slice(3, 9)), copied.part(slice(3, 9))),
            (view.take(xp.asarray([1, 4])), copied.take(xp.asarray([1, 4]))),
            (view.feature_scale(), copied.feature_scale()),
        ):
            tolerance = 1e-5 if dtype == "float32" else 1e-12
            np.testing.assert_allclose(xp.to_numpy(one), xp.to_numpy(other), rtol=0, atol=tolerance)
        twice = view.standardised(xp.asarray([1.0, 0, 0, 0], dtype), xp.asarray([2.0, 1, 1, 1], dtype))
        by_hand = ((X - mean) / scale - [1.0, 0, 0, 0]) / [2.0, 1, 1, 1]
        assert_same_passes(xp, twice, DenseRows(xp.asarray(by_hand, dtype), own), dtype, rng, y)


def test_an_objective_of_standardised_rows_is_that_of_a_copy(rng):
    X, y, _ = data(rng)
    mean, scale = X.mean(axis=0), X.std(axis=0)
    rows = DenseRows(X).standardised(mean, scale), DenseRows((X - mean) / scale)
    params = rng.normal(size=C * (D + 1))
    (value, grad), (expected, expected_grad) = (
        LinearObjective(each, y, C, Penalty(0.1)).value_and_grad(params) for each in rows
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-13)
    np.testing.assert_allclose(grad, expected_grad, rtol=0, atol=1e-13)


def test_reweighted_rows_are_those_of_the_weights(xp, rng):
    X, y, weight = data(rng)
    for dtype in xp.float_dtypes:
        given, own = xp.asarray(X, dtype), xp.asarray(weight, dtype)
        rows = DenseRows(given)
        assert_same_passes(xp, rows.reweighted(own), DenseRows(given, own), dtype, rng, y)
        assert rows.sample_weight is None
        assert rows.total_weight == N
        assert rows.reweighted(own).total_weight == pytest.approx(weight.sum(), rel=1e-6)


def test_views_share_the_memory_of_their_rows(rng):
    X, _, weight = data(rng)
    rows = DenseRows(X)
    for view in (rows, rows.reweighted(weight), rows.sample(20)):
        assert np.shares_memory(view.part(slice(None)), X)
    assert np.shares_memory(rows.standardised(np.zeros(D), np.ones(D)).rows.part(slice(None)), X)


def test_a_sample_is_evenly_spaced(xp, rng):
    X, _, weight = data(rng)
    for dtype in xp.float_dtypes:
        sample = DenseRows(xp.asarray(X, dtype), xp.asarray(weight, dtype)).sample(20)
        np.testing.assert_array_equal(xp.to_numpy(sample.part(slice(None))), xp.to_numpy(xp.asarray(X[::3], dtype)))
        np.testing.assert_array_equal(xp.to_numpy(sample.sample_weight), xp.to_numpy(xp.asarray(weight[::3], dtype)))
        assert sample.sample(1000).n_rows == 20


def test_batches_are_every_row_once_an_epoch(xp, rng):
    X, _, _ = data(rng)
    batches = DenseRows(xp.asarray(X, xp.float_dtypes[-1])).batches(25, np.random.default_rng(0))
    epoch = [xp.to_numpy(next(batches)) for _ in range(3)]
    assert [len(batch) for batch in epoch] == [25, 25, 10]
    assert sorted(np.concatenate(epoch)) == list(range(N))


def test_usual_sizes_are_medians_that_outliers_do_not_change(rng):
    X = rng.normal(size=(4000, 3))
    X[:, 2] = 0.0
    X[17, 2], X[5, 0] = 8.0, 1e9
    usual = DenseRows(X).usual_size()
    np.testing.assert_allclose(usual[:2], 0.6745, rtol=0.2)
    assert usual[2] == pytest.approx(8.0 / np.sqrt(4000))


def test_rows_and_row_passes_can_be_pickled(rng):
    X, y, weight = data(rng)
    rows = pickle.loads(pickle.dumps(DenseRows(X, weight, workers=2)))
    row_pass = pickle.loads(pickle.dumps(RowPass(GeneralizedCrossEntropy(0.5), 0.1)))
    assert row_pass == RowPass(GeneralizedCrossEntropy(0.5), 0.1)
    assert rows.workspace.workers == 2
    assert rows.backend == backend_of(X)
    coef = rng.normal(size=(C, D))
    sums = (each.linear_sums(coef, None, y, row_pass) for each in (rows, DenseRows(X, weight)))
    for one, other in zip(*sums, strict=True):
        np.testing.assert_array_equal(one, other)
