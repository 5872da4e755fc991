"""SoftmaxClassifier: scikit-learn's contract and optimum, on every library, and its refusals."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import warnings

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from tolerances import TOLERANCE

import softmax_xp as sx
from softmax_xp.solvers import Status, stochastic

DATA = {"iris": load_iris, "digits": load_digits, "wine": load_wine}


@pytest.fixture(scope="module")
def standardised():
    """Name -> (X standardised, y)."""
    return {name: (StandardScaler().fit_transform(X), y) for name, (X, y) in loaded().items()}


def loaded():
    return {name: load(return_X_y=True) for name, load in DATA.items()}


@parametrize_with_checks([sx.SoftmaxClassifier()])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimator_keeps_scikit_learns_contract(estimator, check):
    check(estimator)


WITH_DISPATCH = """
import warnings
from sklearn.utils.estimator_checks import check_estimator
import softmax_xp
warnings.simplefilter("ignore")
results = check_estimator(softmax_xp.SoftmaxClassifier(), on_skip=None)
print(sum(r["status"] == "passed" for r in results), {r["status"] for r in results})

from sklearn import config_context
from sklearn.datasets import load_iris
import array_api_strict, numpy
X, y = load_iris(return_X_y=True)
device = array_api_strict.Device("device1")
X_there, y_there = array_api_strict.asarray(X, device=device), array_api_strict.asarray(y, device=device)
alone = softmax_xp.SoftmaxClassifier(device="cpu").fit(X, y)
with config_context(array_api_dispatch=True):
    for X_given, y_given in ((X, y), (X_there, y_there), (X_there, y)):
        model = softmax_xp.SoftmaxClassifier().fit(X_given, y_given)
        p = model.predict_proba(X_given)
        assert type(p) is type(X_given) and model.score(X_given, y_given) == alone.score(X, y)
        assert numpy.allclose(numpy.from_dlpack(p), alone.predict_proba(X), atol=1e-3)
"""


def test_contract_holds_with_array_api_dispatch(python):
    """One check needs an environment variable that has to be set before SciPy is imported."""
    pytest.importorskip("array_api_strict")
    command, environment = python
    done = subprocess.run(
        [*command, "-c", WITH_DISPATCH],
        env={**environment, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    count, statuses = done.stdout.split(maxsplit=1)
    assert int(count) > 50
    assert statuses.strip() == "{'passed'}"


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_coefficients_are_newton_choleskys(standardised, name, C):
    X, y = standardised[name]
    expected = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(X, y)
    ours = sx.SoftmaxClassifier(C=C, tol=1e-8, device="cpu").fit(X, y)
    assert ours.converged_
    error = np.abs(ours.coef_ - expected.coef_).max() / np.abs(expected.coef_).max()
    assert error <= 1e-4
    np.testing.assert_allclose(ours.predict_proba(X), expected.predict_proba(X), atol=1e-4)
    np.testing.assert_array_equal(ours.predict(X), expected.predict(X))


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 1.0, 1: 3.0}])
def test_two_classes_share_one_row_as_in_scikit_learn(standardised, fit_intercept, class_weight):
    X, y = standardised["wine"]
    y = (y > 0).astype(int)
    weight = np.random.default_rng(0).uniform(0.1, 3, size=len(y))
    options = {"C": 0.5, "fit_intercept": fit_intercept, "class_weight": class_weight}
    expected = LogisticRegression(solver="newton-cholesky", tol=1e-12, **options).fit(X, y, weight)
    ours = sx.SoftmaxClassifier(tol=1e-12, device="cpu", **options).fit(X, y, weight)
    assert ours.coef_.shape == (1, X.shape[1])
    assert ours.intercept_.shape == (1,)
    np.testing.assert_allclose(ours.coef_, expected.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, expected.intercept_, atol=1e-6)
    np.testing.assert_allclose(ours.decision_function(X), expected.decision_function(X), atol=1e-5)
    np.testing.assert_allclose(ours.predict_log_proba(X), expected.predict_log_proba(X), atol=1e-5)


@pytest.mark.parametrize("class_weight", [None, "balanced", {"setosa": 2.0, "versicolor": 0.5, "virginica": 1.0}])
def test_weights_and_string_labels_are_scikit_learns(standardised, class_weight):
    X, y = standardised["iris"]
    y = load_iris().target_names[y]
    weight = np.random.default_rng(0).integers(0, 4, size=len(y)).astype(float)
    expected = LogisticRegression(solver="newton-cholesky", tol=1e-12, class_weight=class_weight).fit(X, y, weight)
    ours = sx.SoftmaxClassifier(tol=1e-12, class_weight=class_weight, device="cpu").fit(X, y, weight)
    np.testing.assert_allclose(ours.coef_, expected.coef_, atol=1e-6)
    np.testing.assert_array_equal(ours.classes_, expected.classes_)
    np.testing.assert_array_equal(ours.predict(X), expected.predict(X))
    assert ours.score(X, y, weight) == pytest.approx(expected.score(X, y, weight))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_intercepts_sum_to_zero_whatever_the_solver(standardised):
    """A shift of all of them changes nothing; scikit-learn's choice is this one."""
    X, y = standardised["iris"]
    for solver in ("lbfgs", "adam"):
        ours = sx.SoftmaxClassifier(solver=solver, max_iter=50, random_state=1, device="cpu").fit(X, y)
        assert np.abs(ours.intercept_).max() > 0.1
        assert abs(ours.intercept_.sum()) < 1e-12


def test_no_penalty_is_c_infinity(standardised):
    X, y = standardised["iris"]
    keep = y > 0
    X, y = X[keep], y[keep]  # not separable: there is an optimum
    ours = sx.SoftmaxClassifier(C=np.inf, tol=1e-8, max_iter=10_000, device="cpu").fit(X, y)
    expected = LogisticRegression(C=1e12, solver="newton-cholesky", tol=1e-12).fit(X, y)
    np.testing.assert_allclose(ours.coef_, expected.coef_, rtol=1e-3)


def test_objective_is_the_mean_loss_plus_the_scaled_penalty(standardised):
    X, y = standardised["wine"]
    ours = sx.SoftmaxClassifier(C=0.3, device="cpu").fit(X, y)
    expected = log_loss(y, ours.predict_proba(X)) + 0.5 / (0.3 * len(X)) * (ours.coef_**2).sum()
    assert ours.objective_ == pytest.approx(expected, rel=1e-9)
    assert 0.0 < ours.estimated_gap_ <= ours.tol * ours.objective_


@pytest.mark.parametrize("name", DATA)
def test_every_library_reaches_the_same_optimum(xp, standardised, name):
    X, y = standardised[name]
    best = sx.SoftmaxClassifier(tol=1e-9, device="cpu").fit(X, y)
    for dtype in xp.float_dtypes:
        X_given, y_given = xp.asarray(X, dtype), xp.asarray(y)
        # float32 gradients are only known to about 1e-6.
        ours = sx.SoftmaxClassifier(tol=1e-9 if dtype == "float64" else 1e-5).fit(X_given, y_given)
        assert ours.objective_ == pytest.approx(best.objective_, rel=TOLERANCE["optimum"][dtype][0])
        xp.assert_here(ours.coef_, dtype, best.coef_.shape)
        xp.assert_here(ours.intercept_, dtype, best.intercept_.shape)
        xp.assert_close(ours.predict_proba(X_given), best.predict_proba(X), dtype, "probability")
        log_proba = ours.predict_log_proba(X_given)
        xp.assert_here(log_proba, dtype, (len(X), len(best.classes_)))
        np.testing.assert_allclose(np.exp(xp.to_numpy(log_proba)), xp.to_numpy(ours.predict_proba(X_given)), atol=1e-6)
        xp.assert_here(ours.decision_function(X_given), dtype, (len(X), len(best.classes_)))
        labels = ours.predict(X_given)
        xp.assert_here(labels, "int64", (len(X),))
        margin = np.diff(np.sort(best.decision_function(X), axis=1)[:, -2:], axis=1)[:, 0]
        np.testing.assert_array_equal(xp.to_numpy(labels)[margin > 0.05], best.predict(X)[margin > 0.05])
        assert ours.score(X_given, y_given) == pytest.approx(best.score(X, y), abs=0.01)


def test_predictions_come_back_where_their_input_is(xp, standardised):
    """Whatever the library that the model was fitted on."""
    X, y = standardised["iris"]
    here = sx.SoftmaxClassifier(device="cpu").fit(X, y)
    there = sx.SoftmaxClassifier().fit(xp.asarray(X), xp.asarray(y))
    for dtype in xp.float_dtypes:
        xp.assert_here(here.predict_proba(xp.asarray(X, dtype)), dtype, (150, 3))
        xp.assert_here(here.predict(xp.asarray(X, dtype)), "int64", (150,))
    back = there.predict_proba(X)
    assert isinstance(back, np.ndarray)
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, here.predict_proba(X), atol=1e-3)
    assert isinstance(there.predict(X), np.ndarray)


def test_labels_of_another_kind_keep_it(xp, standardised):
    X, y = standardised["iris"]
    X_given = xp.asarray(X)
    names = load_iris().target_names
    predicted = sx.SoftmaxClassifier().fit(X_given, names[y]).predict(X_given)
    assert isinstance(predicted, np.ndarray)
    assert set(predicted) == set(names)
    predicted = sx.SoftmaxClassifier().fit(X_given, y == 1).predict(X_given)
    assert xp.to_numpy(predicted).dtype == bool
    halves = sx.SoftmaxClassifier().fit(X_given, xp.asarray(y.astype(float))).predict(X_given)
    assert set(xp.to_numpy(halves)) == {0.0, 1.0, 2.0}


def test_weights_and_labels_may_come_from_the_host(xp, standardised):
    X, y = standardised["iris"]
    w = np.linspace(0.5, 2, len(y))
    mixed = sx.SoftmaxClassifier(tol=1e-5).fit(xp.asarray(X), y, w)
    same = sx.SoftmaxClassifier(tol=1e-5).fit(xp.asarray(X), xp.asarray(y), xp.asarray(w))
    assert mixed.objective_ == pytest.approx(same.objective_, rel=1e-5)
    assert mixed.score(xp.asarray(X), y, w) == pytest.approx(same.score(xp.asarray(X), xp.asarray(y), xp.asarray(w)))


def test_device_cpu_means_numpy_whatever_the_input(xp, standardised):
    X, y = standardised["iris"]
    ours = sx.SoftmaxClassifier(device="cpu").fit(xp.asarray(X), xp.asarray(y))
    assert ours.device_ == "cpu"
    xp.assert_here(ours.coef_, "float64" if "float64" in xp.float_dtypes else "float32", (3, 4))


def test_input_is_not_modified(xp, standardised):
    X, y = standardised["wine"]
    X_given, y_given, w = xp.asarray(X), xp.asarray(y), xp.asarray(np.ones(len(y)) * 2)
    before = [xp.to_numpy(a).copy() for a in (X_given, y_given, w)]
    sx.SoftmaxClassifier(class_weight="balanced").fit(X_given, y_given, w).predict_proba(X_given)
    for a, kept in zip((X_given, y_given, w), before, strict=True):
        np.testing.assert_array_equal(xp.to_numpy(a), kept)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_give_their_feature_names(library, standardised):
    frames = pytest.importorskip(library)
    X, y = standardised["iris"]
    names = ["a", "b", "c", "d"]
    frame = frames.DataFrame(dict(zip(names, X.T, strict=True)))
    ours = sx.SoftmaxClassifier(device="cpu").fit(frame, frames.Series(load_iris().target_names[y]))
    assert list(ours.feature_names_in_) == names
    assert ours.predict_proba(frame).shape == (150, 3)
    with pytest.raises(ValueError, match="feature names"):
        ours.predict(frame[["b", "a", "c", "d"]])


def test_log_proba_is_finite_where_proba_underflows():
    X = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    ours = sx.SoftmaxClassifier(C=1e3, device="cpu").fit(X, [0, 1, 0, 1])
    far = np.array([[1e4]])
    assert ours.predict_proba(far)[0, 0] == 0.0
    assert -1e6 < ours.predict_log_proba(far)[0, 0] < -1000


def test_dtype_decides_the_arithmetic(standardised):
    X, y = standardised["iris"]
    for given, dtype, kept in [
        ("float32", None, "float32"),
        ("float64", None, "float64"),
        ("float16", None, "float32"),
        ("int64", None, "float64"),
        ("float64", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float64", np.float32, "float32"),
        ("float64", np.dtype("float32"), "float32"),
    ]:
        ours = sx.SoftmaxClassifier(dtype=dtype, device="cpu", tol=1e-3).fit(X.astype(given), y)
        assert ours.coef_.dtype == ours.predict_proba(X.astype(given)).dtype == kept


def test_warm_start_continues(standardised):
    X, y = standardised["digits"]
    cold = sx.SoftmaxClassifier(device="cpu").fit(X, y)
    warm = clone(cold).set_params(warm_start=True).fit(X, y)
    warm.fit(X, y)
    assert warm.n_iter_[0] <= 2 < cold.n_iter_[0]
    warm.fit(X[:, :5], y)  # another number of features: from the start
    assert warm.coef_.shape == (10, 5)


@pytest.mark.parametrize("solver", ["sgd", "adam", "adamw", stochastic.SGD(0.05, momentum=0.9)])
def test_stochastic_solvers_come_near_the_optimum(standardised, solver):
    X, y = standardised["iris"]
    best = sx.SoftmaxClassifier(tol=1e-8, device="cpu").fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours = sx.SoftmaxClassifier(solver=solver, max_iter=2000, random_state=0, device="cpu").fit(X, y)
    # AdamW's weight decay acts beside the penalty: it minimises something slightly else.
    assert best.objective_ <= ours.objective_ <= best.objective_ * (1.05 if solver == "adamw" else 1.001)
    again = clone(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        again.fit(X, y)
    np.testing.assert_array_equal(again.coef_, ours.coef_)


def test_max_iter_ends_with_a_warning_that_says_how_far(standardised):
    X, y = standardised["digits"]
    with pytest.warns(ConvergenceWarning, match=r"max_iter=3 steps taken; the objective is 0\.2\d+, how far above"):
        ours = sx.SoftmaxClassifier(max_iter=3, device="cpu").fit(X, y)
    assert not ours.converged_
    assert ours.n_iter_ == [3]


def stop_at_4(seen):
    def callback(state):
        seen.append(state)
        return len(seen) == 4

    return callback


def test_callbacks_see_each_step_and_may_end_the_fit(standardised):
    X, y = standardised["digits"]
    seen, others = [], []
    model = sx.SoftmaxClassifier(device="cpu", callbacks=[stop_at_4(seen), others.append])
    with pytest.warns(ConvergenceWarning, match="ended by the observer"):
        model.fit(X, y)
    assert [state.n_iter for state in seen] == [1, 2, 3, 4]
    assert others == seen  # the others are still told
    assert model.status_ is Status.STOPPED
    assert all(a.objective > b.objective for a, b in itertools.pairwise(seen))


def test_observe_is_one_more_callback_and_warns(standardised):
    X, y = standardised["digits"]
    seen, others = [], []
    model = sx.SoftmaxClassifier(device="cpu", callbacks=(others.append,))
    with (
        pytest.warns(
            FutureWarning, match=r"`observe` is deprecated; pass SoftmaxClassifier\(callbacks=\[\.\.\.\]\)"
        ) as old,
        pytest.warns(ConvergenceWarning, match="ended by the observer"),
    ):
        model.fit(X, y, observe=stop_at_4(seen))
    assert old[0].filename == __file__
    assert others == seen
    assert len(model.callbacks) == 1
    expected = sx.SoftmaxClassifier(device="cpu", callbacks=[stop_at_4([])])
    with pytest.warns(ConvergenceWarning, match="ended by the observer"):
        expected.fit(X, y)
    np.testing.assert_array_equal(model.coef_, expected.coef_)


def test_ctrl_c_leaves_a_usable_model(standardised):
    X, y = standardised["digits"]

    def interrupt(state):
        if state.n_iter == 5:
            raise KeyboardInterrupt

    for solver in ("lbfgs", "sgd"):
        with pytest.warns(ConvergenceWarning, match="interrupted"):
            ours = sx.SoftmaxClassifier(solver=solver, device="cpu", callbacks=[interrupt]).fit(X, y)
        assert ours.score(X, y) > 0.8


def test_verbose_prints_progress(standardised, capsys):
    X, y = standardised["iris"]
    sx.SoftmaxClassifier(device="cpu").fit(X, y)
    assert capsys.readouterr().out == ""
    ours = sx.SoftmaxClassifier(device="cpu", verbose=2).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == ours.n_iter_[0]
    assert lines[-1] == (
        f"iteration {ours.n_iter_[0]}: objective {ours.objective_:.6f}, gradient norm {ours.gradient_norm_:.2e}, "
        f"estimated gap {ours.estimated_gap_:.1e}"
    )


def test_pickle_holds_numpy_arrays_only(xp, standardised):
    X, y = standardised["iris"]
    ours = sx.SoftmaxClassifier().fit(xp.asarray(X), xp.asarray(y))
    data = pickle.dumps(ours)
    for library in (b"torch", b"array_api_strict", b"cupy"):
        assert library not in data
    back = pickle.loads(data)
    assert back.device_ == "cpu"
    assert isinstance(back.coef_, np.ndarray)
    np.testing.assert_allclose(back.predict_proba(X), ours.predict_proba(X), atol=1e-12)
    xp.assert_here(back.predict(xp.asarray(X)), "int64", (150,))
    xp.assert_here(ours.coef_, ours.coef_.dtype.__str__().rpartition(".")[2], (3, 4))  # the original stays where it is
    assert copy.deepcopy(ours).score(X, y) == ours.score(X, y)


def test_to_moves_the_coefficients(xp, standardised):
    X, y = standardised["iris"]
    ours = sx.SoftmaxClassifier().fit(xp.asarray(X), xp.asarray(y))
    assert ours.to("cpu") is ours
    assert isinstance(ours.coef_, np.ndarray)
    assert ours.device_ == "cpu"
    xp.assert_here(ours.predict(xp.asarray(X)), "int64", (150,))
    with pytest.raises(NotFittedError):
        sx.SoftmaxClassifier().to("cpu")


def test_model_works_in_scikit_learns_tools(standardised):
    X, y = standardised["iris"]
    pipeline = make_pipeline(StandardScaler(), sx.SoftmaxClassifier(device="cpu"))
    search = GridSearchCV(pipeline, {"softmaxclassifier__C": [0.1, 1.0, 10.0]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.9
    assert "SoftmaxClassifier" in repr(search.best_estimator_)


X0, Y0 = np.array([[0.0, 1], [1, 2], [2, 0], [3, 1]]), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"C": 0.0}, ValueError, r"`C` must lie in \(0, inf\], got 0.0; choose"),
        ({"C": -1}, ValueError, r"`C` must lie in \(0, inf\], got -1.0; choose"),
        ({"C": "1"}, TypeError, "`C` must be a real number, got '1'; pass"),
        ({"C": float("nan")}, ValueError, r"`C` must lie in \(0, inf\], got nan"),
        ({"tol": 0.0}, ValueError, r"`tol` must lie in \(0, inf\), got 0.0; choose"),
        ({"tol": -1e-3}, ValueError, r"`tol` must lie in \(0, inf\), got -0.001; choose"),
        ({"max_iter": 0}, ValueError, "`max_iter` must be at least 1, got 0; choose"),
        ({"max_iter": 10.5}, TypeError, "`max_iter` must be an integer, got 10.5; pass"),
        ({"workers": 0}, ValueError, "`workers` must be at least 1, got 0; choose"),
        ({"workers": 1.5}, TypeError, "`workers` must be an integer, got 1.5; pass"),
        ({"max_memory": 0}, ValueError, "`max_memory` must be at least 1, got 0; choose"),
        ({"max_memory": "1G"}, TypeError, "`max_memory` must be an integer, got '1G'; pass"),
        (
            {"precision": "half"},
            ValueError,
            "`precision` must be one of 'float32', 'tf32'.*got 'half'; choose",
        ),
        (
            {"precision": "tf32", "device": "cpu"},
            ValueError,
            "`precision`='tf32' is for float32 data on a CUDA device, got float64 on cpu; choose",
        ),
        (
            {"precision": "bfloat16", "device": "cpu", "dtype": "float32"},
            ValueError,
            "`precision`='bfloat16' is for float32 data on a CUDA device, got float32 on cpu; choose",
        ),
        ({"verbose": -1}, ValueError, "`verbose` must be at least 0, got -1; choose"),
        ({"solver": "newton"}, ValueError, "`solver` must be one of 'auto', 'lbfgs'.*got 'newton'; choose"),
        ({"fit_intercept": "no"}, TypeError, "`fit_intercept` must be True or False, got 'no'; pass"),
        ({"C": 1e-320}, ValueError, "`C` times the sum of weights must have a finite inverse, got C=.*; raise"),
        ({"solver": None}, ValueError, "`solver` must be one of 'auto', 'lbfgs'.*got None; choose"),
        ({"dtype": "float16"}, ValueError, "`dtype` must be one of 'float32', 'float64', got 'float16'; choose"),
        ({"class_weight": "even"}, ValueError, "`class_weight` must be one of 'balanced', got 'even'; choose"),
        ({"class_weight": {0: -1.0, 1: 1.0}}, ValueError, "`class_weight` must not be negative, got -1.0"),
        ({"device": "gpu7"}, ValueError, "`device` must be 'auto', 'cpu', 'cuda' or 'cuda:<index>', got 'gpu7'"),
    ],
)
def test_a_bad_parameter_is_refused_at_fit(parameters, error, message):
    with pytest.raises(error, match=message):
        sx.SoftmaxClassifier(**parameters).fit(X0, Y0)


@pytest.mark.parametrize(
    ("X", "y", "weight", "error", "message"),
    [
        (X0, Y0 * 0 + 7, None, ValueError, "`y` must hold at least two classes, got one class: 7; add"),
        (X0, Y0[:3], None, ValueError, r"`y` must have one entry per row of `X` \(4\), got 3; select"),
        (X0, Y0 + 0.5, None, ValueError, "`y` must be one class label a row.*Unknown label type: continuous.*; pass"),
        (X0, [0, 1, np.nan, 1], None, ValueError, "`y` must be one class label a row.*NaN; pass"),
        (X0, np.eye(2, dtype=int)[Y0], None, ValueError, "`y` must be one class label a row.*1d array.*; pass"),
        (X0, ["a", None, "b", "a"], None, ValueError, "`y` must be one class label a row.*; pass"),
        (X0[:, 0], Y0, None, ValueError, "(?s)Expected 2D array, got 1D array.*reshape|`X` must have shape"),
        (X0[None], Y0, None, ValueError, "dim 3|`X` must have shape"),
        (X0[:0], Y0[:0], None, ValueError, "(0 sample.*|no empty axis.*); pass"),
        (X0[:, :0], Y0, None, ValueError, "(0 feature.*|no empty axis.*); pass"),
        (np.where(X0 == 3, np.inf, X0), Y0, None, ValueError, "`X` must be finite, got inf at row 3, column 0; drop"),
        (X0 + np.array([[np.nan, 0]]), Y0, None, ValueError, "`X` must be finite, got NaN at row 0, column 0; drop"),
        (X0 + 1j, Y0, None, (TypeError, ValueError), "[Cc]omplex|real dtype"),
        (X0, Y0, [1.0, -1, 1, 1], ValueError, "`sample_weight` must not be negative, got -1.0 at row 1"),
        (X0, Y0, [0.0] * 4, ValueError, "`sample_weight` must not be all zero, got 4 zeros; give"),
        (X0, Y0, [1.0] * 3, ValueError, "`sample_weight` must have one entry per row.*got 3"),
        (X0, Y0, [[1.0] * 4], ValueError, r"`sample_weight` must have shape \(n_samples,\)"),
        (X0, Y0, [1, 1, np.nan, 1], ValueError, "`sample_weight` must be finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_data_are_refused(xp, X, y, weight, error, message):
    """On every library alike."""
    X = xp.asarray(X, "complex64" if np.iscomplexobj(X) else None)
    with pytest.raises(error, match=message):
        sx.SoftmaxClassifier().fit(X, y, weight)


def test_prediction_refuses_what_fit_did_not_see(xp):
    ours = sx.SoftmaxClassifier()
    with pytest.raises(NotFittedError):
        ours.predict(xp.asarray(X0))
    ours.fit(xp.asarray(X0), Y0)
    with pytest.raises(ValueError, match=r"X has 1 features.* is expecting 2 features.*; select"):
        ours.predict(xp.asarray(X0[:, :1]))
    with pytest.raises(ValueError, match="`X` must be finite, got NaN at row 0, column 0; drop"):
        ours.predict_proba(xp.asarray(X0 * np.nan))


def test_a_separable_problem_without_penalty_does_not_run_away(standardised):
    X, y = standardised["iris"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours = sx.SoftmaxClassifier(C=np.inf, tol=1e-14, device="cpu").fit(X, y == 0)
    assert np.isfinite(ours.coef_).all()
    assert ours.score(X, y == 0) == 1.0


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "lbfgs"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_separable_problem_without_penalty_ends_with_the_reason(standardised, solver, weighted):
    X, y = standardised["iris"]
    weight = np.where(np.arange(len(y)) % 7, 1.0, 0.01) if weighted else None
    ours = sx.SoftmaxClassifier(C=np.inf, solver=solver, device="cpu")
    with pytest.warns(ConvergenceWarning, match=r"without a penalty there is no minimum.*\. Choose a finite C\.$"):
        ours.fit(X, y == 0, sample_weight=weight)
    assert ours.n_iter_[0] < 100
    assert ours.score(X, y == 0) == 1.0
    assert ours.estimated_gap_ == ours.objective_


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"max_iter": 2}, r" Raise max_iter or tol=0\.0001, or standardise the features\.$"),
        ({"max_iter": 2, "solver": "sgd"}, r" Raise max_iter or tol=0\.0001; solver='auto' finds the optimum\.$"),
    ],
)
def test_the_remedy_fits_the_reason(standardised, parameters, remedy):
    with pytest.warns(ConvergenceWarning, match=remedy):
        sx.SoftmaxClassifier(device="cpu", **parameters).fit(*standardised["iris"])


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "lbfgs"])
@pytest.mark.parametrize("c", [2, 3])
def test_rows_of_weight_zero_do_not_count_whatever_they_hold(standardised, solver, c):
    X, y = standardised["iris"]
    X, y = X[:120].astype(np.float32), y[:120] % c
    weight = np.where(np.arange(120) % 40, 1.0, 0.0)  # rows that a sample has, too
    extreme = np.where(weight[:, None] > 0, X, np.float32(3e38))
    ours = sx.SoftmaxClassifier(solver=solver, device="cpu").fit(extreme, y, sample_weight=weight)
    theirs = sx.SoftmaxClassifier(solver=solver, device="cpu").fit(X[weight > 0], y[weight > 0])
    assert ours.objective_ == pytest.approx(theirs.objective_, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-46, 1e39])
def test_units_of_the_weights_do_not_matter(standardised, scale):
    X, y = standardised["iris"]
    X, weight = X.astype(np.float32), np.linspace(1, 2, len(y))
    fits = [sx.SoftmaxClassifier(C=1 / u, device="cpu").fit(X, y, sample_weight=u * weight) for u in (1.0, scale)]
    assert fits[1].objective_ == pytest.approx(fits[0].objective_, rel=1e-6)


def test_a_penalty_of_few_bits_is_that_number(standardised):
    X, y = (np.concatenate([x] * 700) for x in standardised["iris"])  # C times the rows overflows float16
    C = np.float16(1e-3)
    ours, theirs = (sx.SoftmaxClassifier(C=c, device="cpu").fit(X, y) for c in (C, float(C)))
    np.testing.assert_array_equal(ours.coef_, theirs.coef_)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
def test_logits_that_overflow_are_refused(xp, standardised, method):
    X, y = standardised["iris"]
    model = sx.SoftmaxClassifier(device="cpu", dtype="float32").fit(X, y)
    rows = xp.asarray(np.full((3, 4), 3e38), "float32")
    with pytest.raises(ValueError, match="`X` must have logits that float32 can hold, got an overflow in rows 0 to 2;"):
        getattr(model, method)(rows)


def test_predictions_do_not_depend_on_blocks(standardised, monkeypatch):
    from softmax_xp import arrays

    X, y = standardised["iris"]
    ours = sx.SoftmaxClassifier(device="cpu").fit(X, y)
    whole = ours.predict_proba(X), ours.predict(X)
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 24 * 7)  # seven rows
    assert len(list(arrays.row_blocks(150, 24))) == 22
    np.testing.assert_allclose(ours.predict_proba(X), whole[0], atol=1e-15)
    np.testing.assert_array_equal(ours.predict(X), whole[1])


FORBIDDEN = "SCIPY_ARRAY_API"


def test_no_environment_variable_is_needed():
    assert FORBIDDEN not in os.environ, "the suite shows that the libraries work without it"


@pytest.mark.skipif(sum(d.usable for d in sx.devices()) < 3, reason="this machine has no two GPUs")
def test_the_second_gpu_fits_what_lies_on_the_host_or_the_first():
    cupy = pytest.importorskip("cupy")
    expected = sx.SoftmaxClassifier(device="cpu").fit(X0, Y0)
    for X in (np.asarray(X0), cupy.asarray(X0)):  # the latter on the current device, the first
        for solver in ("auto", "newton-cg"):
            model = sx.SoftmaxClassifier(device="cuda:1", solver=solver).fit(X, Y0)
            assert model.device_ == "cuda:1"
            assert model.objective_ == pytest.approx(expected.objective_, rel=1e-6)
            probabilities = model.predict_proba(X)
            assert type(probabilities) is type(X)
            assert probabilities.device == X.device


@pytest.mark.parametrize(
    ("status", "options", "callback"),
    [
        ("converged", {}, None),
        ("converged", {"solver": "newton-cg"}, None),
        ("max_iter", {"max_iter": 2}, None),
        ("max_iter", {"max_iter": 2, "solver": "adam"}, None),
        ("stopped", {}, lambda state: state.n_iter == 2),
        ("stopped", {"solver": "sgd"}, lambda state: True),
        ("stalled", {"solver": "lbfgs", "tol": 1e-30, "max_iter": 10_000}, None),
        ("separated", {"C": np.inf}, None),
        ("diverged", {"solver": sx.SGD(1e30)}, None),
    ],
)
def test_why_a_fit_ended_is_told(status, options, callback):
    X, y = load_iris(return_X_y=True)
    if status == "separated":
        X, y = X[:100], y[:100]
    callbacks = () if callback is None else [callback]
    model = sx.SoftmaxClassifier(device="cpu", random_state=0, callbacks=callbacks, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    assert model.status_ == status
    assert model.converged_ is (status == "converged")


# --- Soft targets ---


@pytest.mark.parametrize("solver", ["auto", "lbfgs", "newton-cg"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities_that_are_certain_are_labels(xp, solver, n_classes):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < n_classes], y[y < n_classes]
    dtype = xp.float_dtypes[-1]
    options = {"solver": solver, "device": xp.device_flag}
    expected = sx.SoftmaxClassifier(**options).fit(xp.asarray(X, dtype), y)
    model = sx.SoftmaxClassifier(**options).fit(xp.asarray(X, dtype), xp.asarray(np.eye(n_classes)[y], dtype))
    np.testing.assert_array_equal(xp.to_numpy(model.coef_), xp.to_numpy(expected.coef_))
    assert model.classes_.tolist() == list(range(n_classes))
    assert model.objective_ == expected.objective_


@pytest.mark.parametrize("solver", ["auto", "lbfgs", "newton-cg"])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("smoothing", [0.1, 0.6, 1.0])
def test_label_smoothing_is_a_mixture_with_even_targets(solver, n_classes, smoothing):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < n_classes], y[y < n_classes]
    options = {"solver": solver, "tol": 1e-10, "device": "cpu"}
    smoothed = sx.SoftmaxClassifier(label_smoothing=smoothing, **options).fit(X, y)
    targets = (1 - smoothing) * np.eye(n_classes)[y] + smoothing / n_classes
    soft = sx.SoftmaxClassifier(**options).fit(X, targets)
    np.testing.assert_allclose(smoothed.coef_, soft.coef_, rtol=0, atol=1e-10)
    assert smoothed.objective_ == pytest.approx(soft.objective_, rel=1e-12)
    coef, intercept = soft.coef_, soft.intercept_
    logits = X @ coef.T + intercept
    logits = logits if n_classes > 2 else np.column_stack([np.zeros(len(X)), logits[:, 0]])
    value = -(targets * log_softmax(logits, axis=1)).sum(axis=1).mean() + (coef**2).sum() / 2 / len(X)
    assert soft.objective_ == pytest.approx(value, rel=1e-12)


def test_without_a_penalty_smoothed_labels_have_a_minimum():
    X, y = load_iris(return_X_y=True)
    X, y = X[y < 2], y[y < 2]
    model = sx.SoftmaxClassifier(C=np.inf, label_smoothing=0.1, device="cpu").fit(X, y)
    assert model.status_ == "converged"
    assert model.objective_ > 0.19  # the entropy of the targets, 0.1985


def test_columns_of_probabilities_are_the_classes(tmp_path):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    X, y = load_iris(return_X_y=True)
    names = ["wild", "tame", "lost"]
    targets = 0.8 * np.eye(3)[y] + 0.2 / 3
    expected = sx.SoftmaxClassifier(device="cpu").fit(X, targets)
    assert expected.classes_.tolist() == [0, 1, 2]
    for frame in (pandas.DataFrame(targets, columns=names), polars.DataFrame(dict(zip(names, targets.T, strict=True)))):
        model = sx.SoftmaxClassifier(device="cpu").fit(X, frame)
        assert model.classes_.tolist() == sorted(names)
        np.testing.assert_allclose(model.coef_[[2, 1, 0]], expected.coef_, rtol=0, atol=1e-6)
        assert model.score(X, np.array(names)[y]) == expected.score(X, y) > 0.9
        model.save(tmp_path / "model")
        assert sx.load(tmp_path / "model", device="cpu").predict(X[:2]).tolist() == ["wild", "wild"]
    twice = pandas.DataFrame(targets, columns=["a", "b", "a"])
    with pytest.raises(ValueError, match=r"`y` must have one column for each class, got \['a', 'b', 'a'\]"):
        sx.SoftmaxClassifier(device="cpu").fit(X, twice)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: 2 * t, r"`y` as probabilities must sum to 1 in each row, got 2\.0 at row"),
        (lambda t: t * np.nan, "`y` must be finite"),
        (lambda t: t * [2, -1, -1], "`y` as probabilities must not be negative"),
        (lambda t: t[:-1], "`y` must have one entry per row of `X`"),
        (lambda t: t.astype(int), "1d array is expected"),
    ],
)
def test_targets_that_are_no_probabilities_are_refused(change, message):
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=message):
        sx.SoftmaxClassifier(device="cpu").fit(X, change(np.eye(3)[y] * 0.7 + 0.1))
    with pytest.raises(ValueError, match="`class_weight` must be None where `y` has probabilities"):
        sx.SoftmaxClassifier(class_weight="balanced", device="cpu").fit(X, np.eye(3)[y] * 0.7 + 0.1)


@pytest.mark.parametrize("solver", ["sgd", "auto"])
def test_weights_count_for_probabilities(solver):
    X, y = load_iris(return_X_y=True)
    targets, weight = np.eye(3)[y] * 0.7 + 0.1, np.arange(150) % 3
    X[weight == 0] = np.nan
    targets[weight == 0] = [0.0, 0.0, 1.0]
    options = {"solver": solver, "device": "cpu", "random_state": 0, "max_iter": 50}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weighted = sx.SoftmaxClassifier(**options).fit(X, targets, weight)
        rows = np.repeat(np.arange(150), weight)
        repeated = sx.SoftmaxClassifier(**options).fit(X[rows], targets[rows])
    np.testing.assert_allclose(weighted.objective_, repeated.objective_, rtol=1e-3 if solver == "auto" else 0.05)
