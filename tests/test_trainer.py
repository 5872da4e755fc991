"""Trainer: the tutorial's loop on every library, where it stops, what it keeps, what it refuses."""

from __future__ import annotations

import gc
import math
import re
import sys
import warnings
import weakref

import numpy as np
import oracle
import pytest
from tolerances import TOLERANCE

import softmax_xp as sx
from softmax_xp import arrays, trainer as module
from softmax_xp.backend import Backend, backend_of, select_backend
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.batches import minibatches
from softmax_xp.rows.dense import DenseRows
from softmax_xp.solvers import State, lbfgs


def rows(rng, n=40, d=4, c=3):
    """Rows whose labels a linear model can half explain."""
    X = rng.normal(size=(n, d))
    return X, (X @ rng.normal(size=(d, c)) + rng.gumbel(size=(n, c))).argmax(axis=1)


def quiet(model, **options):
    return sx.Trainer(model, **{"log_every": None, **options})


def full_batch(model, max_steps=200, reg=0.1, **options):
    """A trainer that is at the optimum of `rows` after 200 steps: the problem is small and well conditioned."""
    optimizer = sx.SGD(learning_rate=0.3, momentum=0.8)
    return quiet(model, optimizer=optimizer, reg=reg, batch_size=10**6, max_steps=max_steps, **options)


def minimum(X, y, reg, weight=None, smoothing=0.0):
    """The least value of the Trainer's objective, by lbfgs in float64."""
    c = 3
    if smoothing:
        y = (1 - smoothing) * (np.eye(c)[y] if y.ndim == 1 else y) + smoothing / c
    f = LinearObjective(DenseRows(X, weight), y, c, Penalty(reg))
    solution = lbfgs.minimize(f.value_and_grad, np.zeros(f.n_params), tol=1e-13)
    assert solution.converged
    return solution.objective


def exact_objective(model, X, y, reg, weight=None):
    """The Trainer's objective of a linear model by the oracle."""
    W, b = (np.asarray(model.params[name], dtype=np.float64) for name in ("W", "b"))
    loss, *_ = oracle.linear_sums(W.T, b, X, y, weight)
    return loss / (len(X) if weight is None else np.sum(weight)) + 0.5 * reg * (W**2).sum()


def numpy_params(xp, model):
    return {name: xp.to_numpy(x) for name, x in model.params.items()}


def assert_same_params(model, other):
    assert model.params.keys() == other.params.keys()
    for name, x in model.params.items():
        np.testing.assert_array_equal(x, other.params[name])


class InterruptedAt(sx.Linear):
    """A linear model on which Ctrl-C is pressed during one of its passes forward."""

    def __init__(self, n_features, n_classes, passes):
        super().__init__(n_features, n_classes)
        self.passes = passes

    def forward(self, params, X):
        self.passes -= 1
        if self.passes == -1:
            raise KeyboardInterrupt
        return super().forward(params, X)


# The tutorial


def test_trainer_runs_the_tutorial(rng, capsys):
    means = 3 * rng.normal(size=(5, 20))
    y = rng.integers(0, 5, size=2000)
    X = means[y] + rng.normal(size=(2000, 20))
    model = sx.Linear(n_features=20, n_classes=5)
    history = sx.Trainer(
        model,
        optimizer=sx.SGD(learning_rate=1e-3, momentum=0.9),
        reg=1e-4,
        batch_size=256,
        max_steps=1000,
        log_every=100,
        device="cpu",
        random_state=0,
    ).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"iteration {step}: loss {history.loss[step - 1]:.6f}" for step in range(100, 1001, 100)]
    assert all(re.fullmatch(r"iteration \d+00: loss \d\.\d{6}", line) for line in lines)
    assert len(history.loss) == 1000
    assert history.loss[0] == pytest.approx(math.log(5), rel=1e-12)  # from zero weights
    assert history.loss[-1] < 0.05
    assert (model.predict(X) == y).mean() > 0.99
    solution = history.solution
    assert (solution.n_iter, solution.n_evaluations, solution.converged) == (1000, 1000, False)
    assert solution.message == "max_steps=1000 steps taken"
    assert solution.params is model.params
    assert solution.objective == pytest.approx(exact_objective(model, X, y, 1e-4), rel=1e-12)


@pytest.mark.parametrize(("log_every", "expected"), [(7, [7, 14, 21]), (1, list(range(1, 26))), (26, []), (None, [])])
def test_trainer_prints_every_log_every_steps(xp, rng, capsys, log_every, expected):
    X, y = rows(rng)
    trainer = sx.Trainer(sx.Linear(4, 3), max_steps=25, log_every=log_every)
    history = trainer.fit(xp.asarray(X), xp.asarray(y))
    out = capsys.readouterr().out
    assert out == "".join(f"iteration {step}: loss {history.loss[step - 1]:.6f}\n" for step in expected)
    assert len(history.loss) == 25
    assert all(type(loss) is float for loss in history.loss)


def test_history_loss_is_that_of_the_mini_batch_before_its_step(rng):
    X, y = rows(rng, n=50)
    weight = rng.uniform(0.5, 2, size=50)
    options = {"batch_size": 16, "optimizer": sx.SGD(0.5), "reg": 0.3}
    history = quiet(sx.Linear(4, 3), max_steps=6, **options).fit(X, y, sample_weight=weight)
    generator = np.random.default_rng(0)
    batches = [order[i : i + 16] for order in (generator.permutation(50) for _ in range(2)) for i in range(0, 50, 16)]
    assert [len(batch) for batch in batches[:4]] == [16, 16, 16, 2]
    for step in range(6):
        model = sx.Linear(4, 3)
        if step:
            quiet(model, max_steps=step, **options).fit(X, y, sample_weight=weight)
        batch = batches[step]
        loss, *_ = oracle.linear_sums(model.params["W"].T, model.params["b"], X[batch], y[batch], weight[batch])
        expected = loss / (len(batch) * weight.mean()) + 0.15 * (model.params["W"] ** 2).sum()
        assert history.loss[step] == pytest.approx(expected, rel=1e-12)


# The same on every library


def test_minibatches_are_the_same_on_every_library(xp):
    backend = backend_of(xp.asarray([[1.0]]))
    batches, rng = minibatches(backend, 10, 4, np.random.default_rng(3)), np.random.default_rng(3)
    for _ in range(3):
        order = rng.permutation(10)
        for start, size in ((0, 4), (4, 4), (8, 2)):
            batch = next(batches)
            xp.assert_here(batch, "int64", (size,))
            np.testing.assert_array_equal(xp.to_numpy(batch), order[start : start + 4])


@pytest.mark.parametrize(("n", "batch_size"), [(10, 10), (10, 11), (1, 5), (7, 1)])
def test_minibatches_of_an_epoch_hold_every_row_once(n, batch_size):
    batches = minibatches(select_backend("cpu"), n, batch_size, np.random.default_rng(0))
    for _ in range(2):
        epoch = np.concatenate([next(batches) for _ in range(-(-n // batch_size))])
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


def test_trainer_sees_the_same_rows_on_every_library(xp, rng):
    seen = []

    class Watching(sx.Linear):
        def value_and_grad(self, params, X, *args, **kwargs):
            seen.append(xp.to_numpy(X)[:, 0].tolist())
            return super().value_and_grad(params, X, *args, **kwargs)

    X, y = rows(rng, n=10)
    X[:, 0] = np.arange(10)
    for random_state in (5, np.random.default_rng(5)):
        seen.clear()
        trainer = quiet(Watching(4, 3), batch_size=4, max_steps=6, device=xp.device_flag, random_state=random_state)
        trainer.fit(xp.asarray(X), xp.asarray(y))
        generator = np.random.default_rng(5)
        orders = [generator.permutation(10) for _ in range(2)]
        assert seen[:6] == [order[i : i + 4].tolist() for order in orders for i in (0, 4, 8)]
        assert seen[6:] == [list(range(10))]  # the objective at the end


def test_trainer_takes_the_same_steps_on_every_library(xp, rng):
    X, y = rows(rng)
    weight, held_out = rng.uniform(0.5, 2, size=40), rows(rng)
    for dtype in xp.float_dtypes:

        def trained(asarray, dtype=dtype):
            model = sx.MLP([4, 6, 3])
            options = {"optimizer": sx.Adam(1e-2), "batch_size": 16, "max_steps": 30, "validate_every": 10}
            history = quiet(model, reg=0.01, label_smoothing=0.1, **options).fit(
                asarray(X.astype(dtype)),
                asarray(y),
                (asarray(held_out[0].astype(dtype)), asarray(held_out[1])),
                asarray(weight.astype(dtype)),
            )
            return model, history

        (model, history), (expected, expected_history) = trained(xp.asarray), trained(lambda x: x)
        _, bound = TOLERANCE["steps"][dtype]
        for name, x in model.params.items():
            xp.assert_here(x, dtype, expected.params[name].shape)
            np.testing.assert_allclose(xp.to_numpy(x), expected.params[name], rtol=0, atol=bound)
        for name in ("loss", "validation_loss"):
            np.testing.assert_allclose(getattr(history, name), getattr(expected_history, name), rtol=0, atol=bound)
        assert history.validation_accuracy == expected_history.validation_accuracy
        assert (history.validation_steps, history.best_step) == ([10, 20, 30], expected_history.best_step)


def test_trainer_converges_to_the_minimum_on_every_library(xp, rng):
    X, y = rows(rng)
    for dtype in xp.float_dtypes:
        model = sx.Linear(4, 3)
        history = full_batch(model).fit(xp.asarray(X, dtype), xp.asarray(y))
        expected = minimum(X.astype(dtype).astype("float64"), y, reg=0.1)
        relative, _ = TOLERANCE["optimum"][dtype]
        params = numpy_params(xp, model)
        model.params = params
        assert exact_objective(model, X.astype(dtype), y, 0.1) == pytest.approx(expected, rel=relative)
        assert history.solution.objective == pytest.approx(expected, rel=relative)
        assert history.solution.gradient_norm < {"float64": 1e-8, "float32": 1e-5}[dtype]


def test_trainer_converges_by_mini_batches_of_a_falling_rate(rng):
    X, y = rows(rng)
    model = sx.Linear(4, 3)
    schedule = sx.CosineSchedule(0.2, n_steps=3000, warmup=10)
    history = quiet(model, optimizer=sx.SGD(schedule), reg=0.1, batch_size=10, max_steps=3000).fit(X, y)
    assert history.solution.objective == pytest.approx(minimum(X, y, reg=0.1), rel=1e-3)


def test_solution_is_over_all_rows_in_blocks(xp, rng, monkeypatch):
    X, y = rows(rng)
    weight = rng.uniform(0.5, 2, size=40)
    for dtype in xp.float_dtypes:
        model = sx.Linear(4, 3)
        monkeypatch.setattr(arrays, "BLOCK_BYTES", 8 * 4 * 7)  # seven rows
        options = {"max_steps": 5, "validate_every": 5, "reg": 0.3, "batch_size": 16, "optimizer": sx.SGD(0.5)}
        data = (xp.asarray(X, dtype), xp.asarray(y))
        history = quiet(model, **options).fit(*data, data, xp.asarray(weight, dtype))
        model.params = numpy_params(xp, model)
        W, b = model.params["W"], model.params["b"]
        X_held, weight_held = X.astype(dtype), weight.astype(dtype)
        expected = exact_objective(model, X_held, y, 0.3, weight_held)
        relative, _ = TOLERANCE["loss"][dtype]
        assert history.solution.objective == pytest.approx(expected, rel=relative)
        _, grad, grad_b = oracle.linear_sums(W.T, b, X_held, y, weight_held)
        total = weight_held.astype("float64").sum()
        norm = math.sqrt(((grad / total + 0.3 * W.T.astype("float64")) ** 2).sum() + ((grad_b / total) ** 2).sum())
        assert history.solution.gradient_norm == pytest.approx(norm, rel=10 * relative)
        unweighted = exact_objective(model, X_held, y, 0.0)
        assert history.validation_loss == [pytest.approx(unweighted, rel=10 * relative)]
        assert history.validation_accuracy == [(model.predict(X_held) == y).mean()]


def test_params_come_back_where_x_is(xp, rng):
    X, y = rows(rng)
    for dtype in xp.float_dtypes:
        given, labels = xp.asarray(X, dtype), xp.asarray(y)
        model = sx.MLP([4, 5, 3])
        history = quiet(model, max_steps=3).fit(given, labels)
        for name, shape in {"W1": (4, 5), "b1": (5,), "W2": (5, 3), "b2": (3,)}.items():
            xp.assert_here(model.params[name], dtype, shape)
            assert history.solution.params[name] is model.params[name]
        np.testing.assert_array_equal(xp.to_numpy(given), X.astype(dtype))  # untouched
        np.testing.assert_array_equal(xp.to_numpy(labels), y)


def test_params_of_16_bit_data_are_float32(xp, rng):
    X, y = rows(rng)
    for dtype in {"numpy": ["float16"], "torch": ["float16", "bfloat16"]}.get(xp.name, []):
        model = sx.Linear(4, 3)
        quiet(model, max_steps=3).fit(xp.asarray(X, dtype), xp.asarray(y))
        xp.assert_here(model.params["W"], "float32", (4, 3))


def test_model_trained_on_one_library_predicts_on_another(xp, rng):
    X, y = rows(rng)
    model = sx.MLP([4, 8, 3])
    quiet(model, max_steps=50, optimizer=sx.Adam(1e-2)).fit(xp.asarray(X), xp.asarray(y))
    there, here = model.predict(xp.asarray(X)), model.predict(X)
    assert type(here) is np.ndarray
    np.testing.assert_array_equal(xp.to_numpy(there), here)


def test_y_and_weights_may_be_of_another_library_than_x(xp, rng):
    X, y = rows(rng)
    weight, targets = rng.uniform(0.5, 2, size=40), rng.dirichlet(np.ones(3), size=40)
    for labels in (y, targets):
        one, other, same = sx.Linear(4, 3), sx.Linear(4, 3), sx.Linear(4, 3)
        quiet(one, max_steps=5).fit(X, xp.asarray(labels), sample_weight=xp.asarray(weight))
        quiet(same, max_steps=5).fit(X, labels, sample_weight=weight)
        np.testing.assert_allclose(one.params["W"], same.params["W"], atol=1e-6)
        dtype = xp.float_dtypes[-1]
        quiet(other, max_steps=5).fit(xp.asarray(X), labels.astype(dtype) if labels.ndim == 2 else labels)
        xp.assert_here(other.params["W"], dtype, (4, 3))


def test_labels_may_have_any_integer_dtype(xp, rng):
    X, y = rows(rng)
    expected = quiet(sx.Linear(4, 3), max_steps=5).fit(xp.asarray(X), xp.asarray(y)).loss
    for dtype in ("int8", "uint8", "int16", "int32"):
        assert quiet(sx.Linear(4, 3), max_steps=5).fit(xp.asarray(X), xp.asarray(y, dtype)).loss == expected


def test_training_goes_on_where_the_model_is(rng):
    X, y = rows(rng)
    once, twice = sx.Linear(4, 3), sx.Linear(4, 3)
    quiet(once, max_steps=8, batch_size=40, optimizer=sx.SGD(0.1)).fit(X, y)
    for _ in range(2):
        quiet(twice, max_steps=4, batch_size=40, optimizer=sx.SGD(0.1)).fit(X, y)
    np.testing.assert_allclose(twice.params["W"], once.params["W"], rtol=0, atol=1e-14)


# The objective


def test_sample_weight_counts_rows(xp, rng):
    X, y = rows(rng, n=12)
    counts = rng.integers(0, 4, size=12)
    for dtype in xp.float_dtypes:
        weighted, repeated = sx.Linear(4, 3), sx.Linear(4, 3)
        one = full_batch(weighted).fit(
            xp.asarray(X, dtype), xp.asarray(y), sample_weight=xp.asarray(counts.astype(dtype) * 3)
        )
        other = full_batch(repeated).fit(
            xp.asarray(np.repeat(X, counts, axis=0), dtype), xp.asarray(np.repeat(y, counts))
        )
        relative, _ = TOLERANCE["optimum"][dtype]
        assert one.solution.objective == pytest.approx(other.solution.objective, rel=relative)
        W, W_other = (xp.to_numpy(model.params["W"]) for model in (weighted, repeated))
        np.testing.assert_allclose(W, W_other, atol={"float64": 1e-9, "float32": 1e-4}[dtype])
        held = X.astype(dtype).astype("float64")
        expected = minimum(held, y, 0.1, counts.astype("float64"))
        assert one.solution.objective == pytest.approx(expected, rel=relative)


def test_targets_may_be_probabilities(xp, rng):
    X, y = rows(rng)
    targets = 0.8 * np.eye(3)[y] + 0.2 * rng.dirichlet(np.ones(3), size=40)
    for dtype in xp.float_dtypes:
        given = (targets / targets.sum(axis=1, keepdims=True)).astype(dtype)
        held_out = (xp.asarray(X, dtype), xp.asarray(given))
        model = sx.Linear(4, 3)
        history = full_batch(model).fit(xp.asarray(X, dtype), xp.asarray(given), held_out)
        expected = minimum(X.astype(dtype).astype("float64"), given.astype("float64"), 0.1)
        assert history.solution.objective == pytest.approx(expected, rel=TOLERANCE["optimum"][dtype][0])
        accuracy = (xp.to_numpy(model.predict(xp.asarray(X, dtype))) == given.argmax(axis=1)).mean()
        assert history.validation_accuracy[-1] == accuracy


def test_one_hot_probabilities_are_labels(rng):
    X, y = rows(rng)
    labels = quiet(sx.Linear(4, 3), max_steps=20).fit(X, y)
    one_hot = quiet(sx.Linear(4, 3), max_steps=20).fit(X, np.eye(3)[y])
    np.testing.assert_allclose(one_hot.loss, labels.loss, rtol=1e-12)


@pytest.mark.parametrize("probabilities", [False, True])
def test_label_smoothing_mixes_the_targets_with_the_uniform_ones(rng, probabilities):
    X, y = rows(rng)
    y = rng.dirichlet(np.ones(3), size=40) if probabilities else y
    history = full_batch(sx.Linear(4, 3), label_smoothing=0.2).fit(X, y)
    assert history.solution.objective == pytest.approx(minimum(X, y, 0.1, smoothing=0.2), rel=1e-9)


def test_intercept_is_not_penalised(rng):
    X, y = rows(rng)
    model = sx.Linear(4, 3)
    quiet(model, optimizer=sx.SGD(0.05, momentum=0.8), reg=10.0, batch_size=40, max_steps=500).fit(X, y)
    assert abs(model.params["W"]).max() < 0.05
    share = np.exp(model.params["b"]) / np.exp(model.params["b"]).sum()
    np.testing.assert_allclose(share, np.bincount(y, minlength=3) / 40, atol=5e-3)


# Validation, patience, callbacks


def test_validation_is_measured_every_validate_every_steps(xp, rng):
    (X, y), (X_val, y_val) = rows(rng), rows(rng, n=25)
    for dtype in xp.float_dtypes:
        held_out = (xp.asarray(X_val, dtype), xp.asarray(y_val))
        model = sx.Linear(4, 3)
        history = quiet(model, max_steps=20, validate_every=6, reg=0.5).fit(
            xp.asarray(X, dtype), xp.asarray(y), held_out
        )
        assert history.validation_steps == [6, 12, 18, 20]  # the last step too
        model = sx.Linear(4, 3)
        quiet(model, max_steps=20, reg=0.5).fit(xp.asarray(X, dtype), xp.asarray(y))
        expected = float(sx.cross_entropy(model(held_out[0]), held_out[1]))  # without the penalty
        assert history.validation_loss[-1] == pytest.approx(expected, rel=1e-6)
        hits = xp.to_numpy(model.predict(held_out[0])) == y_val
        assert history.validation_accuracy[-1] == hits.mean()
        for number in (*history.validation_loss, *history.validation_accuracy):
            assert type(number) is float


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"log_every": 5}, [5, 10, 15, 20]),
        ({"log_every": 5, "validate_every": 8}, [8, 16, 20]),
        ({"log_every": None, "validate_every": 20}, [20]),
        ({"log_every": None}, [20]),  # every 100, and after the last step
    ],
)
def test_validation_follows_log_every_by_default(rng, capsys, options, expected):
    X, y = rows(rng)
    history = sx.Trainer(sx.Linear(4, 3), max_steps=20, **options).fit(X, y, (X, y))
    assert history.validation_steps == expected
    assert len(capsys.readouterr().out.splitlines()) == (4 if options["log_every"] else 0)


@pytest.fixture
def overfitted(rng):
    """Training data of random labels, so that what is learned from them soon harms the held-out rows."""
    X, y = rng.normal(size=(30, 10)), rng.integers(0, 3, size=30)
    held_out = rng.normal(size=(30, 10)), rng.integers(0, 3, size=30)

    def fit(max_steps, patience, **options):
        model = sx.MLP([10, 20, 3], random_state=4)
        optimizer = sx.Adam(learning_rate=3e-3)
        options = {"optimizer": optimizer, "batch_size": 10, "validate_every": 2, "patience": patience, **options}
        return model, quiet(model, max_steps=max_steps, **options).fit(X, y, held_out)

    return fit


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_the_training_with_the_best_weights(overfitted, patience):
    model, history = overfitted(500, patience)
    best = history.best_step
    at_best = history.validation_steps.index(best)
    assert history.validation_loss[at_best] == min(history.validation_loss)
    assert len(history.loss) == best + 2 * patience < 500
    assert history.validation_steps == list(range(2, best + 2 * patience + 1, 2))
    assert all(loss >= history.validation_loss[at_best] for loss in history.validation_loss[at_best + 1 :])
    assert history.solution.converged
    assert history.solution.message == f"the validation loss was lowest after {best} steps"
    at_the_best_step, _ = overfitted(best, None)
    assert_same_params(model, at_the_best_step)
    assert history.solution.params is model.params
    last, _ = overfitted(len(history.loss), None)
    assert (last.params["W1"] != model.params["W1"]).any()


def test_patience_that_does_not_run_out_still_gives_the_best_weights(overfitted):
    model, history = overfitted(60, 1000)
    assert len(history.loss) == 60
    assert history.best_step < 60
    assert not history.solution.converged
    assert_same_params(model, overfitted(history.best_step, None)[0])


def test_without_patience_the_last_weights_are_kept(overfitted):
    model, history = overfitted(60, None)
    assert history.best_step < 60 == len(history.loss)
    stopped, _ = overfitted(60, None, validate_every=60)
    assert_same_params(model, stopped)


def test_callbacks_are_called_every_log_every_steps(xp, rng):
    calls = []

    def note(progress):
        calls.append((progress.step, progress.loss, xp.to_numpy(progress.params["W"]).copy()))
        assert progress.loss == progress.history.loss[-1]
        assert len(progress.history.loss) == progress.step
        xp.assert_here(progress.params["W"], xp.float_dtypes[-1], (4, 3))

    X, y = rows(rng)
    model = sx.Linear(4, 3)
    trainer = sx.Trainer(
        model, max_steps=20, log_every=5, device=xp.device_flag, callbacks=[note, lambda progress: None]
    )
    history = trainer.fit(xp.asarray(X), xp.asarray(y))
    assert [step for step, *_ in calls] == [5, 10, 15, 20]
    assert [loss for _, loss, _ in calls] == [history.loss[step - 1] for step in (5, 10, 15, 20)]
    np.testing.assert_array_equal(calls[-1][2], xp.to_numpy(model.params["W"]))
    calls.clear()
    trainer = quiet(sx.Linear(4, 3), max_steps=250, device=xp.device_flag, callbacks=(note,))
    trainer.fit(xp.asarray(X), xp.asarray(y))
    assert [step for step, *_ in calls] == [100, 200]


def test_progress_is_a_state(rng):
    X, y = rows(rng)
    seen = []
    quiet(sx.Linear(4, 3), optimizer=sx.Adam(), max_steps=200, callbacks=[seen.append]).fit(X, y)
    assert [(progress.step, progress.n_iter, progress.n_evaluations) for progress in seen] == [(100,) * 3, (200,) * 3]
    for progress in seen:
        assert isinstance(progress, State)
        assert progress.loss == progress.objective == progress.history.loss[progress.step - 1]
        assert progress.status is None
        assert set(progress.memory["optimizer"]) == {"mean", "square"}


def test_a_fit_leaves_no_reference_cycle(rng):
    """A cycle would keep the data on a GPU until Python collects cycles."""
    X, y = rows(rng)

    class Steps(sx.SGD):
        """Held by the solver alone."""

    alive = []
    gc.collect()
    gc.disable()
    try:
        for fit in (
            lambda optimizer: quiet(sx.Linear(4, 3), optimizer=optimizer, max_steps=3).fit(X, y),
            lambda optimizer: sx.SoftmaxClassifier(solver=optimizer, tol=1e3, device="cpu").fit(X, y),
        ):
            optimizer = Steps(0.1)
            alive.append(weakref.ref(optimizer))
            fit(optimizer)
            del optimizer
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


def test_a_callback_that_returns_true_ends_the_training(rng, capsys):
    X, y = rows(rng)
    called = []
    trainer = sx.Trainer(
        sx.Linear(4, 3),
        max_steps=100,
        log_every=5,
        callbacks=[lambda progress: progress.step >= 10, lambda progress: called.append(progress.step)],
    )
    history = trainer.fit(X, y)
    assert called == [5, 10]  # the others are still told
    assert len(history.loss) == history.solution.n_iter == 10
    assert (history.solution.converged, history.solution.message) == (False, "ended by a callback after 10 steps")
    model = sx.Linear(4, 3)
    quiet(model, max_steps=10).fit(X, y)
    assert_same_params(trainer.model, model)
    assert len(capsys.readouterr().out.splitlines()) == 2


# Ctrl-C, divergence


def test_interrupted_in_a_callback_returns_what_has_been_learned(rng):
    def interrupt(progress):
        if progress.step == 10:
            raise KeyboardInterrupt

    X, y = rows(rng)
    model, expected = sx.Linear(4, 3), sx.Linear(4, 3)
    history = sx.Trainer(model, max_steps=100, log_every=5, callbacks=[interrupt]).fit(X, y)
    quiet(expected, max_steps=10).fit(X, y)
    assert_same_params(model, expected)
    assert len(history.loss) == history.solution.n_iter == 10
    assert (history.solution.converged, history.solution.message) == (False, "interrupted after 10 steps")
    assert history.solution.objective == pytest.approx(exact_objective(model, X, y, 0.0), rel=1e-12)


@pytest.mark.parametrize("passes", [0, 1, 7])
def test_interrupted_in_the_model_returns_what_has_been_learned(xp, rng, passes):
    X, y = rows(rng)
    model, expected = InterruptedAt(4, 3, passes), sx.Linear(4, 3)
    history = quiet(model, max_steps=100).fit(xp.asarray(X), xp.asarray(y))
    if passes:
        quiet(expected, max_steps=passes).fit(xp.asarray(X), xp.asarray(y))
        expected.params = numpy_params(xp, expected)
    np.testing.assert_array_equal(xp.to_numpy(model.params["W"]), expected.params["W"])
    assert len(history.loss) == history.solution.n_iter == passes
    assert history.solution.message == f"interrupted after {passes} steps"


def test_interrupted_with_patience_returns_the_best_weights(overfitted):
    def interrupt(progress):
        if progress.step == 60:
            raise KeyboardInterrupt

    _, history = overfitted(60, 1000)
    model, interrupted = overfitted(500, 1000, log_every=60, callbacks=[interrupt])
    assert interrupted.best_step == history.best_step
    assert interrupted.solution.message == "interrupted after 60 steps"
    assert_same_params(model, overfitted(history.best_step, None)[0])


def explode_at(step):
    return sx.SGD(lambda n: 1e300 if n >= step else 0.1)


@pytest.mark.parametrize(
    ("explodes", "log_every", "loss_step", "kept"),
    [
        (0, 10, 2, 0),  # before any loss has been fetched: the weights it started from
        (34, 10, 36, 29),  # those of the last loss that was fetched and is finite, that of step 30
        (10, 10, 12, 9),
        (34, None, 36, 0),
        (49, 50, 51, 49),  # by the last step of all: every loss is finite, the weights are not
    ],
)
def test_divergence_warns_and_keeps_finite_weights(rng, capsys, explodes, log_every, loss_step, kept):
    X, y = rows(rng)
    model, expected = sx.Linear(4, 3), sx.Linear(4, 3)
    trainer = sx.Trainer(model, optimizer=explode_at(explodes), max_steps=50, log_every=log_every, reg=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = trainer.fit(100 * X, y)
    (warning,) = caught  # one, and none of NumPy's own
    assert warning.category is RuntimeWarning
    assert warning.filename == __file__
    assert f"stopped being finite at step {loss_step}; the last finite weights are kept" in str(warning.message)
    assert "Lower the learning rate" in str(warning.message)
    if kept:
        sx.Trainer(expected, optimizer=sx.SGD(0.1), max_steps=kept, log_every=None, reg=0.1).fit(100 * X, y)
    assert_same_params(model, expected)
    assert math.isfinite(history.solution.objective)
    assert math.isfinite(history.solution.gradient_norm)
    assert history.solution.message == f"the loss stopped being finite at step {loss_step}"
    assert not history.solution.converged
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_divergence_is_noticed_on_every_library(xp, rng, bad):
    class Bad(sx.Linear):
        def value_and_grad(self, params, X, *args, **kwargs):
            value, grads = super().value_and_grad(params, X, *args, **kwargs)
            wrong = float(bad) if X.shape[0] < 40 else 0.0  # in the mini-batches, not in the objective at the end
            return value + wrong, {name: g + wrong for name, g in grads.items()}

    X, y = rows(rng)
    model = Bad(4, 3)
    with pytest.warns(RuntimeWarning, match="stopped being finite at step 1; the last finite weights"):
        history = quiet(model, max_steps=20, batch_size=10).fit(xp.asarray(X), xp.asarray(y))
    np.testing.assert_array_equal(xp.to_numpy(model.params["W"]), np.zeros((4, 3)))
    assert history.solution.objective == pytest.approx(math.log(3), rel=1e-6)


def test_divergence_with_patience_warns_and_keeps_the_best_weights(overfitted):
    with pytest.warns(RuntimeWarning, match=r"stopped being finite at step 2[12]; the last finite weights are kept"):
        model, history = overfitted(50, 1000, optimizer=sx.SGD(lambda n: 1e300 if n >= 20 else 0.05))
    assert history.solution.message.startswith("the loss stopped being finite")
    assert history.best_step <= 20
    expected, _ = overfitted(history.best_step, None, optimizer=sx.SGD(0.05))
    assert_same_params(model, expected)


def test_huge_features_do_not_diverge(rng):
    """Logits of 1e5 and more are nothing special: the loss is finite, and so are the weights."""
    X, y = rows(rng)
    history = quiet(sx.Linear(4, 3), max_steps=50, optimizer=sx.SGD(1.0)).fit(1e5 * X, y)
    assert np.isfinite(history.loss).all()


# What crosses from and to the device


@pytest.mark.parametrize("batch_size", [40, 10])
def test_data_are_placed_on_the_device_once(xp, rng, monkeypatch, batch_size):
    placed = []
    asarray = Backend.asarray

    def counting(self, x, dtype=None):
        placed.append(tuple(x.shape))
        return asarray(self, x, dtype)

    monkeypatch.setattr(Backend, "asarray", counting)
    X, y = rows(rng)
    calls = {}
    for max_steps in (20, 60):
        placed.clear()
        quiet(sx.Linear(4, 3), batch_size=batch_size, max_steps=max_steps).fit(
            xp.asarray(X), xp.asarray(y), (xp.asarray(X[:7]), xp.asarray(y[:7])), xp.asarray(np.ones(40))
        )
        assert placed.count((40, 4)) == placed.count((7, 4)) == 1
        calls[max_steps] = len(placed)
    epochs = 40 * batch_size // 40  # between 20 and 60 steps: one permutation is placed for each
    assert calls[60] - calls[20] == epochs


def test_no_step_brings_a_number_to_the_host(rng, monkeypatch):
    """On array-api-strict, whose arrays go through Python's own hooks: losses are fetched together, once."""
    xp = pytest.importorskip("array_api_strict")
    fetched = []

    def counted(name):
        method = getattr(kind, name)
        return lambda self, *args: fetched.append(name) or method(self, *args)

    kind = type(xp.asarray(0.0))
    for name in ("__float__", "__int__", "__bool__", "__index__", "__complex__"):
        monkeypatch.setattr(kind, name, counted(name))
    to_numpy = module.to_numpy
    monkeypatch.setattr(module, "to_numpy", lambda x: fetched.append("to_numpy") or to_numpy(x))
    X, y = rows(rng)
    calls = []
    for max_steps in (10, 90):
        fetched.clear()
        for model, optimizer in ((sx.MLP([4, 5, 3]), sx.AdamW()), (sx.Linear(4, 3), None)):
            quiet(model, batch_size=10, max_steps=max_steps, optimizer=optimizer).fit(xp.asarray(X), xp.asarray(y))
        calls.append(fetched.copy())
    assert calls[0] == calls[1]
    assert calls[0].count("to_numpy") == 2


def test_losses_wait_on_the_device_only_so_long(rng, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_EVERY", 4)
    fetched, to_numpy = [], module.to_numpy
    monkeypatch.setattr(module, "to_numpy", lambda x: fetched.append(x.shape) or to_numpy(x))
    X, y = rows(rng)
    history = quiet(sx.Linear(4, 3), max_steps=10).fit(X, y)
    assert fetched == [(4,), (4,), (2,)]
    assert len(history.loss) == 10


# History.plot


@pytest.fixture
def history():
    losses = [1.0 / (1 + 0.1 * i) for i in range(200)]
    return sx.History(losses, [50, 100, 150, 200], [0.9, 0.5, 0.4, 0.6], [0.5, 0.6, 0.7, 0.6], best_step=150)


def test_plot_writes_a_file(history, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "loss.png"
    figure = history.plot(str(path))
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")
    batch, smooth, validation, best = axes.lines
    np.testing.assert_array_equal(batch.get_xydata(), np.column_stack([np.arange(1, 201), history.loss]))
    np.testing.assert_array_equal(validation.get_xydata(), np.column_stack([[50, 100, 150, 200], [0.9, 0.5, 0.4, 0.6]]))
    np.testing.assert_array_equal(smooth.get_xdata(), np.arange(4, 201))
    assert smooth.get_ydata()[-1] == pytest.approx(np.mean(history.loss[-4:]))
    assert set(best.get_xdata()) == {150}


@pytest.mark.parametrize("n", [0, 1, 30])
def test_plot_draws_short_histories(n, tmp_path):
    pytest.importorskip("matplotlib")
    figure = sx.History([0.5] * n).plot()
    assert len(figure.axes[0].lines) == 1
    figure.savefig(tmp_path / "loss.svg")


def test_plot_without_matplotlib_tells_how_to_install_it(history, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError) as caught:
        history.plot()
    assert "pip install 'matplotlib>=3.9'" in str(caught.value)


# Devices


def test_a_device_that_is_not_there_is_refused_before_any_data(rng):
    if any(device.usable and device.name.startswith("cuda") for device in sx.devices()):
        pytest.skip("a usable GPU is here")
    for device in ("cuda", "cuda:1"):
        with pytest.raises(sx.DeviceUnavailableError) as caught:
            sx.Trainer(sx.Linear(4, 3), device=device)
        assert f"device {device!r} cannot be used: " in str(caught.value)
        assert "or choose device='cpu'" in str(caught.value)


def test_params_that_another_library_computed_come_back_where_x_is(xp, rng):
    X, y = rows(rng)
    model = sx.Linear(4, 3)
    quiet(model, max_steps=2, device="cpu").fit(xp.asarray(X), xp.asarray(y))
    xp.assert_here(model.params["W"], xp.float_dtypes[-1], (4, 3))  # computed by NumPy, and brought back


# Errors


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reg": -1.0}, ValueError, ["`reg`", "[0, inf)", "-1.0", "choose a value"]),
        ({"reg": math.inf}, ValueError, ["`reg`", "[0, inf)", "inf", "choose a value"]),
        ({"reg": math.nan}, ValueError, ["`reg`", "nan", "choose a value"]),
        ({"reg": "none"}, TypeError, ["`reg`", "real number", "'none'", "pass a float"]),
        ({"batch_size": 0}, ValueError, ["`batch_size`", "at least 1", "got 0", "choose a value"]),
        ({"batch_size": 2.5}, TypeError, ["`batch_size`", "integer", "2.5", "pass an int"]),
        ({"batch_size": True}, TypeError, ["`batch_size`", "integer", "True", "pass an int"]),
        ({"max_steps": 0}, ValueError, ["`max_steps`", "at least 1", "got 0", "choose a value"]),
        ({"max_steps": None}, TypeError, ["`max_steps`", "integer", "None", "pass an int"]),
        ({"log_every": 0}, ValueError, ["`log_every`", "at least 1", "got 0", "choose a value"]),
        ({"validate_every": -5}, ValueError, ["`validate_every`", "at least 1", "got -5", "choose a value"]),
        ({"patience": 0}, ValueError, ["`patience`", "at least 1", "got 0", "choose a value"]),
        ({"label_smoothing": -0.1}, ValueError, ["`label_smoothing`", "[0, 1]", "-0.1", "choose a value"]),
        ({"label_smoothing": 1.5}, ValueError, ["`label_smoothing`", "[0, 1]", "1.5", "choose a value"]),
        ({"device": "gpu"}, ValueError, ["`device`", "'auto', 'cpu', 'cuda'", "'gpu'", "devices()"]),
        ({"device": 0}, ValueError, ["`device`", "'auto', 'cpu', 'cuda'", "got 0", "devices()"]),
        ({"optimizer": "adam"}, TypeError, ["`optimizer`", "SGD, Adam", "'adam'", "for example"]),
        ({"optimizer": sx.Adam}, TypeError, ["`optimizer`", "SGD, Adam", "class", "instance"]),
        ({"callbacks": print}, TypeError, ["`callbacks`", "sequence", "print", "list"]),
        ({"callbacks": [1]}, TypeError, ["`callbacks`", "callables", "[1]", "list"]),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_name_rule_value_and_remedy(options, error, words):
    with pytest.raises(error) as caught:
        sx.Trainer(sx.Linear(4, 3), **options)
    for word in words:
        assert word in str(caught.value)


def changed(x, index, value):
    x = x.copy()
    x[index] = value
    return x


X_GOOD, Y_GOOD, P_GOOD = np.ones((6, 4)), np.arange(6) % 3, np.full((6, 3), 1 / 3)
BAD_DATA = {
    # y
    "label above": ({"y": changed(Y_GOOD, 4, 3)}, ValueError, ["`y`", "[0, 3)", "got 3 at row 4", "encode them first"]),
    "label below": ({"y": changed(Y_GOOD, 2, -1)}, ValueError, ["`y`", "[0, 3)", "got -1 at row 2", "encode"]),
    "fractional labels": ({"y": Y_GOOD + 0.5}, TypeError, ["`y`", "integer class indices", "float", "encode them"]),
    "boolean labels": ({"y": Y_GOOD > 0}, TypeError, ["`y`", "integer class indices", "bool", "encode them"]),
    "labels too few": ({"y": Y_GOOD[:5]}, ValueError, ["`y`", "one entry per row of `X` (6)", "got 5", "same rows"]),
    "labels as a column": ({"y": Y_GOOD[:, None]}, ValueError, ["`y`", "(n_samples,)", "(6, 1)", "y.reshape(-1)"]),
    "labels of rank 0": ({"y": np.array(1)}, ValueError, ["`y`", "(n_samples,)", "()", "y.reshape(-1)"]),
    "no labels": ({"y": Y_GOOD[:0]}, ValueError, ["`y`", "(n_samples,)", "(0,)", "at least one"]),
    "a list of labels": ({"y": [0, 1, 2, 0, 1, 2]}, TypeError, ["`y`", "array", "list", "numpy.asarray(y)"]),
    "y is None": ({"y": None}, TypeError, ["`y`", "array", "NoneType", "numpy.asarray(y)"]),
    "wrong columns": ({"y": np.full((6, 2), 0.5)}, ValueError, ["`y`", "(n_samples, 3)", "(6, 2)", "one column per"]),
    "a sum of 2": ({"y": P_GOOD * 2}, ValueError, ["`y`", "sum to 1", "2", "at row 0", "divide each row"]),
    "negative": ({"y": changed(P_GOOD, 1, [-1, 1, 1])}, ValueError, ["`y`", "negative", "-1", "normalise"]),
    "NaN probability": ({"y": changed(P_GOOD, (3, 1), np.nan)}, ValueError, ["`y`", "finite", "NaN", "row 3"]),
    "probabilities too few": ({"y": P_GOOD[1:]}, ValueError, ["`y`", "one entry per row of `X` (6)", "got 5", "same"]),
    # X
    "NaN": ({"X": changed(X_GOOD, (4, 2), np.nan)}, ValueError, ["`X`", "finite", "NaN", "row 4, column 2", "drop"]),
    "inf": ({"X": changed(X_GOOD, (0, 3), np.inf)}, ValueError, ["`X`", "finite", "inf", "row 0, column 3", "impute"]),
    "integer X": ({"X": X_GOOD.astype("int64")}, TypeError, ["`X`", "real floating", "int64", "float32"]),
    "wide X": ({"X": np.ones((6, 5))}, ValueError, ["`X`", "n_features=4", "got 5", "make the model for this X"]),
    "empty X": ({"X": X_GOOD[:0], "y": Y_GOOD[:0]}, ValueError, ["`X`", "no empty axis", "(0, 4)", "at least one row"]),
    "X of rank 1": ({"X": np.ones(6)}, ValueError, ["`X`", "(n_samples, n_features)", "(6,)", "reshape"]),
    "X of rank 3": ({"X": np.ones((6, 2, 2))}, ValueError, ["`X`", "(n_samples, n_features)", "(6, 2, 2)", "reshape"]),
    "a list of rows": ({"X": X_GOOD.tolist()}, TypeError, ["`X`", "array", "list", "numpy.asarray(X)"]),
    # weights
    "negative weight": (
        {"sample_weight": changed(np.ones(6), 3, -2)},
        ValueError,
        ["`sample_weight`", "-2.0", "row 3"],
    ),
    "zero weights": (
        {"sample_weight": np.zeros(6)},
        ValueError,
        ["`sample_weight`", "all zero", "6 zeros", "at least"],
    ),
    "NaN weight": ({"sample_weight": changed(np.ones(6), 3, np.nan)}, ValueError, ["`sample_weight`", "finite", "nan"]),
    "weights too few": (
        {"sample_weight": np.ones(5)},
        ValueError,
        ["`sample_weight`", "`X` (6)", "got 5", "same rows"],
    ),
    "weight column": ({"sample_weight": np.ones((6, 1))}, ValueError, ["`sample_weight`", "(n_samples,)", "(6, 1)"]),
    "integer weights": (
        {"sample_weight": np.ones(6, int)},
        TypeError,
        ["`sample_weight`", "floating", "int", "float32"],
    ),
    "a list of weights": ({"sample_weight": [1.0] * 6}, TypeError, ["`sample_weight`", "array", "list", "asarray"]),
    # validation data
    "wide X_val": ({"validation_data": (np.ones((6, 5)), Y_GOOD)}, ValueError, ["`X_val`", "n_features=4", "got 5"]),
    "y_val above": ({"validation_data": (X_GOOD, Y_GOOD + 1)}, ValueError, ["`y_val`", "[0, 3)", "got 3 at row 2"]),
    "y_val too few": (
        {"validation_data": (X_GOOD, Y_GOOD[1:])},
        ValueError,
        ["`y_val`", "row of `X_val` (6)", "got 5"],
    ),
    "X_val alone": ({"validation_data": X_GOOD}, TypeError, ["`validation_data`", "(X_val, y_val)", "(6, 4)", "tuple"]),
    "one of a pair": ({"validation_data": (X_GOOD,)}, TypeError, ["`validation_data`", "(X_val, y_val)", "both"]),
}


@pytest.mark.parametrize("name", list(BAD_DATA))
def test_bad_data_are_refused_with_name_rule_value_and_remedy(xp, name):
    change, error, words = BAD_DATA[name]

    def given(x):
        if isinstance(x, tuple):
            return tuple(given(part) for part in x)
        return xp.asarray(x) if isinstance(x, np.ndarray) else x

    arguments = {key: given(x) for key, x in {"X": X_GOOD, "y": Y_GOOD, **change}.items()}
    model = sx.Linear(4, 3)
    with pytest.raises(error) as caught:
        quiet(model, max_steps=2).fit(**arguments)
    for word in words:
        assert word in str(caught.value)
    assert type(model.params["W"]) is np.ndarray  # nothing has happened to the model


def test_sound_data_are_not_refused(xp):
    """What the table of bad data is a change of."""
    for y in (Y_GOOD, P_GOOD):
        given = y.astype("float32") if y.ndim == 2 and "float64" not in xp.float_dtypes else y
        quiet(sx.Linear(4, 3), max_steps=2).fit(xp.asarray(X_GOOD), xp.asarray(given))


def test_patience_without_validation_data_is_refused(rng):
    X, y = rows(rng)
    with pytest.raises(ValueError, match="`patience` needs validation data, got patience=2 and none; pass"):
        sx.Trainer(sx.Linear(4, 3), patience=2).fit(X, y)
