"""The N x C logits need never exist at once: peaks of NumPy's memory, as tracemalloc sees them."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

import softmax_xp as sx
from softmax_xp.kernels import blocked
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows

N, D, C = 200_000, 16, 200
LOGITS = 4 * N * C  # bytes, in float32


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(0).standard_normal((N, D), dtype=np.float32)
    return X, np.arange(N) % C


@pytest.fixture(scope="module")
def model(data):
    """Fitted to a few rows, and used once, so that what is imported and kept for ever does not count."""
    X, y = (x[:2000] for x in data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = sx.SoftmaxClassifier(device="cpu", max_iter=1, workers=2).fit(X, y)
    model.predict(X)
    return model


def evaluation(X, y, model, product=False):
    f = LinearObjective(DenseRows(X, workers=2), y, C, Penalty(1e-3))
    params = np.concatenate([model.coef_.ravel(), model.intercept_]).astype(np.float64)
    return f.hessian_product(params)(params) if product else f.value_and_grad(params)[1]


def fit(X, y, model, solver, max_iter=2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        again = sx.SoftmaxClassifier(solver=solver, max_iter=max_iter, device="cpu", workers=2).fit(X, y)
    return again.coef_


# What is measured, and the share of the logits that it may take beside its own result.
CASES = {
    "evaluation": (evaluation, 0.08),
    "Hessian product": (lambda X, y, model: evaluation(X, y, model, product=True), 0.08),
    "softmax_loss": (lambda X, y, model: sx.softmax_loss(model.coef_.T, X, y, 0.1)[1], 0.08),
    "predict": (lambda X, y, model: model.predict(X), 0.12),
    "predict_proba": (lambda X, y, model: model.predict_proba(X), 0.15),
    "fit, auto": (lambda X, y, model: fit(X, y, model, "auto"), 0.15),
    "fit, lbfgs": (lambda X, y, model: fit(X, y, model, "lbfgs"), 0.15),
    "fit, newton-cg": (lambda X, y, model: fit(X, y, model, "newton-cg", 1), 0.35),
}


def peak(run, *args):
    """The most bytes that were allocated at once, beside the result."""
    tracemalloc.start()
    try:
        result = run(*args)
        return tracemalloc.get_traced_memory()[1] - result.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", CASES)
def test_memory_does_not_grow_with_rows_times_classes(data, model, name):
    run, share = CASES[name]
    X, y = data
    half = peak(run, X[: N // 2], y[: N // 2], model)
    whole = peak(run, X, y, model)
    assert whole < share * LOGITS
    assert whole - half < 0.1 * LOGITS / 2


def test_superblocks_are_bounded_too(data, model, monkeypatch):
    monkeypatch.setattr(blocked, "LANE_BYTES", 0)
    for product in (False, True):  # nine superblocks of at least 16 MiB, with X scaled by rows beside one
        assert peak(evaluation, *data, model, product) < 0.15 * LOGITS


def test_tracemalloc_sees_what_would_be_too_much(data, model):
    X, _ = data
    assert peak(lambda: np.argmax(X @ model.coef_.T, axis=1)) > LOGITS
