"""Bad arguments are refused in one line with the argument's name, the rule, the value and a remedy."""

from __future__ import annotations

import importlib
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse
from sklearn.exceptions import ConvergenceWarning

import softmax_xp as sx

Z, T = np.zeros((3, 4)), np.array([0, 1, 3])
W, X, Y = np.zeros((2, 3)), np.ones((4, 2)), np.array([0, 1, 2, 0])
NAN = np.array([[1.0, 2], [3, np.nan], [5, 6], [7, 8]])

CASES = [
    # function, arguments, error, what the message must hold
    (sx.softmax, ([[1.0, 2.0]],), TypeError, "`logits` must be an array.*got list; convert"),
    (sx.softmax, (np.array([1, 2]),), TypeError, "`logits` must have a real floating dtype, got int64; convert"),
    (sx.softmax, (Z, 2), ValueError, r"`axis` must lie in \[-2, 2\).*got 2; choose"),
    (sx.softmax, (Z, -3), ValueError, "`axis` must be at least -2, got -3; choose"),
    (sx.softmax, (Z, 1.0), TypeError, "`axis` must be an integer, got 1.0; pass"),
    (sx.softmax, (np.array(1.0),), ValueError, "`axis` must"),
    (
        sx.log_softmax,
        (np.zeros((3, 0)),),
        ValueError,
        r"`logits` must have at least one class.*got shape \(3, 0\); pass",
    ),
    (sx.cross_entropy, (Z, np.array([0, 1, 4])), ValueError, r"`labels` must lie in \[0, 4\), got 4 at row 2; encode"),
    (
        sx.cross_entropy,
        (Z, np.array([0, -1, 3])),
        ValueError,
        r"`labels` must lie in \[0, 4\), got -1 at row 1; encode",
    ),
    (
        sx.cross_entropy,
        (Z, np.array([0, 1, 1.5])),
        TypeError,
        "`labels` must be integer class indices, got.*float64; en",
    ),
    (
        sx.cross_entropy,
        (Z, np.array([0, 1])),
        ValueError,
        r"`labels` must have one entry per row.*\(3\), got 2; select",
    ),
    (sx.cross_entropy, (Z, np.array(0)), ValueError, r"`labels` must have shape \(n_samples,\), got 0-d.*; flatten"),
    (sx.cross_entropy, (Z, None), TypeError, "`labels` must be an array.*got NoneType; convert"),
    (sx.cross_entropy, (Z, np.ones((3, 4), int)), TypeError, "`labels` must have a real floating dtype, got int64"),
    (sx.cross_entropy, (Z, T, None, 10**400), ValueError, "`label_smoothing` must be a number that float64 can hold"),
    (sx.cross_entropy, (Z, T, None, 0.0, 10**30), ValueError, "`ignore_index` must be at most.*; choose an index"),
    (sx.cross_entropy, (Z, T[:, None]), ValueError, r"`labels` must have shape \(n_samples,\), got 2-d"),
    (sx.cross_entropy, (Z[0], T), ValueError, r"`logits` must have shape \(n_samples, n_classes\), got 1-d.*reshape"),
    (sx.cross_entropy, (Z[:0], T[:0]), ValueError, r"`logits` must.*no empty axis, got shape \(0, 4\); pass"),
    (
        sx.cross_entropy,
        (Z, T, np.array([1.0, -1, 1])),
        ValueError,
        "`sample_weight` must not be negative, got -1.0 at row 1",
    ),
    (sx.cross_entropy, (Z, T, np.zeros(3)), ValueError, "`sample_weight` must not be all zero, got 3 zeros; give"),
    (
        sx.cross_entropy,
        (Z, T, np.ones(2)),
        ValueError,
        r"`sample_weight` must have one entry per row of `logits` \(3\), got 2",
    ),
    (
        sx.cross_entropy,
        (Z, T, np.ones(3, int)),
        TypeError,
        "`sample_weight` must have a real floating dtype, got int64",
    ),
    (sx.cross_entropy, (Z, T, np.array([1, np.nan, 1])), ValueError, "`sample_weight` must be finite, got.*nan; drop"),
    (sx.cross_entropy, (Z, T, None, 1.1), ValueError, r"`label_smoothing` must lie in \[0, 1\], got 1.1; choose"),
    (sx.cross_entropy, (Z, T, None, -0.1), ValueError, r"`label_smoothing` must lie in \[0, 1\], got -0.1; choose"),
    (sx.cross_entropy, (Z, T, None, "a"), TypeError, "`label_smoothing` must be a real number, got 'a'; pass"),
    (sx.cross_entropy, (Z, T, None, float("nan")), ValueError, r"`label_smoothing` must lie in \[0, 1\], got nan"),
    (sx.cross_entropy, (Z, T, None, 0.0, 1.5), TypeError, "`ignore_index` must be an integer, got 1.5; pass"),
    (sx.cross_entropy, (Z, np.full((3, 4), 0.25), None, 0.0, 1), ValueError, "`ignore_index` goes with integer labels"),
    (sx.cross_entropy, (Z, np.zeros(3, int), None, 0.0, 0), ValueError, "`labels` must hold a row that counts"),
    (
        sx.cross_entropy,
        (Z, T, None, 0.0, None, "avg"),
        ValueError,
        "`reduction` must be one of 'mean'.*got 'avg'; choose",
    ),
    (
        sx.cross_entropy,
        (Z, np.full((3, 4), 0.3)),
        ValueError,
        "`labels` as probabilities must sum to 1.*got 1.2 at row 0",
    ),
    (
        sx.cross_entropy,
        (Z, np.full((3, 3), 1 / 3)),
        ValueError,
        r"`labels` as probabilities must have shape.*got \(3, 3\)",
    ),
    (
        sx.cross_entropy,
        (Z, np.array([[2.0, -1, 0, 0]] * 3)),
        ValueError,
        "`labels` as probabilities must not be negative",
    ),
    (sx.cross_entropy, (Z, np.full((3, 4), np.nan)), ValueError, "`labels` must be finite, got NaN at row 0, column 0"),
    (
        sx.softmax_loss,
        (W, X, np.array([0, 1, 3, 0]), 0.0),
        ValueError,
        r"`y` must lie in \[0, 3\), got 3 at row 2; encode",
    ),
    (sx.softmax_loss, (W, X, np.array([0, 1, -2, 0]), 0.0), ValueError, r"`y` must lie in \[0, 3\), got -2 at row 2"),
    (
        sx.softmax_loss,
        (W, X, np.array([0, 1.5, 2, 0]), 0.0),
        TypeError,
        "`y` must be integer class indices, got.*float64",
    ),
    (sx.softmax_loss, (W, X, Y[:3], 0.0), ValueError, r"`y` must have one entry per row of `X` \(4\), got 3; select"),
    (
        sx.softmax_loss,
        (W, X[:, :1], Y, 0.0),
        ValueError,
        r"`W` must have one row per column of `X` \(1\), got.*\(2, 3\)",
    ),
    (sx.softmax_loss, (W[0], X, Y, 0.0), ValueError, r"`W` must have shape \(n_features, n_classes\), got 1-d"),
    (sx.softmax_loss, (W, X[0], Y, 0.0), ValueError, r"`X` must have shape \(n_samples, n_features\), got 1-d"),
    (sx.softmax_loss, (W, X, Y[:, None], 0.0), ValueError, r"`y` must have shape \(n_samples,\), got 2-d"),
    (
        sx.softmax_loss,
        (W.astype(int), X.astype(int), Y, 0.0),
        TypeError,
        "`W` must have a real floating dtype, got int64",
    ),
    (sx.softmax_loss, (W, X.astype(int), Y, 0.0), TypeError, "`X` must have a real floating dtype, got int64; convert"),
    (sx.softmax_loss, (W, X[:0], Y[:0], 0.0), ValueError, r"`X` must.*no empty axis, got shape \(0, 2\); pass"),
    (sx.softmax_loss, (W[:, :0], X, Y, 0.0), ValueError, r"`W` must.*no empty axis, got shape \(2, 0\); pass"),
    (sx.softmax_loss, (W, NAN, Y, 0.0), ValueError, "`X` must be finite, got NaN at row 1, column 1; drop or impute"),
    (
        sx.softmax_loss,
        (W, np.where(np.isnan(NAN), np.inf, NAN), Y, 0.0),
        ValueError,
        "`X` must be finite, got inf at row 1",
    ),
    (
        sx.softmax_loss,
        (np.full((2, 3), np.nan), X, Y, 0.0),
        ValueError,
        "`W` must be finite, got NaN at row 0, column 0",
    ),
    (sx.softmax_loss, (W, X, Y, -1.0), ValueError, r"`reg` must lie in \[0, inf\), got -1.0; choose"),
    (sx.softmax_loss, (W, X, Y, float("inf")), ValueError, r"`reg` must lie in \[0, inf\), got inf; choose"),
    (sx.softmax_loss, (W, X, Y, "0.1"), TypeError, "`reg` must be a real number, got '0.1'; pass"),
    (sx.softmax_loss, (W, X, Y, np.ones(2)), TypeError, r"`reg` must be a real number, got an array of shape \(2,\)"),
    (sx.softmax_loss, (W, X, [0, 1, 2, 0], 0.0), TypeError, "`y` must be an array.*got list; convert"),
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), CASES)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_bad_argument_is_refused_with_rule_value_and_remedy(function, arguments, error, message):
    functions = [function] if function is not sx.cross_entropy else [function, sx.cross_entropy_with_grad]
    for function in functions:
        with pytest.raises(error, match=message) as caught:
            function(*arguments)
        assert "\n" not in str(caught.value)
        assert ";" in str(caught.value), "the remedy follows a semicolon"


def test_labels_are_checked_on_every_library(xp):
    z = xp.asarray(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="got 7 at row 1"):
        sx.cross_entropy(z, xp.asarray([0, 7, 9]))
    with pytest.raises(TypeError, match="integer class indices"):
        sx.cross_entropy(z, xp.asarray([0.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match="`X` must be finite, got NaN at row 2, column 1"):
        sx.softmax_loss(xp.asarray(W), xp.asarray(NAN[[0, 2, 1, 3]]), xp.asarray(Y), 0.0)


def test_two_libraries_in_one_call_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"from one library, got `logits`: numpy.ndarray, `labels`: torch.Tensor"):
        sx.cross_entropy(Z, torch.zeros(3, dtype=torch.int64))


def test_finite_data_whose_sum_overflows_are_accepted():
    big = np.full((4, 2), 1e308)
    loss, _ = sx.softmax_loss(W, big, Y, 0.0)
    assert loss == pytest.approx(np.log(3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_softmax_loss_refuses_what_is_not_finite_without_a_warning_first(xp, bad):
    """In X and in W, for one class and several; pytest turns warnings into errors."""
    for n_classes in (1, 3):
        W_bad, X_bad = np.ones((2, n_classes)), X.copy()
        W_bad[1, 0] = X_bad[2, 1] = bad
        y = xp.asarray(Y * (n_classes > 1))
        with pytest.raises(ValueError, match=r"`X` must be finite, got .* at row 2, column 1; drop"):
            sx.softmax_loss(xp.asarray(np.ones((2, n_classes))), xp.asarray(X_bad), y, 0.1)
        with pytest.raises(ValueError, match=r"`W` must be finite, got .* at row 1, column 0"):
            sx.softmax_loss(xp.asarray(W_bad), xp.asarray(X), y, 0.1)


def test_softmax_loss_says_when_the_product_overflows(xp):
    big = xp.asarray(np.full((2, 3), 1e30), "float32")
    with pytest.raises(ValueError, match="product that float32 can hold, got an overflow; scale"):
        sx.softmax_loss(big, xp.asarray(np.full((4, 2), 1e30) * [[1], [-1], [1], [-1]], "float32"), xp.asarray(Y), 0.1)


def test_labels_may_have_any_integer_dtype(xp):
    z = xp.asarray(np.arange(12.0).reshape(3, 4))
    expected = float(sx.cross_entropy(z, xp.asarray(T)))
    kinds = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    for dtype in kinds:
        labels = xp.asarray(T, dtype)
        assert float(sx.cross_entropy(z, labels)) == expected
        # A label that the dtype cannot hold matches nothing; nor need it be Python's own int.
        assert float(sx.cross_entropy(z, labels, ignore_index=np.int64(-100))) == expected
        assert float(sx.cross_entropy(z, labels, None, np.float32(0.0), 300)) == expected


def test_many_half_precision_weights_of_one_are_accepted():
    n = 70_000  # more than float16 counts to
    z, t = np.zeros((n, 2), "float16"), np.zeros(n, int)
    assert sx.cross_entropy(z, t, np.ones(n, "float16")) == pytest.approx(np.log(2), rel=1e-3)


def test_probabilities_that_were_float32_once_are_accepted(rng):
    p = sx.softmax(rng.normal(size=(50, 7)).astype("float32")).astype("float64")
    assert np.isfinite(sx.cross_entropy(np.zeros((50, 7)), p))


@pytest.mark.parametrize(
    "call",
    [
        lambda: sx.select_backend(np.float64),
        lambda: sx.MLP([5, 3], activation=np.float32),
        lambda: sx.cross_entropy(Z, T, reduction=np.float32),
        lambda: sx.SoftmaxClassifier(solver=sx.Adam).fit(X, Y),
    ],
)
def test_a_class_in_place_of_an_option_is_refused_by_name(call):
    with pytest.raises(ValueError, match=r"must be .*got <class"):
        call()


# What is no dense array of numbers


def fitted():
    return sx.SoftmaxClassifier(device="cpu").fit(X, Y)


def fit(X=X, y=Y, sample_weight=None, **parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sx.SoftmaxClassifier(**{"device": "cpu", "max_iter": 2, **parameters}).fit(X, y, sample_weight)


def train(X=X, y=Y, validation_data=None, sample_weight=None, **options):
    options = {"max_steps": 2, "log_every": None, "device": "cpu", **options}
    return sx.Trainer(sx.Linear(2, 3), **options).fit(X, y, validation_data, sample_weight)


def observed(observe):
    return fit(X, Y) if callable(observe) else sx.SoftmaxClassifier(device="cpu").fit(X, Y, observe=observe)


ONES = np.ones(4)
ARRAY_ARGUMENTS = {
    # function.argument: the argument as it should be, and the call
    "softmax.logits": (Z, sx.softmax),
    "log_softmax.logits": (Z, sx.log_softmax),
    "cross_entropy.logits": (Z, lambda x: sx.cross_entropy(x, T)),
    "cross_entropy.labels": (T, lambda x: sx.cross_entropy(Z, x)),
    "cross_entropy.sample_weight": (np.ones(3), lambda x: sx.cross_entropy(Z, T, x)),
    "cross_entropy_with_grad.logits": (Z, lambda x: sx.cross_entropy_with_grad(x, T)),
    "cross_entropy_with_grad.labels": (np.full((3, 4), 0.25), lambda x: sx.cross_entropy_with_grad(Z, x)),
    "softmax_loss.W": (W, lambda x: sx.softmax_loss(x, X, Y, 0.0)),
    "softmax_loss.X": (X, lambda x: sx.softmax_loss(W, x, Y, 0.0)),
    "softmax_loss.y": (Y, lambda x: sx.softmax_loss(W, X, x, 0.0)),
    "SoftmaxClassifier.fit.X": (X, lambda x: fit(x)),
    "SoftmaxClassifier.fit.y": (Y, lambda x: fit(y=x)),
    "SoftmaxClassifier.fit.sample_weight": (ONES, lambda x: fit(sample_weight=x)),
    "SoftmaxClassifier.predict.X": (X, lambda x: fitted().predict(x)),
    "SoftmaxClassifier.predict_proba.X": (X, lambda x: fitted().predict_proba(x)),
    "SoftmaxClassifier.predict_log_proba.X": (X, lambda x: fitted().predict_log_proba(x)),
    "SoftmaxClassifier.decision_function.X": (X, lambda x: fitted().decision_function(x)),
    "SoftmaxClassifier.score.X": (X, lambda x: fitted().score(x, Y)),
    "SoftmaxClassifier.score.y": (Y, lambda x: fitted().score(X, x)),
    "SoftmaxClassifier.score.sample_weight": (ONES, lambda x: fitted().score(X, Y, x)),
    "Trainer.fit.X": (X, lambda x: train(x)),
    "Trainer.fit.y": (Y, lambda x: train(y=x)),
    "Trainer.fit.sample_weight": (ONES, lambda x: train(sample_weight=x)),
    "Trainer.fit.X_val": (X, lambda x: train(validation_data=(x, Y))),
    "Trainer.fit.y_val": (Y, lambda x: train(validation_data=(X, x))),
    "Linear.__call__.X": (X, lambda x: sx.Linear(2, 3)(x)),
    "MLP.predict.X": (X, lambda x: sx.MLP([2, 5, 3]).predict(x)),
}


def of_torch(change):
    torch = pytest.importorskip("torch")
    return lambda x: change(torch, torch.asarray(x))


class Lazy:
    """An array whose class says that it is one of dask, which the test need not install."""

    def __init__(self, x):
        self.shape, self.dtype, self.ndim = x.shape, x.dtype, x.ndim


Lazy.__module__ = "dask.array.core"
NOT_DENSE = {
    # kind: what makes it, and the remedy in the message
    "masked": (lambda: lambda x: np.ma.masked_array(x, mask=np.arange(x.size).reshape(x.shape) == 0), r"\.filled\("),
    "masked, nothing of it": (lambda: np.ma.masked_array, r"\.filled\("),
    "matrix": (lambda: np.matrix, r"numpy\.asarray\("),
    "sparse": (lambda: scipy.sparse.csr_matrix, r"\.toarray\(\)"),
    "sparse array": (lambda: lambda x: scipy.sparse.coo_array(np.atleast_2d(x)), r"\.toarray\(\)"),
    "dask": (lambda: Lazy, r"\.compute\(\)"),
    "JAX": (lambda: pytest.importorskip("jax").numpy.asarray, r"numpy\.asarray\("),
    "sparse tensor": (lambda: of_torch(lambda torch, x: x.to_sparse()), r"\.to_dense\(\)"),
    "meta tensor": (lambda: of_torch(lambda torch, x: x.to("meta")), "make it on the device"),
    "quantised tensor": (
        lambda: of_torch(lambda torch, x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)),
        r"\.dequantize\(\)",
    ),
    "nested tensor": (
        lambda: of_torch(lambda torch, x: torch.nested.nested_tensor([x])),
        r"torch\.nested\.to_padded_tensor\(",
    ),
}


@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("argument", ARRAY_ARGUMENTS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PendingDeprecationWarning")  # of making such arrays
def test_what_is_no_dense_array_is_refused_with_its_remedy(argument, kind):
    make, remedy = NOT_DENSE[kind]
    given, call = ARRAY_ARGUMENTS[argument]
    name = argument.rpartition(".")[2]
    with pytest.raises(TypeError, match=f"^`{name}` must be a dense array of numbers in memory, got .*; .*{remedy}"):
        call(make()(given))


DTYPES = {
    "complex": lambda x: x.astype(complex),
    "text": lambda x: x.astype(str),
    "bytes": lambda x: x.astype(bytes),
    "datetime": lambda x: x.astype(int).astype("datetime64[ms]"),
    "timedelta": lambda x: x.astype(int).astype("timedelta64[ms]"),
    "structured": lambda x: x.astype([("a", float)]),
    "record": lambda x: x.astype([("a", float)]).view(np.recarray),
    "object": lambda x: np.array([{"a": 1}] * x.size, dtype=object).reshape(x.shape),
}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("argument", [name for name in ARRAY_ARGUMENTS if not name.endswith(("fit.y", "score.y"))])
def test_what_is_no_number_is_refused_in_one_line(argument, kind):
    given, call = ARRAY_ARGUMENTS[argument]
    name = argument.rpartition(".")[2]
    # scikit-learn's contract asks for a ValueError there
    contract = kind == "complex" and name == "X" and argument.startswith("SoftmaxClassifier")
    with pytest.raises(ValueError if contract else TypeError, match=f"`{name}` must ") as caught:
        call(DTYPES[kind](given))
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("kind", ["text", "datetime", "timedelta"])
def test_columns_of_a_frame_that_are_no_numbers_are_named(library, kind):
    column = DTYPES[kind](np.arange(4))
    frame = importlib.import_module(library).DataFrame({"a": np.arange(4.0), "b": column})
    if library == "pandas" and kind == "text":
        frame = frame.astype({"b": "str"})
    with pytest.raises(TypeError, match=r"`X` must hold numbers, got dtype .* in columns 'b'; encode or drop"):
        fit(frame)


def test_masked_rows_in_a_list_are_refused():
    rows = [np.ma.masked_array(row, mask=[True, False]) for row in X]
    with pytest.raises(TypeError, match=r"`X` must be a dense array.*masked"):
        fit(rows)


@pytest.mark.parametrize("argument", ARRAY_ARGUMENTS)
def test_big_endian_arrays_give_what_native_ones_do(argument):
    given, call = ARRAY_ARGUMENTS[argument]
    native, swapped = call(given), call(given.astype(given.dtype.newbyteorder(">")))
    if isinstance(native, sx.SoftmaxClassifier):
        native, swapped = (model.coef_ for model in (native, swapped))
    elif isinstance(native, sx.History):
        native, swapped = (history.loss for history in (native, swapped))
    for one, other in zip(*[x if isinstance(x, tuple) else (x,) for x in (native, swapped)], strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.asarray(other).dtype == np.asarray(one).dtype
        assert np.asarray(other).dtype.isnative


@pytest.mark.parametrize("kind", [np.memmap, type("Own", (np.ndarray,), {})])
def test_subclasses_of_ndarray_give_plain_arrays(kind):
    loss, grad = sx.cross_entropy_with_grad(Z.view(kind), T.view(kind), np.ones(3).view(kind))
    assert type(grad) is np.ndarray
    assert loss == pytest.approx(np.log(4))


# Any value for any argument

VALUES = {
    "None": None,
    "text": "a",
    "bytes": b"a",
    "0-d": np.array(0),
    "0-d text": np.array("a"),
    "0-d masked": np.ma.masked,
    "minus one": -1,
    "zero": 0,
    "half": 0.5,
    "bool": True,
    "1e30": 10**30,
    "1e400": 10**400,
    "1e5000": -(10**5000),
    "1e308": 1e308,
    "1e-320": 1e-320,
    "fraction": Fraction(1, 3),
    "longdouble": np.longdouble("1e4000"),
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "complex": 1j,
    "empty": [],
    "list": [1, 2],
    "ragged": [[1, 2], [3]],
    "list of text": ["a", "b"],
    "huge list": [10**400] * 4,
    "dict": {},
    "dict of text": {0: "a"},
    "dict of nan": {0: float("nan")},
    "dict of lists": {0: [1.0]},
    "set": {1},
    "object": object(),
    "class": np.float64,
    "function": abs,
    "empty array": np.zeros(0),
    "3-d": np.zeros((2, 2, 2)),
    "nan array": np.full((4, 2), np.nan),
    "inf weights": np.full(4, np.inf),
    "negative": np.full(4, -1.0),
    "booleans": np.ones(4, bool),
    "short": np.zeros(1),
    "lines": "a\nb",
}
CALLS = {
    "softmax": (sx.softmax, {"logits": Z, "axis": -1}),
    "log_softmax": (sx.log_softmax, {"logits": Z, "axis": -1}),
    **{
        function.__name__: (
            function,
            {
                "logits": Z,
                "labels": T,
                "sample_weight": np.ones(3),
                "label_smoothing": 0.0,
                "ignore_index": 7,
                "reduction": "mean",
            },
        )
        for function in (sx.cross_entropy, sx.cross_entropy_with_grad)
    },
    "softmax_loss": (sx.softmax_loss, {"W": W, "X": X, "y": Y, "reg": 0.1, "workers": 1}),
    "fit": (
        fit,
        {
            "X": X,
            "y": Y,
            "sample_weight": ONES,
            "C": 1.0,
            "tol": 1e-4,
            "fit_intercept": True,
            "class_weight": None,
            "max_iter": 2,
            "warm_start": False,
            "random_state": 0,
            "verbose": 0,
            "solver": "auto",
            "device": "cpu",
            "dtype": None,
            "workers": 1,
            "max_memory": None,
            "precision": "float32",
            "callbacks": (),
        },
    ),
    "observe": (observed, {"observe": None}),
    "sgd": (lambda random_state: fit(solver="sgd", random_state=random_state), {"random_state": 0}),
    **{
        method: (lambda X, method=method: getattr(fitted(), method)(X), {"X": X})
        for method in ("predict", "predict_proba", "predict_log_proba", "decision_function")
    },
    "score": (lambda **arguments: fitted().score(**arguments), {"X": X, "y": Y, "sample_weight": ONES}),
    "to": (lambda device: fitted().to(device), {"device": "cpu"}),
    "Trainer": (
        train,
        {
            "X": X,
            "y": Y,
            "validation_data": (X, Y),
            "sample_weight": ONES,
            "optimizer": sx.SGD(0.1),
            "reg": 0.0,
            "batch_size": 4,
            "max_steps": 2,
            "log_every": None,
            "device": "cpu",
            "random_state": 0,
            "label_smoothing": 0.0,
            "validate_every": 1,
            "patience": 2,
            "callbacks": (),
        },
    ),
    "model": (sx.Trainer, {"model": sx.Linear(2, 3)}),
    "Linear": (sx.Linear, {"n_features": 2, "n_classes": 3}),
    "MLP": (sx.MLP, {"sizes": [2, 3], "activation": "relu", "init": None, "random_state": 0}),
    "__call__": (lambda X: sx.Linear(2, 3)(X), {"X": X}),
    "Linear.predict": (lambda X: sx.Linear(2, 3).predict(X), {"X": X}),
    "SGD": (sx.SGD, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": False}),
    "AdamW": (sx.AdamW, {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.1}),
    "ConstantSchedule": (sx.ConstantSchedule, {"learning_rate": 0.1}),
    "StepSchedule": (sx.StepSchedule, {"learning_rate": 0.1, "every": 2, "factor": 0.1}),
    "CosineSchedule": (sx.CosineSchedule, {"learning_rate": 0.1, "n_steps": 9, "warmup": 1, "final": 0.0}),
    "select_backend": (sx.select_backend, {"device": "cpu", "like": None}),
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    ("call", "argument"), [(call, argument) for call, (_, sound) in CALLS.items() for argument in sound]
)
@pytest.mark.filterwarnings("ignore")
def test_whatever_an_argument_is_an_error_names_it(call, argument, value):
    function, sound = CALLS[call]
    try:
        function(**{**sound, argument: VALUES[value]})
    except (TypeError, ValueError) as error:
        text = str(error)
        assert "\n" not in text
        named = rf"\b{argument}\b" if argument != "validation_data" else "validation_data|[Xy]_val"
        assert re.search(named, text), text
        assert re.search(r"; .*\.$|\. Reshape your data.*\.$", text), f"no remedy: {text}"


def test_sound_arguments_are_not_refused():
    """What the calls above are a change of."""
    for function, sound in CALLS.values():
        function(**sound)
