"""Losses: their scalar functions, and what every provider makes of them, against the oracle and differences."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings

import numpy as np
import oracle
import pytest
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from test_objective import SHAPES, Problem, many_blocks, provider_schedules, providers
from tolerances import TOLERANCE

import softmax_xp as sx
from softmax_xp.backend import backend_of
from softmax_xp.kernels.row_pass import RowPass
from softmax_xp.losses import LOSSES, checked_loss

# A loss, and what the oracle calls it.
CASES = [
    pytest.param(sx.CrossEntropy(), None, id="ce"),
    pytest.param(sx.GeneralizedCrossEntropy(), ("gce", 0.7), id="gce"),
    pytest.param(sx.GeneralizedCrossEntropy(q=0.05), ("gce", 0.05), id="gce0.05"),
    pytest.param(sx.GeneralizedCrossEntropy(q=1), ("gce", 1.0), id="gce1"),
    pytest.param(sx.SymmetricCrossEntropy(), ("sce", 0.1, 1.0, -4.0), id="sce"),
    pytest.param(sx.SymmetricCrossEntropy(0, 0.5, -6), ("sce", 0.0, 0.5, -6.0), id="sce0"),
    pytest.param(sx.Focal(), ("focal", 2.0), id="focal"),
    pytest.param(sx.Focal(gamma=0.5), ("focal", 0.5), id="focal0.5"),
    pytest.param(sx.Focal(gamma=1), ("focal", 1.0), id="focal1"),
    pytest.param(sx.Focal(gamma=0), ("focal", 0.0), id="focal0"),
]
LOG_P = [-80.0, -20.0, -3.0, -1.0, -0.3, -1e-3, -1e-6]


@pytest.mark.parametrize(("loss", "known"), CASES)
def test_the_scalar_functions_are_the_oracles(xp, loss, known):
    for dtype in xp.float_dtypes:
        log_p = xp.asarray(LOG_P, dtype)
        given = xp.to_numpy(log_p).astype(np.float64)
        costs, slopes = np.array([oracle.phi(known, float(x)) for x in given]).T
        h = 1e-4
        bends = [(oracle.phi(known, x + x * h)[1] - oracle.phi(known, x - x * h)[1]) / (2 * x * h) for x in given]
        scale = {"float64": 1e-13, "float32": 1e-6}[dtype]
        for actual, expected, tol in ((loss.value(log_p), costs, scale), (loss.slope(log_p), -slopes, scale)):
            assert actual.dtype == log_p.dtype
            np.testing.assert_allclose(xp.to_numpy(actual), expected, rtol=20 * tol, atol=20 * tol)
        assert loss.bend(log_p).dtype == log_p.dtype
        np.testing.assert_allclose(xp.to_numpy(loss.bend(log_p)), bends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss", "known"), CASES)
def test_probabilities_of_zero_and_one_have_their_limits(xp, loss, known):
    for dtype in xp.float_dtypes:
        log_p = xp.asarray([0.0, -math.inf], dtype)
        value, slope, bend = (xp.to_numpy(f(log_p)) for f in (loss.value, loss.slope, loss.bend))
        assert value[0] == 0.0
        assert value[1] == pytest.approx(float(loss.value(np.array(-1e6))), rel=1e-2) or np.isinf(value[1])
        assert np.isfinite(slope).all()
        assert slope[1] == pytest.approx(float(loss.slope(np.array(-700.0))), abs=1e-6)
        assert np.isfinite(bend[1])


@pytest.mark.parametrize(("loss", "known"), CASES)
def test_a_slope_is_not_negative_and_below_its_bound(loss, known):
    slopes = loss.slope(-np.geomspace(1e-9, 500.0, 100_001))
    assert slopes.min() >= 0.0
    assert slopes.max() <= loss.slope_bound * (1.0 + 1e-5)
    assert loss.slope_bound <= slopes.max() * 1.001 + 1e-12


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_name_stands_for_the_default_parameters(name):
    assert checked_loss(name) == LOSSES[name]()
    assert pickle.loads(pickle.dumps(checked_loss(name))) == checked_loss(name)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: checked_loss("hinge"), ValueError, "`loss` must be one of 'cross_entropy', 'gce', .* got 'hinge'; "),
        (lambda: checked_loss(sx.Focal), TypeError, "`loss` must be one of .* or an instance of a loss, got "),
        (lambda: checked_loss(None), TypeError, "`loss` must be one of .* got None"),
        (lambda: sx.GeneralizedCrossEntropy(q=0), ValueError, r"`q` must lie in \(0, 1\], got 0.0; choose"),
        (lambda: sx.GeneralizedCrossEntropy(q=1.5), ValueError, r"`q` must lie in \(0, 1\], got 1.5; choose"),
        (lambda: sx.GeneralizedCrossEntropy(q="much"), TypeError, "`q` must be a real number"),
        (lambda: sx.SymmetricCrossEntropy(alpha=-1), ValueError, r"`alpha` must lie in \[0, inf\), got -1.0; choose"),
        (lambda: sx.SymmetricCrossEntropy(beta=0), ValueError, r"`beta` must lie in \(0, inf\), got 0.0; choose"),
        (lambda: sx.SymmetricCrossEntropy(log_zero=1), ValueError, "`log_zero` must lie in .* got 1.0; choose"),
        (lambda: sx.Focal(gamma=-1), ValueError, r"`gamma` must lie in \[0, inf\), got -1.0; choose"),
        (lambda: sx.Focal(gamma=math.nan), ValueError, r"`gamma` must lie in \[0, inf\), got nan; choose"),
    ],
)
def test_what_is_no_loss_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- Providers ---

FEW = [CASES[i] for i in (1, 4, 7)]  # for what takes long
TARGETS = ["labels", "probabilities"]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("loss", "known"), CASES)
def test_losses_and_gradients_of_rows_are_the_oracles(xp, rng, loss, known, targets, smoothing, axis):
    for kernels, dtype, (n, c), weighted in itertools.product(
        providers(xp), xp.float_dtypes, [(1, 2), (10, 5)], [False, True]
    ):
        p = Problem(xp, rng, dtype, n, 2, c, weighted, targets)
        z = p.given(3 * rng.normal(size=(n, c)))
        weight = None if p.weight is None else p.exact(p.weight)
        expected, expected_grad = oracle.cross_entropy(
            p.exact(z), p.exact(p.t), weight, smoothing, reduction="none", loss=known
        )
        if axis == 0:
            z, t, expected_grad = z.T, p.t if p.labelled else p.t.T, expected_grad.T
        else:
            t = p.t
        row_pass = RowPass(loss, smoothing)
        actual, grad = kernels.cross_entropy_with_grad(z, t, p.weight, row_pass, axis)
        xp.assert_close(actual, expected, dtype, "rows")
        xp.assert_close(kernels.cross_entropy(z, t, p.weight, row_pass, axis), expected, dtype, "rows")
        xp.assert_close(grad, expected_grad, dtype, "grad")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("loss", "known"), FEW)
def test_linear_sums_are_the_oracles(xp, rng, monkeypatch, loss, known, targets, smoothing):
    for dtype, (n, d, c, n_coef) in itertools.product(xp.float_dtypes, SHAPES):
        p = Problem(xp, rng, dtype, n, d, c, True, targets)
        coef, intercept = p.given(rng.normal(size=(n_coef, d)) / d**0.5), p.given(rng.normal(size=n_coef))
        exact = (p.exact(x) for x in (coef, intercept, p.X, p.t, p.weight))
        expected, *expected_grads = oracle.linear_sums(*exact, smoothing, known)
        for kernels, schedule in provider_schedules(xp):
            with many_blocks(monkeypatch, schedule):
                actual, *grads = kernels.linear_sums(coef, intercept, p.X, p.t, p.weight, RowPass(loss, smoothing))
            tolerance = 4e-6 if dtype == "float32" else 1e-12
            assert float(actual) == pytest.approx(expected, rel=tolerance)
            for grad, expected_grad in zip(grads, expected_grads, strict=True):
                extra = loss.slope_bound * TOLERANCE["grad"][dtype][1]  # rounding of p times the slope
                xp.assert_close(grad, expected_grad, dtype, "grad", extra)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("loss", "known"), FEW)
def test_hessian_products_are_the_differences_of_gradients(xp, rng, monkeypatch, loss, known, targets, smoothing):
    for dtype, (n, d, c, n_coef) in itertools.product(xp.float_dtypes, SHAPES[:5]):
        p = Problem(xp, rng, dtype, n, d, c, True, targets)

        def split(x, n_coef=n_coef, d=d):
            return x[: n_coef * d].reshape(n_coef, d), x[n_coef * d :]

        at, along = (p.exact(p.given(rng.normal(size=n_coef * (d + 1)) / d**0.5)) for _ in range(2))

        def gradient(x, p=p, split=split):
            data = (p.exact(y) for y in (p.X, p.t, p.weight))
            _, grad, slope = oracle.linear_sums(*split(x), *data, smoothing, known)
            return np.concatenate([grad.ravel(), slope])

        expected = split(oracle.directional_difference(gradient, at, along))
        arguments = [p.given(x) for x in (*split(at), *split(along))]
        arguments[2:2] = [p.X, p.t]
        for kernels, schedule in provider_schedules(xp):
            with many_blocks(monkeypatch, schedule):
                products = kernels.linear_hessian_product(*arguments, p.weight, RowPass(loss, smoothing))
            for product, known_product in zip(products, expected, strict=True):
                xp.assert_close(product, known_product, dtype, "hessian")


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("loss", "known"), FEW)
def test_rows_without_weight_have_no_part_whatever_their_logits(xp, loss, known, targets):
    for kernels, dtype in itertools.product(providers(xp), xp.float_dtypes):
        z = xp.asarray([[1.0, 2.0, 0.5], [math.nan, math.inf, 0.0]], dtype)
        t = xp.asarray([1, 0]) if targets == "labels" else xp.asarray([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]], dtype)
        with np.errstate(all="ignore"):
            losses, grad = kernels.cross_entropy_with_grad(z, t, xp.asarray([1.0, 0.0], dtype), RowPass(loss))
        assert xp.to_numpy(losses)[1] == 0.0
        assert (xp.to_numpy(grad)[1] == 0.0).all()
        assert np.isfinite(xp.to_numpy(grad)).all()


# --- Functions ---


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("loss", "known"), CASES)
def test_cross_entropy_takes_a_loss(xp, rng, loss, known, reduction):
    for dtype in [*xp.float_dtypes, *(["float16"] if xp.name in ("numpy", "torch") else [])]:
        z, y, weight = xp.asarray(rng.normal(size=(9, 4)), dtype), rng.integers(0, 4, 9), rng.uniform(0.5, 2, 9)
        y[3] = -1
        weight = xp.asarray(weight, dtype)
        options = {"label_smoothing": 0.1, "ignore_index": -1, "reduction": reduction, "loss": loss}
        actual, grad = sx.cross_entropy_with_grad(z, xp.asarray(y), weight, **options)
        exact = [xp.to_numpy(x).astype(np.float64) for x in (z, weight)]
        expected, expected_grad = oracle.cross_entropy(exact[0], y, exact[1], 0.1, -1, reduction, known)
        quantity = "rows" if reduction == "none" else "loss"
        xp.assert_close(actual, expected, dtype, quantity, extra=1e-6 if dtype == "float32" else 1e-14)
        alone = sx.cross_entropy(z, xp.asarray(y), weight, **options)
        xp.assert_close(alone, expected, dtype, quantity, extra=1e-6 if dtype == "float32" else 1e-14)
        xp.assert_close(grad, expected_grad, dtype, "grad")


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_cross_entropy_takes_a_loss_by_name(xp, rng, name):
    z, y = xp.asarray(rng.normal(size=(5, 3)), xp.float_dtypes[-1]), xp.asarray([0, 1, 2, 0, 1])
    by_name, by_instance = (sx.cross_entropy(z, y, loss=loss) for loss in (name, LOSSES[name]()))
    assert float(by_name) == float(by_instance)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("loss", "known"), FEW)
def test_gradients_are_the_differences_of_losses(loss, known, targets, rng):
    z = rng.normal(size=(4, 3))
    t = rng.integers(0, 3, 4) if targets == "labels" else rng.dirichlet(np.ones(3), 4)
    _, grad = sx.cross_entropy_with_grad(z, t, loss=loss)
    expected = oracle.central_difference(lambda x: sx.cross_entropy(x, t, loss=loss), z)
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-7 * abs(expected).max())


def test_a_loss_of_ones_own_is_taken(rng):
    class Squared:
        """(1 - p)^2."""

        convex = False
        slope_bound = 8 / 27

        def value(self, log_p):
            return np.expm1(log_p) ** 2

        def slope(self, log_p):
            return -2 * np.expm1(log_p) * np.exp(log_p)

        def bend(self, log_p):
            return 2 * np.exp(log_p) * (2 * np.exp(log_p) - 1)

    z, y = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    loss, grad = sx.cross_entropy_with_grad(z, y, loss=Squared())
    assert float(loss) == pytest.approx(((1 - sx.softmax(z)[np.arange(6), y]) ** 2).mean())
    expected = oracle.central_difference(lambda x: sx.cross_entropy(x, y, loss=Squared()), z)
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-9)


# --- Fits ---


def mislabelled(n=400, seed=0):
    """Digits in float64, a third of whose labels are drawn anew."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 10, n)
    return X[:n] / 16, np.where(rng.random(n) < 1 / 3, drawn, y[:n])


def objective_of(model, X, y, known, C, smoothing=0.0):
    """The mean objective of a model's coefficients by the oracle, and its gradient as one vector."""
    coef, intercept = (np.asarray(x, dtype=np.float64) for x in (model.coef_, model.intercept_))
    loss, grad, slope = oracle.linear_sums(coef, intercept, X, y, None, smoothing, known)
    value = loss / len(X) + 0.5 / (C * len(X)) * (coef**2).sum()
    return value, np.concatenate([(grad / len(X) + coef / (C * len(X))).ravel(), slope / len(X)])


@pytest.mark.parametrize("solver", ["auto", "lbfgs", "newton-cg"])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize(("loss", "known"), FEW)
def test_a_fit_ends_near_a_local_minimum(loss, known, n_classes, solver):
    X, y = mislabelled()
    y = y if n_classes == 10 else (y > 4).astype(int)
    C = 1.0
    model = sx.SoftmaxClassifier(C=C, loss=loss, solver=solver, tol=1e-6, device="cpu").fit(X, y)
    assert model.status_ == "converged"
    value, grad = objective_of(model, X, y, known, C)
    assert model.objective_ == pytest.approx(value, rel=1e-9)
    assert np.linalg.norm(grad) == pytest.approx(model.gradient_norm_, rel=1e-4, abs=1e-12)
    assert model.estimated_gap_ <= 1e-6 * value
    # SciPy goes on from there: what it gains is the gap to the local minimum.
    shape, X_mean = model.coef_.shape, 1 / (C * len(X))

    def f(w):
        coef, intercept = w[: model.coef_.size].reshape(shape), w[model.coef_.size :]
        logits = X @ coef.T + intercept
        logits = logits if len(coef) > 1 else np.column_stack([np.zeros(len(X)), logits[:, 0]])
        losses, dlogits = sx.cross_entropy_with_grad(logits, y, loss=loss)
        dlogits = dlogits[:, -len(coef) :]
        slope = np.concatenate([(dlogits.T @ X + coef * X_mean).ravel(), dlogits.sum(axis=0)])
        return float(losses) + 0.5 * X_mean * (coef**2).sum(), slope

    start = np.concatenate([model.coef_.ravel(), model.intercept_])
    further = minimize(f, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000})
    assert value - further.fun <= 10 * model.estimated_gap_ + 1e-10 * value


@pytest.mark.parametrize("solver", ["auto", "sgd", "adam"])
def test_a_fit_takes_a_loss_on_every_library(xp, solver):
    X, y = mislabelled(100)
    options = {"loss": "gce", "C": 0.3, "max_iter": 20 if solver != "auto" else 1000, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if solver != "auto" else "error", ConvergenceWarning)
        expected = sx.SoftmaxClassifier(**options, solver=solver, tol=1e-8, device="cpu").fit(X, y)
        for dtype in xp.float_dtypes:
            model = sx.SoftmaxClassifier(**options, solver=solver, device=xp.device_flag)
            model.fit(xp.asarray(X, dtype), xp.asarray(y))
            xp.assert_here(model.coef_, dtype, (10, 64))
            assert model.objective_ == pytest.approx(expected.objective_, rel=1e-4)
            assert model.objective_ < 0.99 * float(sx.cross_entropy(np.zeros((100, 10)), y, loss="gce"))


@pytest.mark.parametrize("solver", ["auto", "newton-cg"])
@pytest.mark.parametrize("name", ["gce", "sce", "focal"])
def test_soft_targets_smoothing_and_weights_count_for_every_loss(name, solver):
    X, y = mislabelled(200)
    weight = np.arange(200) % 3
    targets = 0.8 * np.eye(10)[y] + 0.02
    options = {"loss": name, "solver": solver, "tol": 1e-9, "device": "cpu"}
    smoothed = sx.SoftmaxClassifier(label_smoothing=0.2, **options).fit(X, y, weight)
    soft = sx.SoftmaxClassifier(**options).fit(X, targets, weight)
    np.testing.assert_allclose(smoothed.coef_, soft.coef_, rtol=0, atol=1e-8)
    rows = np.repeat(np.arange(200), weight)
    repeated = sx.SoftmaxClassifier(**options).fit(X[rows], targets[rows])
    np.testing.assert_allclose(repeated.coef_, soft.coef_, rtol=0, atol=1e-4)
    assert repeated.objective_ == pytest.approx(soft.objective_, rel=1e-8)


def test_the_limits_of_the_losses_are_cross_entropy():
    X, y = mislabelled(300)
    expected = sx.SoftmaxClassifier(tol=1e-10, device="cpu").fit(X, y)
    for loss in (sx.CrossEntropy(), sx.Focal(gamma=0), sx.GeneralizedCrossEntropy(q=1e-9)):
        model = sx.SoftmaxClassifier(loss=loss, tol=1e-10, device="cpu").fit(X, y)
        np.testing.assert_allclose(model.coef_, expected.coef_, rtol=0, atol=1e-5)


def test_generalised_cross_entropy_bears_wrong_labels_better():
    X, y = load_digits(return_X_y=True)
    X, noisy = X / 16, y.copy()
    rng = np.random.default_rng(0)
    flipped = rng.random(1200) < 0.4
    noisy[:1200][flipped] = rng.integers(0, 10, flipped.sum())
    scores = {}
    for loss, C in itertools.product(("cross_entropy", "gce"), (0.03, 0.3, 3.0)):
        model = sx.SoftmaxClassifier(loss=loss, C=C, device="cpu").fit(X[:1200], noisy[:1200])
        scores[loss] = max(scores.get(loss, 0.0), model.score(X[1200:], y[1200:]))
    assert scores["gce"] > scores["cross_entropy"] + 0.01


def test_a_warm_start_goes_on_from_the_last_fit():
    X, y = mislabelled()
    model = sx.SoftmaxClassifier(loss="gce", warm_start=True, device="cpu").fit(X, y)
    steps, value = model.n_iter_[0], model.objective_
    model.fit(X, y)
    assert model.n_iter_[0] < steps / 2
    assert model.objective_ <= value


def test_a_fit_that_is_ended_early_reports_its_own_loss():
    X, y = mislabelled()
    for steps in (2, 12):
        stop = [lambda state, steps=steps: state.n_iter >= steps]
        model = sx.SoftmaxClassifier(loss="gce", callbacks=stop, device="cpu")
        with pytest.warns(ConvergenceWarning):
            model.fit(X, y)
        assert model.status_ == "stopped"
        assert model.objective_ == pytest.approx(objective_of(model, X, y, ("gce", 0.7), 1.0)[0], rel=1e-9)
        assert model.n_iter_[0] == steps
        model = sx.SoftmaxClassifier(loss="gce", max_iter=steps, device="cpu")
        with pytest.warns(ConvergenceWarning, match=f"max_iter={steps} steps taken.* a local minimum"):
            model.fit(X, y)
        assert model.n_iter_[0] == steps
        assert model.objective_ == pytest.approx(objective_of(model, X, y, ("gce", 0.7), 1.0)[0], rel=1e-9)


@pytest.mark.parametrize("loss", ["gce", "sce", "focal"])
def test_without_a_penalty_separated_rows_are_seen(loss):
    X, y = load_iris(return_X_y=True)
    model = sx.SoftmaxClassifier(C=np.inf, loss=loss, device="cpu")
    with pytest.warns(ConvergenceWarning, match="there is no minimum"):
        model.fit(X[:100], y[:100])
    assert model.status_ == "separated"


@pytest.mark.parametrize(
    "loss", ["gce", sx.GeneralizedCrossEntropy(q=0.5), sx.SymmetricCrossEntropy(beta=2), sx.Focal(3)]
)
def test_a_model_file_keeps_the_loss(loss, tmp_path):
    X, y = mislabelled(100)
    model = sx.SoftmaxClassifier(loss=loss, device="cpu").fit(X, y)
    model.save(tmp_path / "model")
    assert sx.load(tmp_path / "model", device="cpu").loss == loss
    assert clone(model).loss == loss
    assert pickle.loads(pickle.dumps(model)).loss == loss


@pytest.mark.parametrize("model", [lambda: sx.Linear(64, 10), lambda: sx.MLP([64, 8, 10])])
@pytest.mark.parametrize(("loss", "known"), FEW)
def test_a_trainer_takes_a_loss(xp, model, loss, known):
    X, y = mislabelled(200)
    for dtype in xp.float_dtypes:
        made = model()
        params = made.params_on(backend_of(xp.asarray(X, dtype)), xp.asarray(X, dtype).dtype)
        value, _ = made.value_and_grad(params, xp.asarray(X, dtype), xp.asarray(y), loss=loss)
        logits, _ = made.forward(params, xp.asarray(X, dtype))
        expected, _ = oracle.cross_entropy(xp.to_numpy(logits), y, loss=known)
        assert float(value) == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 1e-12)
        trainer = sx.Trainer(made, sx.SGD(0.1), max_steps=10, log_every=None, device=xp.device_flag, loss=loss)
        history = trainer.fit(
            xp.asarray(X, dtype), xp.asarray(y), validation_data=(xp.asarray(X, dtype), xp.asarray(y))
        )
        assert history.solution.objective < expected
        assert history.validation_loss[-1] == pytest.approx(history.solution.objective, rel=1e-4)
