"""Linear and MLP: gradients, initial weights, and logits that come back where X is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracle
import pytest

import softmax_xp as sx
from softmax_xp import arrays
from softmax_xp.backend import backend_of

ARCHITECTURES = {
    "linear": lambda: sx.Linear(4, 3),
    "one layer": lambda: sx.MLP([4, 3], random_state=1),
    "relu": lambda: sx.MLP([4, 6, 3], random_state=1),
    "tanh": lambda: sx.MLP([4, 6, 3], activation="tanh", random_state=1),
    "deep relu": lambda: sx.MLP([4, 7, 5, 3], random_state=1),
    "deep tanh": lambda: sx.MLP([4, 7, 5, 3], activation="tanh", random_state=1),
}
OPTIONS = {
    "labels": {},
    "penalty": {"reg": 0.3},
    "weight": {"weight": True},
    "probabilities": {"probabilities": True, "reg": 0.1},
    "smoothing": {"label_smoothing": 0.2, "weight": True, "reg": 0.1},
}


@pytest.fixture(params=list(ARCHITECTURES))
def model(request, rng):
    """A model whose parameters, intercepts too, are all away from zero."""
    model = ARCHITECTURES[request.param]()
    model.params = {name: x + 0.3 * rng.normal(size=x.shape) for name, x in model.params.items()}
    return model


class Rows:
    """Nine rows for the models above, in a library's arrays, and the other arguments of value_and_grad."""

    def __init__(self, xp, rng, dtype, reg=0.0, label_smoothing=0.0, weight=False, probabilities=False):
        self.xp, self.dtype = xp, dtype
        self.exact_X = rng.normal(size=(9, 4))
        self.exact_t = rng.dirichlet(np.ones(3), size=9) if probabilities else rng.integers(0, 3, size=9)
        self.exact_weight = rng.uniform(0.5, 2.0, size=9) if weight else None
        self.X = xp.asarray(self.exact_X, dtype)
        self.t = xp.asarray(self.exact_t, dtype) if probabilities else xp.asarray(self.exact_t)
        self.weight = None if self.exact_weight is None else xp.asarray(self.exact_weight, dtype)
        self.reg, self.label_smoothing = reg, label_smoothing

    def value_and_grad(self, model, params):
        params = {name: self.xp.asarray(x, self.dtype) for name, x in params.items()}
        return model.value_and_grad(params, self.X, self.t, self.reg, self.weight, self.label_smoothing)


def exact_forward(model, params, X):
    """The logits of a model, and what enters each activation, in NumPy."""
    entering, h = [], X
    for layer in range(len(model.sizes) - 1):
        weight, intercept = model.layer_names(layer)
        h = h @ params[weight] + params[intercept]
        if layer < len(model.sizes) - 2:
            entering.append(h)
            h = np.tanh(h) if model.activation == "tanh" else np.maximum(h, 0)
    return h, entering


@pytest.mark.parametrize("options", list(OPTIONS))
def test_model_value_is_the_oracles(xp, rng, model, options):
    for dtype in xp.float_dtypes:
        rows = Rows(xp, rng, dtype, **OPTIONS[options])
        value, _ = rows.value_and_grad(model, model.params)
        logits, _ = exact_forward(model, model.params, rows.exact_X)
        weight = np.full(9, 1 / 9) if rows.exact_weight is None else rows.exact_weight
        expected, _ = oracle.cross_entropy(logits, rows.exact_t, weight, rows.label_smoothing, reduction="sum")
        squares = sum((x**2).sum() for name, x in model.params.items() if name.startswith("W"))
        expected += 0.5 * rows.reg * squares
        extra = 0.0 if dtype == "float64" else 2e-6 * expected  # the arguments are rounded too
        xp.assert_close(value, expected, xp.float_dtypes[-1], "loss", extra)


@pytest.mark.parametrize("options", list(OPTIONS))
def test_model_grad_is_the_central_difference_of_value(xp, rng, model, options):
    """In float64; where there is none, the gradient is that of NumPy in float64."""
    rows = Rows(xp, rng, xp.float_dtypes[-1], **OPTIONS[options])
    if model.activation == "relu":  # no difference reaches across a kink
        _, entering = exact_forward(model, model.params, rows.exact_X)
        assert min((abs(h).min() for h in entering), default=1.0) > 1e-3
    value, grads = rows.value_and_grad(model, model.params)
    xp.assert_here(value, xp.float_dtypes[-1], ())
    assert sorted(grads) == sorted(model.params)
    for name, x in model.params.items():

        def of_one(moved, name=name):
            return rows.value_and_grad(model, {**model.params, name: moved})[0]

        if rows.dtype == "float64":
            xp.assert_close(grads[name], oracle.central_difference(of_one, x), "float64", "difference")
        else:
            weight = np.full(9, 1 / 9) if rows.exact_weight is None else rows.exact_weight
            _, expected = model.value_and_grad(
                model.params, rows.exact_X, rows.exact_t, rows.reg, weight, rows.label_smoothing
            )
            xp.assert_close(grads[name], expected[name], "float32", "grad", extra=1e-6)


def test_model_grad_does_not_cross_the_kink_of_relu():
    """Where a unit is off, nothing below it learns from the row; at 0 it counts as off."""
    model = sx.MLP([1, 1, 2])
    params = {"W1": np.array([[1.0]]), "b1": np.zeros(1), "W2": np.array([[1.0, -1.0]]), "b2": np.zeros(2)}
    for x, learns in ((-1.0, False), (0.0, False), (1.0, True)):
        _, grads = model.value_and_grad(params, np.array([[x]]), np.array([0]))
        assert (grads["b1"][0] != 0) == learns


def test_linear_is_the_objective_of_softmax_loss(xp, rng):
    for dtype in xp.float_dtypes:
        rows = Rows(xp, rng, dtype, reg=0.2)
        W = xp.asarray(rng.normal(size=(4, 3)), dtype)
        value, grads = sx.Linear(4, 3).value_and_grad(
            {"W": W, "b": xp.asarray(np.zeros(3), dtype)}, rows.X, rows.t, 0.2
        )
        loss, dW = sx.softmax_loss(W, rows.X, rows.t, 0.2)
        extra = 0.0 if dtype == "float64" else 1e-6 * float(loss)
        xp.assert_close(value, float(loss), xp.float_dtypes[-1], "loss", extra)
        xp.assert_close(grads["W"], xp.to_numpy(dW), dtype, "grad")


def test_model_arguments_are_not_modified(xp, rng, model):
    for dtype in xp.float_dtypes:
        rows = Rows(xp, rng, dtype, reg=0.1, weight=True)
        params = {name: xp.asarray(x, dtype) for name, x in model.params.items()}
        before = {name: xp.to_numpy(x).copy() for name, x in params.items()}
        model.value_and_grad(params, rows.X, rows.t, 0.1, rows.weight, 0.1)
        model(rows.X)
        for name, x in params.items():
            np.testing.assert_array_equal(xp.to_numpy(x), before[name])
        np.testing.assert_array_equal(xp.to_numpy(rows.X), rows.exact_X.astype(dtype))


# Initial weights


def test_linear_starts_at_zero():
    model = sx.Linear(5, 3)
    assert {name: x.shape for name, x in model.params.items()} == {"W": (5, 3), "b": (3,)}
    assert not any(x.any() for x in model.params.values())
    assert (model.n_features, model.n_classes) == (5, 3)
    assert repr(model) == "Linear(n_features=5, n_classes=3)"


def test_mlp_has_a_weight_and_an_intercept_for_each_layer():
    model = sx.MLP((5, 4, 3))
    shapes = {"W1": (5, 4), "b1": (4,), "W2": (4, 3), "b2": (3,)}
    assert {name: x.shape for name, x in model.params.items()} == shapes
    assert all(type(x) is np.ndarray and x.dtype == np.float64 for x in model.params.values())
    assert not model.params["b1"].any()
    assert not model.params["b2"].any()
    assert (model.n_features, model.n_classes) == (5, 3)
    assert repr(model) == "MLP([5, 4, 3], activation='relu')"


@pytest.mark.parametrize(
    ("options", "variance", "limit"),
    [
        ({}, 2 / 300, math.inf),
        ({"init": "he", "activation": "tanh"}, 2 / 300, math.inf),
        ({"activation": "tanh"}, 2 / 500, math.sqrt(6 / 500)),
        ({"init": "glorot"}, 2 / 500, math.sqrt(6 / 500)),
    ],
)
def test_initial_weights_have_their_variance(options, variance, limit):
    W = sx.MLP([300, 200, 2], **options).params["W1"]
    # The variance of 60 000 draws is known to sqrt(2 / 60 000) = 0.6 percent of itself, or less.
    assert W.var() == pytest.approx(variance, rel=0.025)
    assert abs(W.mean()) < 4 * math.sqrt(variance / W.size)
    assert abs(W).max() <= limit
    assert abs(W).max() > (4 * math.sqrt(variance) if limit == math.inf else 0.99 * limit)


def test_initial_weights_can_be_zero():
    assert not sx.MLP([3, 2, 2], init="zeros").params["W1"].any()


def test_initial_weights_follow_the_seed():
    def weights(seed):
        return sx.MLP([3, 4, 2], random_state=seed).params["W1"]

    np.testing.assert_array_equal(weights(0), sx.MLP([3, 4, 2]).params["W1"])
    np.testing.assert_array_equal(weights(7), weights(np.random.default_rng(7)))
    assert (weights(0) != weights(1)).all()
    assert (weights(None) != weights(None)).all()


def test_initial_weights_are_the_same_on_every_backend(xp):
    model = sx.MLP([3, 4, 2], random_state=5)
    for dtype in xp.float_dtypes:
        backend = backend_of(xp.asarray([[1.0]], dtype))
        for name, x in model.params_on(backend, dtype).items():
            xp.assert_here(x, dtype, model.params[name].shape)
            np.testing.assert_array_equal(xp.to_numpy(x), model.params[name].astype(dtype))


# Logits


def test_logits_come_back_where_x_is(xp, rng, model):
    X = rng.normal(size=(7, 4))
    expected, _ = exact_forward(model, model.params, X)
    for dtype in xp.float_dtypes + {"numpy": ["float16"], "torch": ["float16", "bfloat16"]}.get(xp.name, []):
        logits = model(xp.asarray(X, dtype))
        extra = {"float64": 0.0, "float32": 1e-6, "float16": 1e-2, "bfloat16": 1e-1}[dtype]
        xp.assert_close(logits, expected, dtype, "rows", extra)


def test_logits_of_a_model_that_was_trained_elsewhere(xp, rng):
    """Parameters of any library serve X of any other."""
    model = sx.MLP([4, 5, 3])
    X, y = rng.normal(size=(20, 4)), rng.integers(0, 3, size=20)
    dtype = xp.float_dtypes[-1]
    sx.Trainer(model, max_steps=3, log_every=None).fit(xp.asarray(X, dtype), xp.asarray(y))
    for x in model.params.values():
        xp.assert_here(x, dtype, x.shape)
    expected, _ = exact_forward(model, {name: xp.to_numpy(x) for name, x in model.params.items()}, X)
    logits = model(X)  # in NumPy, from wherever the parameters are
    assert type(logits) is np.ndarray
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, atol=1e-12 if dtype == "float64" else 1e-5)
    # And the other way round.
    sx.Trainer(model, max_steps=3, log_every=None).fit(X, y)
    assert all(type(x) is np.ndarray for x in model.params.values())
    expected, _ = exact_forward(model, model.params, X)
    xp.assert_close(model(xp.asarray(X, dtype)), expected, dtype, "rows", extra=1e-12 if dtype == "float64" else 1e-5)


def test_predict_is_the_class_of_the_largest_logit(xp, rng, model, monkeypatch):
    X = rng.normal(size=(23, 4))
    logits, _ = exact_forward(model, model.params, X)
    for dtype, block_bytes in itertools.product(xp.float_dtypes, (arrays.BLOCK_BYTES, 8 * 7 * 5)):
        monkeypatch.setattr(arrays, "BLOCK_BYTES", block_bytes)
        predicted = model.predict(xp.asarray(X, dtype))
        xp.assert_here(predicted, "int64", (23,))
        np.testing.assert_array_equal(xp.to_numpy(predicted), logits.argmax(axis=1))


# Errors


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: sx.MLP([4]), ValueError, ["`sizes`", "n_features and n_classes", "[4]", "for example"]),
        (lambda: sx.MLP(4), ValueError, ["`sizes`", "got 4", "for example"]),
        (lambda: sx.MLP("43"), ValueError, ["`sizes`", "'43'", "for example"]),
        (lambda: sx.MLP([4, 0, 3]), ValueError, ["`sizes`", "at least 1", "got 0", "choose"]),
        (lambda: sx.MLP([4, 2.5]), TypeError, ["`sizes`", "integer", "2.5", "pass an int"]),
        (lambda: sx.MLP([4, 3], activation="gelu"), ValueError, ["`activation`", "'relu', 'tanh'", "'gelu'", "choose"]),
        (lambda: sx.MLP([4, 3], init="normal"), ValueError, ["`init`", "'he', 'glorot'", "'normal'", "choose"]),
        (lambda: sx.Linear(0, 3), ValueError, ["`n_features`", "at least 1", "got 0", "choose"]),
        (lambda: sx.Linear(4, -3), ValueError, ["`n_classes`", "at least 1", "got -3", "choose"]),
        (lambda: sx.Linear(4, 3.0), TypeError, ["`n_classes`", "integer", "3.0", "pass an int"]),
    ],
)
def test_bad_models_are_refused_with_name_rule_value_and_remedy(build, error, words):
    with pytest.raises(error) as caught:
        build()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("method", ["__call__", "predict"])
def test_bad_x_is_refused_with_name_rule_value_and_remedy(xp, method):
    call = getattr(sx.Linear(4, 3), method)
    for X, error, words in (
        (xp.asarray(np.ones((2, 5))), ValueError, ["`X`", "n_features=4", "got 5", "select the features"]),
        (xp.asarray(np.ones((2, 4), dtype="int64")), TypeError, ["`X`", "floating", "int64", "convert"]),
        (xp.asarray(np.ones((2, 4), dtype=bool)), TypeError, ["`X`", "floating", "bool", "convert"]),
        (xp.asarray(np.ones(4)), ValueError, ["`X`", "(n_samples, n_features)", "(4,)", "reshape"]),
        (xp.asarray(np.ones((2, 2, 4))), ValueError, ["`X`", "(n_samples, n_features)", "(2, 2, 4)", "reshape"]),
        (xp.asarray(np.ones((0, 4))), ValueError, ["`X`", "no empty axis", "(0, 4)", "at least one row"]),
        ([[1.0, 2.0, 3.0, 4.0]], TypeError, ["`X`", "array", "list", "numpy.asarray(X)"]),
        (None, TypeError, ["`X`", "array"]),
    ):
        with pytest.raises(error) as caught:
            call(X)
        for word in words:
            assert word in str(caught.value)
