"""Labels are those that numpy.unique finds; weights count by ratio, whatever their size."""

from __future__ import annotations

import contextlib
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import softmax_xp as sx
from softmax_xp import validation

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("end", ["lowest", "highest", "both"])
@pytest.mark.parametrize("span", [2, 100, 10**6])
def test_labels_are_those_of_unique(rng, dtype, end, span):
    limits = np.iinfo(dtype)
    span = min(span, int(limits.max) - int(limits.min))
    offsets = rng.integers(0, span + 1, size=300)
    low = int(limits.min) if end == "lowest" else int(limits.max) - span
    y = [low + int(k) for k in offsets]
    if end == "both":
        y += [int(limits.min), int(limits.max)]
    y = np.array(y, dtype=dtype)
    y = np.concatenate([y, y, y])
    classes, labels = validation.encoded_labels(y)
    expected_classes, expected_labels = np.unique(y, return_inverse=True)
    assert classes.dtype == y.dtype
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(classes, expected_classes)
    np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize("y", [[True, False, True], [2.0, 0.0, 2.0], ["b", "a", "b"], [np.float32(1), np.float32(0)]])
def test_labels_of_other_kinds_are_those_of_unique(y):
    y = np.array(y)
    classes, labels = validation.encoded_labels(y)
    assert classes.dtype == y.dtype
    np.testing.assert_array_equal(classes, np.unique(y))
    np.testing.assert_array_equal(classes[labels], y)


def test_integers_that_may_be_sorted_are_not(rng, monkeypatch):
    monkeypatch.setattr(validation.np, "unique", None)
    classes, labels = validation.encoded_labels(rng.integers(3, 7, size=1000))
    assert classes.tolist() == [3, 4, 5, 6]
    assert set(labels) == {0, 1, 2, 3}


def test_integers_far_apart_take_no_memory_for_what_is_between():
    classes, labels = validation.encoded_labels(np.array([2**62, -(2**62), 2**62, 0] * 10))
    assert classes.tolist() == [-(2**62), 0, 2**62]
    assert labels[:4].tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize("n_classes", [11, 12, 24])
def test_a_target_that_looks_like_one_of_a_regression_is_told_of(n_classes):
    y = np.arange(22) % n_classes  # scikit-learn's rule: more classes than half of the rows
    if n_classes == 11:
        assert len(validation.encoded_labels(y)[0]) == 11
    else:
        with pytest.warns(UserWarning, match="could represent a regression problem"):
            validation.encoded_labels(y)


LABELS, CLASSES = np.array([0, 1, 1, 0]), np.array([0, 1])


@given(
    st.lists(st.floats(0, allow_nan=False, allow_infinity=False), min_size=4, max_size=4).filter(any),
    st.lists(st.floats(1e-300, 1e300), min_size=2, max_size=2),
    st.floats(1e-308, 1e308),
)
@settings(deadline=None)
def test_the_strength_of_the_penalty_is_that_of_exact_arithmetic(weights, of_class, C):
    weight, exponent = validation.row_weights(weights, dict(enumerate(of_class)), CLASSES, LABELS)
    exact = [Fraction(w) * Fraction(of_class[label]) for w, label in zip(weights, LABELS, strict=True)]
    assert 0.25 <= weight.max() < 1.0
    for mine, theirs in zip(weight, exact, strict=True):
        assert mine == pytest.approx(float(theirs / max(exact)) * weight.max(), rel=1e-14, abs=1e-300)
    product = Fraction(C) * sum(exact)
    if not Fraction(1e-307) < product < Fraction(1e308):
        with contextlib.suppress(ValueError):  # near the limits either will do
            assert Fraction(1e-309) < Fraction(1) / Fraction(validation.penalty_strength(C, weight, exponent)) < 2**1025
    else:
        assert validation.penalty_strength(C, weight, exponent) == pytest.approx(float(1 / product), rel=1e-13)


def test_weights_may_be_numbers_of_any_kind():
    expected = validation.row_weights([1.0, 0, 2, 1], None, CLASSES, LABELS)[0]
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for weights in (
        np.array([1, 0, 2, 1]),
        np.array([1, 0, 2, 1], "uint8"),
        np.array([1, 0, 2, 1], ">f4"),
        np.array([1, 0, 2, 1], object),
        np.array([1, 0, 2, 1], np.longdouble),
        pandas.Series([1, 0, 2, 1], dtype="Int64"),
        polars.Series([1, 0, 2, 1]),
        (1, 0, 2, 1),
    ):
        np.testing.assert_array_equal(validation.row_weights(weights, None, CLASSES, LABELS)[0], expected)
    booleans = validation.row_weights(np.array([True, False, True, True]), None, CLASSES, LABELS)[0]
    assert booleans.tolist() == [0.5, 0.0, 0.5, 0.5]


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    weights = np.array([1.0, 2.0, 5.0, 1.0])
    of_class = compute_class_weight("balanced", classes=CLASSES, y=LABELS, sample_weight=weights)
    weight, exponent = validation.row_weights(weights * 2.0**-1000, "balanced", CLASSES, LABELS)
    np.testing.assert_allclose(weight * 2.0 ** (exponent + 1000), weights * of_class[LABELS], rtol=1e-14)


def test_a_class_of_weight_zero_stays_without_weight_when_balanced():
    weight, _ = validation.row_weights([1.0, 0.0, 0.0, 3.0], "balanced", CLASSES, LABELS)
    assert weight[1] == weight[2] == 0.0
    assert weight[3] == 3 * weight[0] > 0


@pytest.mark.parametrize(("C", "unit"), [(1e300, 1e-300), (1e-300, 1e300), (1e-300, 5e307), (1e308, 1e-320)])
def test_only_the_product_of_c_and_the_weights_counts(rng, C, unit):
    X, y, w = rng.normal(size=(40, 3)), np.arange(40) % 3, rng.integers(1, 4, size=40).astype(float)
    one = sx.SoftmaxClassifier(C=math.prod([C, unit]), device="cpu").fit(X, y, w)
    other = sx.SoftmaxClassifier(C=C, device="cpu").fit(X, y, unit * w)
    assert other.objective_ == pytest.approx(one.objective_, rel=1e-3 if unit < 1e-308 else 1e-12)
    np.testing.assert_allclose(other.coef_, one.coef_, atol=1e-2 if unit < 1e-308 else 1e-10)


@pytest.mark.parametrize(
    ("C", "unit", "message"),
    [
        (1e-300, 1e-300, r"`C` times the sum of weights must have a finite inverse, got C=1e-300 .* 1e-29\d; raise C"),
        (1e300, 1e300, r"`C` times the sum of weights must be a number that float64 can hold.*1e30\d; lower C"),
        (10**400, 1.0, r"`C` must be a number that float64 can hold, got an integer of 1329 bits; choose"),
    ],
)
def test_a_product_of_c_and_the_weights_that_is_no_number_is_refused(rng, C, unit, message):
    with pytest.raises(ValueError, match=message):
        sx.SoftmaxClassifier(C=C, device="cpu").fit(rng.normal(size=(40, 3)), np.arange(40) % 3, np.full(40, unit))


@pytest.mark.parametrize(
    ("class_weight", "error", "message"),
    [
        ({0: "a"}, TypeError, r"`class_weight\[0\]` must be a real number, got 'a'; pass"),
        ({0: None}, TypeError, r"`class_weight\[0\]` must be a real number, got None; pass"),
        ({0: np.inf}, ValueError, "`class_weight` must be finite, got inf for class 0; use"),
        ({0: -2, 1: 1}, ValueError, "`class_weight` must not be negative, got -2.0 for class 0; use"),
        ({0: 0, 1: 0}, ValueError, "`class_weight` must not be all zero, got .*; give"),
        ({7: 1.0}, ValueError, "`class_weight` must name classes of y: .*; name each"),
        ({0: 10**400}, ValueError, r"`class_weight\[0\]` must be a number that float64 can hold"),
    ],
)
def test_a_bad_class_weight_is_refused(class_weight, error, message):
    with pytest.raises(error, match=message):
        validation.row_weights(None, class_weight, CLASSES, LABELS)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0, 1, 1j, 1], TypeError, "`sample_weight` must hold numbers, got dtype complex128; encode"),
        (["a"] * 4, TypeError, r"`sample_weight` must hold numbers, got dtype str\d+; encode"),
        ([{}] * 4, TypeError, r"`sample_weight` must be real numbers: .*; pass"),
        ([None] * 4, ValueError, "`sample_weight` must be finite, got nan; drop or repair rows like row 0"),
        ([[1.0], [1.0, 2.0]], ValueError, "`sample_weight` must be real numbers: .*; pass"),
        ([10**400] * 4, ValueError, "`sample_weight` must be numbers that float64 can hold: .*; scale"),
        ([1.0, 1, np.inf, 1], ValueError, "`sample_weight` must be finite, got inf; drop or repair rows like row 2"),
        (np.array([np.longdouble("1e4000")] * 4), ValueError, "`sample_weight` must be finite, got inf"),
    ],
)
def test_bad_weights_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        validation.row_weights(weights, None, CLASSES, LABELS)
    model = sx.SoftmaxClassifier(device="cpu").fit([[0.0], [1], [1], [0]], LABELS)
    with pytest.raises(error, match=message):
        model.score([[0.0], [1], [1], [0]], LABELS, weights)


def test_a_score_is_that_of_the_ratios_of_the_weights():
    model = sx.SoftmaxClassifier(device="cpu").fit([[0.0], [1], [1], [0]], LABELS)
    for unit in (1e-320, 1.0, 1e308):
        assert model.score([[0.0], [1], [1], [0]], [0, 0, 1, 0], np.full(4, unit)) == 0.75


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (LABELS[:3], r"`y` must have one entry per row of `X` \(4\), got 3; select"),
        (["a", "b", "b", "a"], "`y` must be one class label a row, like those of the fit: .*; pass"),
        (None, "`y` must be one class label a row, .*; pass"),
        ([[0, 1], [1, 0], [1, 0], [0, 1]], "`y` must be one class label a row, .*; pass"),
    ],
)
def test_score_refuses_bad_labels(y, message):
    X = [[0.0], [1], [1], [0]]
    with pytest.raises(ValueError, match=message):
        sx.SoftmaxClassifier(device="cpu").fit(X, LABELS).score(X, y)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_of_weight_zero_may_hold_what_is_not_finite(xp, rng, bad):
    X, y, w = rng.normal(size=(40, 3)), np.arange(40) % 3, rng.uniform(1, 2, size=40)
    w[[0, 7]] = 0.0
    hole = X.copy()
    hole[[0, 7], 1] = bad
    for dtype in xp.float_dtypes:
        with_hole, kept = (xp.asarray(x, dtype) for x in (hole, X[w > 0]))
        given_y, kept_y = xp.asarray(y), xp.asarray(y[w > 0])
        given_w, kept_w = xp.asarray(w, dtype), xp.asarray(w[w > 0], dtype)
        one = sx.SoftmaxClassifier().fit(with_hole, y, w)
        other = sx.SoftmaxClassifier().fit(kept, y[w > 0], w[w > 0])
        assert one.objective_ == pytest.approx(other.objective_, rel=1e-6)
        with pytest.raises(ValueError, match=r"`X` must be finite, got .* at row 7, column 1; drop"):
            sx.SoftmaxClassifier().fit(with_hole, y, np.where(np.arange(40) == 7, 1.0, w))
        losses = []
        for rows in ((with_hole, given_y, None, given_w), (kept, kept_y, None, kept_w)):
            model = sx.Linear(3, 3)
            trainer = sx.Trainer(model, max_steps=5, batch_size=40, log_every=None)
            losses.append(trainer.fit(*rows).solution.objective)
            assert np.isfinite(xp.to_numpy(model.params["W"])).all()
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        with pytest.raises(ValueError, match=r"`X` must be finite, got .* at row 0, column 1; drop"):
            sx.Trainer(sx.Linear(3, 3), log_every=None).fit(with_hole, given_y)


@pytest.mark.parametrize("unit", [1e-320, 1e-300, 1e300, 5e307])
def test_training_counts_weights_by_ratio(rng, unit):
    """In float32, which cannot hold them."""
    X, y, w = rng.normal(size=(40, 3)).astype("float32"), np.arange(40) % 3, rng.integers(1, 4, size=40) * 1.0
    losses = []
    for u in (1.0, unit):
        trainer = sx.Trainer(sx.Linear(3, 3), max_steps=5, log_every=None)
        losses.append(trainer.fit(X, y, sample_weight=u * w).loss)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3 if unit < 1e-308 else 1e-6)


@pytest.mark.parametrize("callbacks", [print, "print", {print}, [print, 3]])
def test_callbacks_that_cannot_be_called_are_refused(callbacks):
    for refused in (
        lambda: sx.SoftmaxClassifier(device="cpu", callbacks=callbacks).fit([[0.0], [1], [1], [0]], LABELS),
        lambda: sx.Trainer(sx.Linear(1, 2), callbacks=callbacks),
    ):
        with pytest.raises(TypeError, match=r"^`callbacks` must be a sequence of callables, got .*; put .* list\.$"):
            refused()


@pytest.mark.parametrize("observe", [3, "print", [print]])
def test_an_observer_that_cannot_be_called_is_refused(observe):
    with pytest.raises(TypeError, match=r"`observe` must be callable, got .*; pass"):
        sx.SoftmaxClassifier(device="cpu").fit([[0.0], [1], [1], [0]], LABELS, observe=observe)


@pytest.mark.parametrize("random_state", [-1, "a", 1.5, True])
def test_a_bad_seed_is_refused_by_whatever_draws(random_state):
    for call in (
        lambda: sx.SoftmaxClassifier(random_state=random_state).fit([[0.0], [1], [1], [0]], LABELS),
        lambda: sx.Trainer(sx.Linear(2, 2), random_state=random_state),
        lambda: sx.MLP([2, 2], random_state=random_state),
    ):
        with pytest.raises((TypeError, ValueError), match=r"`random_state` must be None, .*, got .*; choose a seed"):
            call()


def test_parameters_may_be_any_real_numbers(rng):
    X, y = rng.normal(size=(20, 2)), np.arange(20) % 2
    expected = sx.SoftmaxClassifier(C=0.5, tol=0.25, device="cpu").fit(X, y).coef_
    for kind in (np.float32, np.array, lambda x: Fraction(x)):
        model = sx.SoftmaxClassifier(C=kind(0.5), tol=kind(0.25), device="cpu").fit(X, y)
        np.testing.assert_array_equal(model.coef_, expected)


def test_a_network_names_logits_that_overflow(xp):
    for dtype in xp.float_dtypes:
        big = float(np.finfo(dtype).max)
        model = sx.Linear(2, 3)
        model.params["W"] = np.array([[1.0, 2, -1], [1, 2, -1]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for method in (model, model.predict):
                with pytest.raises(ValueError, match=rf"`X` must have logits that {dtype} can hold, got an overflow"):
                    method(xp.asarray(np.full((3, 2), big), dtype))
                with pytest.raises(ValueError, match="`X` must be finite, got NaN at row 1, column 0; drop"):
                    method(xp.asarray([[0.0, 1.0], [np.nan, 1.0]], dtype))
