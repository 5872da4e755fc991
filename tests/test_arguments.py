"""Bad arguments of the functional API are refused with the argument's name, the rule, the value and a remedy."""

from __future__ import annotations

import numpy as np
import pytest

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
