"""That `tol`, `estimated_gap_` and `converged_` of a fit mean what they say, whatever the data and their units."""

from __future__ import annotations

import math
import re
import warnings
from functools import cache

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import softmax_xp as sx
from softmax_xp.kernels import blocked, kernels_for

SOLVERS = ["auto", "newton-cg"]
LOADERS = {"iris": load_iris, "wine": load_wine, "digits": load_digits, "breast-cancer": load_breast_cancer}
DATA = [*LOADERS, *(f"{name}, standardised" for name in LOADERS), "synthetic"]


@cache
def load(name):
    """X in float64 and y."""
    if name == "synthetic":
        rng = np.random.default_rng(0)
        X = rng.normal(size=(500, 30))
        return X, (X @ rng.normal(size=(30, 6)) + rng.gumbel(size=(500, 6))).argmax(axis=1)
    X, y = LOADERS[name.partition(",")[0]](return_X_y=True)
    return (StandardScaler().fit_transform(X) if "," in name else X), y


def objective(model, X, y):
    """By definition, in float64, at the coefficients of a fitted model."""
    coef = np.asarray(model.coef_, dtype=np.float64)
    logits = np.asarray(X, dtype=np.float64) @ coef.T + np.asarray(model.intercept_, dtype=np.float64)
    if len(coef) == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(X)), np.searchsorted(model.classes_, y)]
    return loss.mean() + 0.5 / (model.C * len(X)) * (coef**2).sum()


@cache
def minimum(name, dtype="float64"):
    X, y = load(name)
    X = X.astype(dtype).astype("float64")
    return objective(sx.SoftmaxClassifier(solver="newton-cg", tol=1e-14, device="cpu").fit(X, y), X, y)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", DATA)
def test_fits_end_within_tol_of_the_minimum_and_know_how_far_they_are(name, solver, tol):
    X, y = load(name)
    ours = sx.SoftmaxClassifier(solver=solver, tol=tol, device="cpu").fit(X, y)
    value = objective(ours, X, y)
    assert ours.objective_ == pytest.approx(value, rel=1e-12)
    true_gap = value - minimum(name)
    assert true_gap <= tol * value
    assert ours.estimated_gap_ <= tol * value
    assert true_gap <= 10 * ours.estimated_gap_ + 1e-13 * value  # the latter is rounding


@pytest.mark.parametrize("tol", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("solver", [*SOLVERS, "lbfgs"])
@pytest.mark.parametrize("name", [f"{name}, standardised" for name in LOADERS])
def test_coefficients_are_as_near_the_optimum_as_those_of_newton_cg_in_scikit_learn(name, solver, tol):
    X, y = load(name)
    exact = sx.SoftmaxClassifier(solver="newton-cg", tol=1e-15, device="cpu").fit(X, y).coef_
    theirs = LogisticRegression(solver="newton-cg", tol=tol, max_iter=1000).fit(X, y)
    ours = sx.SoftmaxClassifier(solver=solver, tol=tol, device="cpu").fit(X, y)
    assert abs(ours.coef_ - exact).max() <= 10 * abs(theirs.coef_ - exact).max()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", [5, 27, 41, 42, 57])
def test_the_gap_of_nearly_separated_rows_is_seen(solver, seed):
    """Where few rows still count, directions of little gradient and less curvature hold most of the gap."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(2500, 30))
    y = (0.5 * X @ rng.normal(size=(30, 5)) + 0.1 * rng.gumbel(size=(2500, 5))).argmax(axis=1)
    weight = rng.exponential(size=2500)
    best = sx.SoftmaxClassifier(C=3e3, fit_intercept=False, tol=1e-14).fit(X, y, weight).objective_
    model = sx.SoftmaxClassifier(C=3e3, fit_intercept=False, solver=solver).fit(X, y, weight)
    gap = model.objective_ - best
    assert gap <= 10 * model.estimated_gap_ + 1e-13 * best
    assert model.estimated_gap_ <= 1e-4 * best


@pytest.mark.parametrize("xp", ["numpy", "torch", "cupy"], indirect=True)
@pytest.mark.parametrize("name", LOADERS)
def test_every_library_and_precision_finds_the_same_optimum(xp, name):
    X, y = load(name)
    exact = sx.SoftmaxClassifier(tol=1e-10, device="cpu").fit(X, y)
    two = np.sort(exact.predict_proba(X), axis=1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 1e-2
    for dtype in ("float32", "float64"):
        own = xp.asarray(X, dtype)
        for precision in kernels_for(xp.namespace, own.dtype).PRECISIONS if dtype == "float32" else ("float32",):
            model = sx.SoftmaxClassifier(tol=1e-6, precision=precision).fit(own, y)
            assert model.objective_ == pytest.approx(exact.objective_, rel=1e-6)
            np.testing.assert_array_equal(xp.to_numpy(model.predict(own))[clear], exact.predict(X)[clear])


def stopped(name, max_iter):
    """A fit that max_iter has ended, and the message of its warning."""
    with pytest.warns(ConvergenceWarning) as caught:
        model = sx.SoftmaxClassifier(max_iter=max_iter, tol=1e-6, device="cpu").fit(*load(name))
    (message,) = (str(warning.message) for warning in caught)
    assert not model.converged_
    assert f"max_iter={max_iter} steps taken" in message
    assert f"gradient's norm {model.gradient_norm_:.1e}" in message
    return model, message


@pytest.mark.parametrize("name", ["wine", "digits", "synthetic"])
def test_max_iter_far_from_the_optimum_ends_with_a_warning_that_the_gap_is_unknown(name):
    """A Newton step changes logits by much there, and tells nothing."""
    model, message = stopped(name, 3)
    assert math.isinf(model.estimated_gap_)
    assert "how far above its minimum is unknown" in message


@pytest.mark.parametrize(("name", "max_iter"), [("wine", 12), ("digits", 24), ("synthetic", 15)])
def test_max_iter_near_the_optimum_ends_with_a_warning_that_tells_the_gap(name, max_iter):
    model, message = stopped(name, max_iter)
    told = re.search(r"the objective is (\S+), an estimated (\S+) \((\S+)% of it\) above its minimum", message)
    value, gap, share = map(float, told.groups())
    true_gap = objective(model, *load(name)) - minimum(name)
    assert value == pytest.approx(model.objective_, rel=1e-5)
    assert gap == pytest.approx(model.estimated_gap_, rel=0.06)
    assert share == pytest.approx(100 * gap / value, abs=0.06, rel=0.06)
    assert 0.1 <= gap / true_gap <= 10


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["iris", "wine", "digits", "synthetic"])
def test_units_of_the_features_do_not_change_the_number_of_steps(name, solver):
    """X times s, with C divided by its square, is the same problem in other units."""
    X, y = load(name)
    model = sx.SoftmaxClassifier(solver=solver, tol=1e-6, device="cpu").fit(X, y)
    for s in (1e-3, 1e3):
        scaled = clone(model).set_params(C=s**-2).fit(s * X, y)
        assert abs(int(scaled.n_iter_[0]) - int(model.n_iter_[0])) <= 0.2 * model.n_iter_[0]
        assert scaled.objective_ == pytest.approx(model.objective_, rel=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", [name for name in DATA if name not in ("digits", "breast-cancer")])
def test_float32_data_come_to_the_minimum_in_float64_or_say_that_they_do_not(name, solver):
    X, y = load(name)
    X = X.astype("float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = sx.SoftmaxClassifier(solver=solver, tol=1e-7, device="cpu").fit(X, y)
    assert ours.coef_.dtype == np.float32
    best = minimum(name, "float32")
    if ours.converged_:
        assert not caught
        assert objective(ours, X, y) <= best * (1 + 1e-6)
    else:
        assert [warning.category for warning in caught] == [ConvergenceWarning]
        assert ours.estimated_gap_ >= 0.1 * (objective(ours, X, y) - best)


def test_float32_data_mostly_come_to_the_minimum():
    """So that the test before does not pass by excuses."""
    converged = []
    for name in DATA:
        X, y = load(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            converged.append(sx.SoftmaxClassifier(tol=1e-7, device="cpu").fit(X.astype("float32"), y).converged_)
    assert sum(converged) >= len(DATA) - 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_from_shifted_coefficients_is_that_from_the_solution(solver):
    """A shift of all classes changes no probability, and the penalty has only one minimum along it."""
    X, y = load("wine, standardised")
    ours = sx.SoftmaxClassifier(solver=solver, tol=1e-6, warm_start=True, device="cpu").fit(X, y)
    best, n_iter = ours.objective_, ours.n_iter_[0]
    ours.coef_ = ours.coef_ + 100 * np.random.default_rng(0).normal(size=X.shape[1])
    ours.intercept_ = ours.intercept_ + 1000.0
    ours.fit(X, y)
    assert ours.n_iter_[0] <= 2 < n_iter
    assert ours.objective_ <= best * (1 + 1e-6)
    assert abs(ours.coef_.sum(axis=0)).max() < 1e-9
    assert abs(ours.intercept_.sum()) < 1e-9


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("max_memory", [None, 100])
@pytest.mark.parametrize("solver", [*SOLVERS, "lbfgs"])
@pytest.mark.parametrize("two", [False, True])
def test_a_start_far_from_the_solution_is_not_taken_for_it(two, solver, max_memory):
    """Coefficients in other units: every row is sure, most are wrong, and the Hessian has rounded to the penalty's."""
    X, y = load("iris")
    y = (y > 1).astype(int) if two else y
    model = sx.SoftmaxClassifier(solver=solver, max_memory=max_memory, tol=1e-3, device="cpu").fit(X, y)
    best = objective(model, X, y)
    model.set_params(warm_start=True)
    model.coef_ = -1e6 * model.coef_
    model.fit(X, y)
    missing = objective(model, X, y) - best
    if model.converged_:
        assert missing <= 1e-3 * best
    else:
        assert model.estimated_gap_ >= 0.1 * missing


@pytest.mark.parametrize("solver", [*SOLVERS, "lbfgs"])
@pytest.mark.parametrize("schedule", ["lanes", "superblocks"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fits_do_not_depend_on_the_number_of_workers(monkeypatch, solver, schedule, dtype):
    """Not by a single bit."""
    monkeypatch.setattr(blocked, "BLOCK_WORK", 1)
    monkeypatch.setattr(blocked, "TILE_ROWS", 20)
    monkeypatch.setattr(blocked, "TASK_BYTES", 1000)
    monkeypatch.setattr(blocked, "LANE_BYTES", 0 if schedule == "superblocks" else blocked.LANE_BYTES)
    X, y = load("digits, standardised")
    X, y = X[:400].astype(dtype), y[:400]
    fits = [
        sx.SoftmaxClassifier(solver=solver, tol=1e-5, workers=workers, device="cpu").fit(X, y)
        for workers in (1, 2, 3, 3, 3)
    ]
    for other in fits[1:]:
        np.testing.assert_array_equal(other.coef_, fits[0].coef_)
        np.testing.assert_array_equal(other.intercept_, fits[0].intercept_)
        assert (other.objective_, other.n_iter_[0]) == (fits[0].objective_, fits[0].n_iter_[0])


RAW = {
    "large": lambda Z: 1e4 * Z,
    "small": lambda Z: 1e-10 * Z,
    "far from zero": lambda Z: Z + 1000,
    "of many sizes": lambda Z: Z * np.logspace(-2, 2, Z.shape[1]),
}


@cache
def raw(name, shape):
    """X, y, C and the least objective."""
    rng = np.random.default_rng(20260)
    Z = rng.normal(size=shape)
    y = (2 * Z @ rng.normal(size=(shape[1], 3)) / shape[1] ** 0.5 + rng.gumbel(size=(len(Z), 3))).argmax(axis=1)
    X, C = RAW[name](Z), {"large": 1e-8, "small": 1e20}.get(name, 1.0)
    best = sx.SoftmaxClassifier(C=C, solver="newton-cg", tol=1e-10, max_iter=300, device="cpu").fit(X, y)
    return X, y, C, best.objective_


@pytest.mark.parametrize(
    ("shape", "solver"),
    [*(((2000, 20), solver) for solver in (*SOLVERS, "lbfgs")), *(((200, 500), solver) for solver in SOLVERS)],
)
@pytest.mark.parametrize("name", RAW)
def test_raw_features_are_fitted_to_tol_or_said_not_to_be(name, shape, solver):
    """Also by plain L-BFGS, which knows nothing of the curvature, and where there are more features than rows."""
    X, y, C, best = raw(name, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours = sx.SoftmaxClassifier(C=C, solver=solver, device="cpu").fit(X, y)
    assert not ours.converged_ or ours.objective_ - best <= 1e-4 * ours.objective_
    assert ours.converged_ or solver == "lbfgs"


@pytest.mark.parametrize("power", [-22, -10, 10, 18])
@pytest.mark.parametrize("solver", SOLVERS)
def test_units_whose_squares_float32_cannot_hold_change_nothing(rng, power, solver):
    X = rng.normal(size=(3000, 30)).astype(np.float32)
    y = (X @ rng.normal(size=(30, 3)) / 3 + rng.gumbel(size=(3000, 3))).argmax(axis=1)
    models = [sx.SoftmaxClassifier(C=np.inf, solver=solver, device="cpu") for _ in range(2)]
    fits = [model.fit(X * np.float32(unit), y) for model, unit in zip(models, (1.0, 10.0**power), strict=True)]
    assert fits[1].objective_ == pytest.approx(fits[0].objective_, rel=1e-4)


@pytest.mark.parametrize("call", [1, 30, 300])
def test_ctrl_c_in_a_task_leaves_a_usable_model(monkeypatch, call):
    """Whichever thread it comes to light in."""
    X, y = load("digits, standardised")
    row_pass, calls = blocked._row_pass, []

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return row_pass(*args, **kwargs)

    monkeypatch.setattr(blocked, "BLOCK_WORK", 1)
    monkeypatch.setattr(blocked, "_row_pass", interrupted)
    model = sx.SoftmaxClassifier(workers=3, tol=1e-8, device="cpu")
    if call == 1:  # there is no point yet, with an objective, to stop at
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, y)
        return
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        model.fit(X, y)
    assert not model.converged_
    assert model.objective_ == pytest.approx(objective(model, X, y))
    assert model.score(X, y) >= (0.8 if model.n_iter_[0] else 0.05)


@pytest.mark.parametrize("solver", [*SOLVERS, "lbfgs"])
def test_every_library_converges_with_every_solver(xp, solver):
    X, y = load("wine, standardised")
    for dtype in xp.float_dtypes:
        tol = 1e-6 if dtype == "float64" else 1e-4
        ours = sx.SoftmaxClassifier(solver=solver, tol=tol).fit(xp.asarray(X, dtype), xp.asarray(y))
        assert ours.converged_
        assert ours.objective_ <= minimum("wine, standardised") * (1 + tol + (1e-5 if dtype == "float32" else 0))
