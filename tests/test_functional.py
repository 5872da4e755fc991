"""softmax, log_softmax, cross_entropy and softmax_loss against the oracle, on every library."""

from __future__ import annotations

import itertools
from importlib.util import find_spec

import numpy as np
import oracle
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from tolerances import LOGIT_ROUNDING, TOLERANCE

import softmax_xp as sx

SHAPES = [(1, 2), (1, 7), (5, 1), (7, 2), (6, 10), (3, 200), (40, 3)]  # (n, C)
REDUCTIONS = ["mean", "sum", "none"]


def floats(xp):
    """The dtypes of a library, with the 16-bit ones where it has them."""
    extra = {
        "numpy": ["float16", *(["bfloat16"] if find_spec("ml_dtypes") else [])],
        "torch": ["float16", "bfloat16"],
        "cupy": ["float16"],
    }
    return xp.float_dtypes + extra.get(xp.name, [])


def rounded(xp, x, dtype):
    """`x` as the library holds it in `dtype`, back in float64: what the oracle must be given."""
    return xp.to_numpy(xp.asarray(x, dtype)).astype(np.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_is_the_oracles(xp, rng, shape):
    for dtype, axis in itertools.product(floats(xp), (-1, 1)):
        z = rng.normal(size=shape)
        for function, expected in ((sx.softmax, oracle.softmax), (sx.log_softmax, oracle.log_softmax)):
            actual = function(xp.asarray(z, dtype), axis=axis)
            xp.assert_close(actual, expected(rounded(xp, z, dtype)), dtype, "rows")


def test_softmax_takes_any_axis_of_any_rank(xp, rng):
    z = rng.normal(size=(3, 4, 5))
    for dtype in xp.float_dtypes:
        for axis in (-3, -2, -1, 0, 1, 2):
            rows = np.moveaxis(rounded(xp, z, dtype), axis, -1)
            for function, of_rows in ((sx.softmax, oracle.softmax), (sx.log_softmax, oracle.log_softmax)):
                expected = of_rows(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)
                actual = function(xp.asarray(z, dtype), axis)
                xp.assert_close(actual, np.moveaxis(expected, -1, axis), dtype, "rows")


@pytest.mark.parametrize("size", [1e5, 3e38])
def test_softmax_of_huge_logits_is_finite(xp, size):
    z = np.array([[size, -size, 0.0], [-size, -size, -size], [size, size, -size]])
    if size > 1e30:
        z = z / 4  # so that differences of float32 stay finite
    for dtype in xp.float_dtypes:
        p = xp.to_numpy(sx.softmax(xp.asarray(z, dtype)))
        np.testing.assert_allclose(p, [[1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0]], atol=1e-6)
        log_p = xp.to_numpy(sx.log_softmax(xp.asarray(z, dtype)))
        assert np.isfinite(log_p).all()
        assert log_p[0, 1] == pytest.approx(-2 * z[0, 0], rel=1e-6)


def test_log_softmax_is_finite_where_softmax_underflows(xp):
    z = xp.asarray([[0.0, -200.0]], "float32")
    assert xp.to_numpy(sx.softmax(z))[0, 1] == 0
    assert xp.to_numpy(sx.log_softmax(z))[0, 1] == pytest.approx(-200)


def cases():
    """Every combination of options that has a meaning of its own."""
    for targets, weighted, smoothing, ignore, reduction in itertools.product(
        ("labels", "probabilities"), (False, True), (0.0, 0.1, 1.0), (None, -100, 1), REDUCTIONS
    ):
        if not (targets == "probabilities" and ignore is not None):
            yield targets, weighted, smoothing, ignore, reduction


@pytest.mark.parametrize(("targets", "weighted", "smoothing", "ignore", "reduction"), list(cases()))
def test_cross_entropy_is_the_oracles(xp, rng, targets, weighted, smoothing, ignore, reduction):
    for (n, c), dtype in itertools.product([(6, 3), (1, 2), (9, 40)], floats(xp)):
        z = rng.normal(size=(n, c))
        weight = rng.uniform(0.5, 2.0, size=n) if weighted else None
        if targets == "labels":
            t = rng.integers(0, c, size=n)
            if ignore is not None and n > 1:
                t[n // 2] = ignore
                t[0] = 0  # at least one row counts
            elif ignore is not None:
                t[0] = 0
            given = xp.asarray(t)
        else:
            t = rng.dirichlet(np.ones(c), size=n)
            t = t.astype("float32") if dtype != "float64" else t
            t[0] = np.eye(c)[0]  # certain, so that zeros occur
            given = xp.asarray(t, "float64" if dtype == "float64" else "float32")
        arguments = {
            "sample_weight": None if weight is None else xp.asarray(weight, dtype),
            "label_smoothing": smoothing,
            "ignore_index": ignore,
            "reduction": reduction,
        }
        loss, grad = sx.cross_entropy_with_grad(xp.asarray(z, dtype), given, **arguments)
        alone = sx.cross_entropy(xp.asarray(z, dtype), given, **arguments)
        expected_loss, expected_grad = oracle.cross_entropy(
            rounded(xp, z, dtype),
            t,
            None if weight is None else rounded(xp, weight, dtype),
            smoothing,
            ignore,
            reduction,
        )
        xp.assert_close(loss, expected_loss, dtype, "rows" if reduction == "none" else "loss", extra=1e-14)
        xp.assert_close(alone, expected_loss, dtype, "rows" if reduction == "none" else "loss", extra=1e-14)
        xp.assert_close(grad, expected_grad, dtype, "grad")


@pytest.mark.parametrize("size", [10.0, 50.0, 1e5])
def test_cross_entropy_of_large_logits_is_as_exact_as_they_are(xp, rng, size):
    z, t = size * rng.normal(size=(50, 7)), rng.integers(0, 7, size=50)
    for dtype in xp.float_dtypes:
        given = rounded(xp, z, dtype)
        extra = LOGIT_ROUNDING * np.finfo(dtype).eps * np.abs(given).max()
        expected, expected_grad = oracle.cross_entropy(given, t, reduction="none")
        loss, grad = sx.cross_entropy_with_grad(xp.asarray(z, dtype), xp.asarray(t), reduction="none")
        xp.assert_close(loss, expected, dtype, "rows", extra)
        xp.assert_close(grad, expected_grad, dtype, "grad", extra)


def test_cross_entropy_forms_the_true_class_entry_before_rounding(xp):
    for dtype in {"float16", "bfloat16"} & set(floats(xp)):
        z = xp.asarray([[8.0, 0.0, 0.0]], dtype)  # p = 0.9993: rounded to 16 bits first, p - 1 would be 0 or -0.002
        _, grad = sx.cross_entropy_with_grad(z, xp.asarray([0]))
        _, expected = oracle.cross_entropy(rounded(xp, [[8.0, 0.0, 0.0]], dtype), [0])
        assert float(grad[0, 0]) == pytest.approx(expected[0, 0], rel=2 * TOLERANCE["grad"][dtype][0])


def test_cross_entropy_of_a_masked_class_is_finite(xp):
    z = np.array([[0.0, -np.inf, 1.0], [2.0, 0.0, -np.inf]])
    loss, grad = sx.cross_entropy_with_grad(xp.asarray(z), xp.asarray([2, 0]))
    kept, kept_grad = oracle.cross_entropy([[0.0, 1.0], [2.0, 0.0]], [1, 0])
    assert float(loss) == pytest.approx(kept, rel=1e-6)
    np.testing.assert_allclose(
        xp.to_numpy(grad), [[kept_grad[0, 0], 0, kept_grad[0, 1]], [*kept_grad[1], 0]], atol=1e-6
    )
    t = xp.asarray([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    assert np.isfinite(float(sx.cross_entropy(xp.asarray(z), t)))


def test_cross_entropy_ignores_rows_whatever_they_hold(xp):
    z = xp.asarray([[1.0, 2.0], [np.nan, np.inf]])
    loss, grad = sx.cross_entropy_with_grad(z, xp.asarray([0, -1]), ignore_index=-1)
    expected, expected_grad = oracle.cross_entropy([[1.0, 2.0]], [0])
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(xp.to_numpy(grad), [expected_grad[0], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (0, 2, 5)])
def test_softmax_of_no_rows_is_empty(xp, shape):
    for function in (sx.softmax, sx.log_softmax):
        xp.assert_here(function(xp.asarray(np.empty(shape), "float32")), "float32", shape)


def test_rows_of_weight_zero_do_not_count_whatever_they_hold(xp):
    for dtype in xp.float_dtypes:
        for bad in (np.nan, -np.inf):
            z = xp.asarray([[1.0, 2.0, 0.5], [bad, 0.0, 1.0], [0.0, 1.0, 2.0]], dtype)
            w = xp.asarray([2.0, 0.0, 1.0], dtype)
            for t in (xp.asarray([0, 0, 2]), xp.asarray([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], dtype)):
                losses, grad = sx.cross_entropy_with_grad(z, t, w, reduction="none")
                assert float(losses[1]) == 0.0
                assert xp.to_numpy(grad)[1].tolist() == [0.0, 0.0, 0.0]
                assert np.isfinite(xp.to_numpy(losses)).all()
                assert (xp.to_numpy(grad)[[0, 2]] != 0).all()
                np.testing.assert_array_equal(
                    xp.to_numpy(losses), xp.to_numpy(sx.cross_entropy(z, t, w, reduction="none"))
                )


def test_cross_entropy_gradient_is_its_central_difference(xp, rng):
    if "float64" not in xp.float_dtypes:
        pytest.skip(f"{xp} has no float64 to difference in")
    z, t, w = rng.normal(size=(5, 4)), rng.integers(0, 4, size=5), rng.uniform(0.1, 2, size=5)
    p = rng.dirichlet(np.ones(4), size=5)
    for targets, smoothing, reduction in itertools.product((t, p), (0.0, 0.2), ("mean", "sum")):

        def loss(z, targets=targets, smoothing=smoothing, reduction=reduction):
            return sx.cross_entropy(xp.asarray(z), xp.asarray(targets), xp.asarray(w), smoothing, reduction=reduction)

        _, grad = sx.cross_entropy_with_grad(
            xp.asarray(z), xp.asarray(targets), xp.asarray(w), smoothing, reduction=reduction
        )
        xp.assert_close(grad, oracle.central_difference(loss, z), "float64", "difference")


LINEAR_SHAPES = [(1, 1, 2), (1, 5, 3), (8, 1, 2), (9, 4, 2), (7, 3, 11), (30, 6, 4), (3, 8, 1)]  # (n, D, C)


@pytest.mark.parametrize("shape", LINEAR_SHAPES)
@pytest.mark.parametrize("reg", [0.0, 0.3])
def test_softmax_loss_is_the_oracles(xp, rng, shape, reg):
    n, d, c = shape
    for dtype in floats(xp):
        W, X, y = rng.normal(size=(d, c)), rng.normal(size=(n, d)), rng.integers(0, c, size=n)
        loss, dW = sx.softmax_loss(xp.asarray(W, dtype), xp.asarray(X, dtype), xp.asarray(y), reg)
        expected, expected_dW = oracle.softmax_loss(rounded(xp, W, dtype), rounded(xp, X, dtype), y, reg)
        xp.assert_close(loss, expected, dtype, "loss")
        xp.assert_close(dW, expected_dW, dtype, "grad")


def test_softmax_loss_takes_arrays_as_they_lie(xp, rng):
    """Slices, transposes, Fortran order and a 0-d reg."""
    for dtype in xp.float_dtypes:
        W, X, y = rng.normal(size=(6, 8)), rng.normal(size=(20, 12)), rng.integers(0, 4, size=40)
        expected, expected_dW = oracle.softmax_loss(
            rounded(xp, W, dtype)[:, ::2], rounded(xp, X, dtype)[:, ::2], y[::2], 0.25
        )
        W_given, X_given, y_given = xp.asarray(W, dtype)[:, ::2], xp.asarray(X, dtype)[:, ::2], xp.asarray(y)[::2]
        loss, dW = sx.softmax_loss(W_given, X_given, y_given, xp.asarray(0.25, dtype))
        xp.assert_close(loss, expected, dtype, "loss")
        xp.assert_close(dW, expected_dW, dtype, "grad")
        fortran = [xp.asarray(np.ascontiguousarray(a.T), dtype).T for a in (W[:, ::2], X[:, ::2])]
        loss, dW = sx.softmax_loss(*fortran, y_given, 0.25)
        xp.assert_close(loss, expected, dtype, "loss")
        xp.assert_close(dW, expected_dW, dtype, "grad")


def test_softmax_loss_gradient_is_its_central_difference(xp, rng):
    if "float64" not in xp.float_dtypes:
        pytest.skip(f"{xp} has no float64 to difference in")
    W, X, y = rng.normal(size=(5, 3)), rng.normal(size=(12, 5)), rng.integers(0, 3, size=12)
    X, y = xp.asarray(X), xp.asarray(y)
    _, dW = sx.softmax_loss(xp.asarray(W), X, y, 0.1)
    expected = oracle.central_difference(lambda W: sx.softmax_loss(xp.asarray(W), X, y, 0.1)[0], W)
    xp.assert_close(dW, expected, "float64", "difference")


def test_softmax_loss_of_huge_logits_is_finite(xp, rng):
    for dtype in xp.float_dtypes:
        W, X, y = 1e5 * rng.normal(size=(4, 3)), rng.normal(size=(10, 4)), rng.integers(0, 3, size=10)
        loss, dW = sx.softmax_loss(xp.asarray(W, dtype), xp.asarray(X, dtype), xp.asarray(y), 0.0)
        W, X = rounded(xp, W, dtype), rounded(xp, X, dtype)
        expected, _ = oracle.softmax_loss(W, X, y, 0.0)
        # A product rounds each logit by about eps times its size, and with it the loss.
        xp.assert_close(loss, expected, dtype, "loss", LOGIT_ROUNDING * np.finfo(dtype).eps * np.abs(X @ W).max())
        assert np.isfinite(xp.to_numpy(dW)).all()


def test_softmax_loss_does_not_depend_on_blocks(rng, monkeypatch):
    from softmax_xp.kernels import blocked

    W, X, y = rng.normal(size=(5, 4)), rng.normal(size=(1000, 5)), rng.integers(0, 4, size=1000)
    loss, dW = sx.softmax_loss(W, X, y, 0.1)
    monkeypatch.setattr(blocked, "BLOCK_BYTES", 1)
    monkeypatch.setattr(blocked, "MIN_BLOCK_ROWS", 7)
    again, dW_again = sx.softmax_loss(W, X, y, 0.1)
    assert again == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(dW_again, dW, rtol=0, atol=1e-14)


def test_softmax_loss_mixes_float32_and_float64(rng):
    W, X, y = rng.normal(size=(5, 4)), rng.normal(size=(20, 5)), rng.integers(0, 4, size=20)
    loss, dW = sx.softmax_loss(W, X.astype("float32"), y, 0.1)
    expected, expected_dW = oracle.softmax_loss(W, X.astype("float32"), y, 0.1)
    assert loss.dtype == dW.dtype == np.float64
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(dW, expected_dW, atol=1e-12)


def test_arguments_are_not_modified(xp, rng):
    for dtype in xp.float_dtypes:
        z, W, X = (xp.asarray(rng.normal(size=shape), dtype) for shape in ((8, 3), (5, 3), (8, 5)))
        y, w = xp.asarray(rng.integers(0, 3, size=8)), xp.asarray(rng.uniform(1, 2, size=8), dtype)
        before = [xp.to_numpy(a).copy() for a in (z, W, X, y, w)]
        sx.softmax(z)
        sx.log_softmax(z)
        sx.cross_entropy(z, y, w, 0.1, ignore_index=1)
        sx.cross_entropy_with_grad(z, y, w, 0.1, ignore_index=1)
        sx.softmax_loss(W, X, y, 0.1)
        for a, kept in zip((z, W, X, y, w), before, strict=True):
            np.testing.assert_array_equal(xp.to_numpy(a), kept)


# Numbers of any size


SCALES = [2.0**-1070, 1e-300, 1e-60, 2e38 / 3, 1e60, 1e300, 2.0**1022]


@pytest.mark.parametrize("scale", SCALES)
def test_only_ratios_of_weights_matter_in_a_mean(xp, rng, scale):
    """Also of weights that the dtype of the logits cannot hold."""
    z, t, w = rng.normal(size=(6, 3)), rng.integers(0, 3, size=6), np.array([1.0, 0, 2, 1, 3, 1])
    expected, expected_grad = oracle.cross_entropy(z, t, w)
    for dtype in xp.float_dtypes:
        of_weights = xp.float_dtypes[-1]
        if not 1e-40 < scale < 1e38 and of_weights == "float32":
            continue
        given = xp.asarray(scale * w, of_weights)
        loss, grad = sx.cross_entropy_with_grad(xp.asarray(z, dtype), xp.asarray(t), given)
        xp.assert_close(loss, expected, dtype, "loss", extra=1e-6 if dtype == "float32" else 1e-14)
        xp.assert_close(grad, expected_grad, dtype, "grad")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weights_in_the_dtype_of_the_logits_may_be_of_any_size(rng, dtype):
    z, t = rng.normal(size=(4, 3)).astype(dtype), np.array([0, 1, 2, 0])
    info = np.finfo(dtype)
    for unit in (info.smallest_subnormal, info.max / 4):
        w = unit * np.array([1, 2, 4, 1], dtype)
        expected, expected_grad = oracle.cross_entropy(z, t, [1, 2, 4, 1])
        loss, grad = sx.cross_entropy_with_grad(z, t, w)
        assert loss == pytest.approx(expected, rel=TOLERANCE["loss"][dtype][0] + TOLERANCE["loss"][dtype][1])
        np.testing.assert_allclose(grad, expected_grad, atol=TOLERANCE["grad"][dtype][0])


def test_a_weight_of_an_ignored_row_does_not_drown_the_others():
    z, t = np.array([[1.0, 2.0], [0.0, 3.0]], "float32"), np.array([9, 0])
    expected, _ = oracle.cross_entropy(z[1:], t[1:])
    assert sx.cross_entropy(z, t, np.array([1e300, 1e-300]), ignore_index=9) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_weights_that_the_logits_cannot_hold_are_refused_where_they_are_no_ratios(reduction, scale):
    z, t = np.zeros((2, 3)), np.array([0, 1])
    w = scale * np.array([1.0, 2.0])
    with pytest.raises(
        ValueError, match=rf"`sample_weight` must lie in .*{reduction}.*float32.*; use reduction='mean'"
    ):
        sx.cross_entropy(z.astype("float32"), t, w, reduction=reduction)
    expected, _ = oracle.cross_entropy(z, t, w, reduction=reduction)
    np.testing.assert_allclose(sx.cross_entropy(z, t, w, reduction=reduction), expected, rtol=1e-14)


def test_a_sum_takes_weights_of_very_different_sizes():
    z, t, w = np.zeros((2, 2), "float32"), np.array([0, 1]), np.array([1.0, 1e-60])
    assert sx.cross_entropy(z, t, w, reduction="sum") == np.float32(np.log(2))
    with pytest.raises(ValueError, match=r"`sample_weight` must lie in .*got 1e-60"):
        sx.cross_entropy(z, t, w, reduction="none")
    assert sx.cross_entropy(z, t, np.array([1.0, 0.0]), reduction="none")[1] == 0.0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("function", [sx.cross_entropy, sx.cross_entropy_with_grad])
def test_losses_that_the_dtype_cannot_hold_are_refused(xp, function, reduction):
    for dtype in xp.float_dtypes:
        big = np.finfo(dtype).max
        z, good, bad = [[big, -big, 0.0], [0.0, 1.0, 2.0]], [0, 0], [1, 0]
        result = function(xp.asarray(z, dtype), xp.asarray(good), reduction=reduction)
        loss = xp.to_numpy(result[0] if isinstance(result, tuple) else result)
        row = 2.40760596  # of the second
        np.testing.assert_allclose(loss, {"mean": row / 2, "sum": row, "none": [0.0, row]}[reduction], rtol=1e-6)
        with pytest.raises(ValueError, match=rf"`logits` must have losses that {dtype} can hold.*; scale"):
            function(xp.asarray(z, dtype), xp.asarray(bad), reduction=reduction)
        with pytest.raises(ValueError, match=rf"`logits` must have losses that {dtype} can hold.*; scale"):
            sx.log_softmax(xp.asarray(z, dtype))
        np.testing.assert_allclose(xp.to_numpy(sx.softmax(xp.asarray(z, dtype)))[0], [1, 0, 0])


def test_sums_that_sixteen_bits_cannot_hold_are_refused():
    z, t = np.zeros((10, 3), "float16"), np.zeros(10, int)
    w = np.full(10, 6e4, "float16")
    with pytest.raises(ValueError, match=r"`logits` and `sample_weight` must have losses that float16 can hold"):
        sx.cross_entropy(z, t, w, reduction="sum")
    with pytest.raises(ValueError, match=r"`logits` must have losses that float16 can hold"):
        sx.log_softmax(np.array([[6e4, -6e4]], "float16"))


def test_an_infinite_loss_that_is_true_is_returned():
    """Of the label of a masked class: no dtype could hold it."""
    z = np.array([[0.0, -np.inf], [1.0, 2.0]])
    assert sx.cross_entropy(z, np.array([1, 0])) == np.inf
    losses = sx.cross_entropy(z, np.array([1, 0]), np.array([1e200, 1.0]), reduction="none")
    assert losses.tolist() == [np.inf, pytest.approx(1.3132616875)]
    np.testing.assert_allclose(sx.log_softmax(z)[0], [0.0, -np.inf])
    assert sx.cross_entropy(z, np.array([0, 0]), label_smoothing=0.1) == np.inf


def test_a_gradient_whose_sum_overflows_is_the_right_one(xp):
    for dtype, c in itertools.product(xp.float_dtypes, (2, 3)):
        big = float(np.finfo(dtype).max) / 2
        y = np.array([0, 0, 0, 0, 0])
        loss, dW = sx.softmax_loss(
            xp.asarray(np.zeros((1, c)), dtype), xp.asarray(np.full((5, 1), big), dtype), xp.asarray(y), 0.0
        )
        xp.assert_close(loss, np.log(c), dtype, "loss")
        expected = big * (np.full((1, c), 1.0 / c) - np.eye(c)[:1])
        xp.assert_close(dW, expected, dtype, "grad")


@given(
    hnp.arrays(np.float64, (5, 2), elements=st.floats(-3, 3)),
    hnp.arrays(np.float64, (2, 3), elements=st.floats(-3, 3)),
    st.lists(st.integers(-1010, 1010), min_size=2, max_size=2),
    st.integers(2, 3),
)
@settings(deadline=None)
def test_units_of_the_features_change_nothing_but_the_units_of_the_gradient(X, W, exponents, c):
    """To the last number that the dtype can hold: W times a unit and X divided by it."""
    W, y, unit = W[:, :c], np.array([0, 1, 1, 0, 1]), 2.0 ** np.array(exponents)
    X, W = np.where(np.abs(X) < 1e-3, 0.0, X), np.where(np.abs(W) < 1e-3, 0.0, W)  # so that none becomes subnormal
    expected, expected_dW = oracle.softmax_loss(W, X, y, 0.0)
    loss, dW = sx.softmax_loss(W * unit[:, None], X / unit, y, 0.0)
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-14)
    np.testing.assert_allclose(dW * unit[:, None], expected_dW, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "reg"), [(1e200, 1e-300), (1e-200, 1e300), (1e160, 1e-160), (1e-170, 1e200)])
def test_a_penalty_is_the_right_one_where_squares_overflow(size, reg):
    W, X, y = size * np.array([[1.0, 1.0]]), np.array([[1 / size], [-1 / size]]), np.array([0, 0])
    loss, dW = sx.softmax_loss(W, X, y, reg)
    assert loss == pytest.approx(np.log(2) + (size * reg) * size, rel=1e-12)
    np.testing.assert_allclose(dW, size * reg * np.ones((1, 2)), rtol=1e-12)
    loss, dW = sx.softmax_loss(W[:, :1], X, y, reg)  # of one class
    assert loss == pytest.approx(0.5 * (size * reg) * size, rel=1e-12)


@pytest.mark.parametrize(
    ("W", "X", "reg", "message"),
    [
        ([[1e200, 2e200]], [[1e200], [1.0]], 0.0, "`X` and `W` must have a product that float64 can hold.*; scale"),
        ([[1.0, -1.0]], [[1e308], [-1e308]], 0.0, "`X` and `W` must have a product that float64 can hold.*; scale"),
        ([[1e200, 1e200]], [[0.0], [0.0]], 1e200, "`reg` must give a loss and a gradient that float64 can hold"),
        ([[1e-10, 1e-10]], [[0.0], [0.0]], 1e-320, "`reg` must be 0 or lie in .* which float64 can hold, got 1e-320"),
    ],
)
def test_softmax_loss_names_what_overflows(W, X, reg, message):
    with pytest.raises(ValueError, match=message):
        sx.softmax_loss(np.array(W), np.array(X), np.array([0, 0]), reg)


def test_a_penalty_that_float32_cannot_hold_is_refused():
    W, X, y = np.ones((1, 2), "float32"), np.ones((2, 1), "float32"), np.array([0, 1])
    for reg in (1e-60, 1e60):
        with pytest.raises(ValueError, match=r"`reg` must be 0 or lie in .* which float32 can hold, got 1e.60"):
            sx.softmax_loss(W, X, y, reg)
        with pytest.raises(ValueError, match=r"`reg` must be 0 or lie in .* which float32 can hold, got 1e.60"):
            sx.Trainer(sx.Linear(1, 2), reg=reg, log_every=None).fit(X, y)


# Properties, on NumPy: what is true of every library is shown above to agree with it.

problems = st.tuples(st.integers(1, 9), st.integers(2, 8)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float64, shape, elements=st.floats(-50, 50)),
        hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)),
        hnp.arrays(np.float64, shape[0], elements=st.floats(0.01, 10)),
    )
)


@given(problems, st.floats(-1e3, 1e3))
def test_loss_does_not_change_when_a_row_is_shifted(problem, shift):
    z, t, w = problem
    loss, grad = sx.cross_entropy_with_grad(z, t, w)
    shifted, shifted_grad = sx.cross_entropy_with_grad(z + shift, t, w)
    assert shifted == pytest.approx(loss, abs=1e-11)
    np.testing.assert_allclose(shifted_grad, grad, atol=1e-11)


@given(problems, st.floats(0, 1))
def test_gradient_rows_sum_to_zero(problem, smoothing):
    z, t, w = problem
    _, grad = sx.cross_entropy_with_grad(z, t, w, smoothing, reduction="sum")
    np.testing.assert_allclose(grad.sum(axis=1), 0, atol=1e-13 * w.max())


@given(problems, st.randoms(use_true_random=False))
def test_permuted_classes_and_rows_give_the_same_loss(problem, random):
    z, t, w = problem
    classes, rows = list(range(z.shape[1])), list(range(z.shape[0]))
    random.shuffle(classes)
    random.shuffle(rows)
    loss, grad = sx.cross_entropy_with_grad(z, t, w)
    new_name = np.argsort(classes)
    other, other_grad = sx.cross_entropy_with_grad(z[np.ix_(rows, classes)], new_name[t[rows]], w[rows])
    assert other == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(other_grad, grad[np.ix_(rows, classes)], atol=1e-14)


@given(problems)
def test_a_duplicated_row_counts_as_weight_two(problem):
    z, t, w = problem
    doubled = sx.cross_entropy(np.vstack([z, z[:1]]), np.append(t, t[0]), np.append(w, w[0]), reduction="sum")
    w = w.copy()
    w[0] *= 2
    assert sx.cross_entropy(z, t, w, reduction="sum") == pytest.approx(doubled, rel=1e-13, abs=1e-13)


@given(problems, st.integers(1, 8))
def test_blocks_of_rows_add_up(problem, cut):
    z, t, w = problem
    parts = [(z[s], t[s], w[s]) for s in (slice(0, cut), slice(cut, None)) if len(z[s])]
    total = sum(float(sx.cross_entropy(*part, reduction="sum")) for part in parts)
    assert sx.cross_entropy(z, t, w, reduction="sum") == pytest.approx(total, rel=1e-13, abs=1e-13)


@given(problems)
@settings(max_examples=30)
def test_one_hot_probabilities_are_labels(problem):
    z, t, w = problem
    loss, grad = sx.cross_entropy_with_grad(z, t, w)
    other, other_grad = sx.cross_entropy_with_grad(z, np.eye(z.shape[1])[t], w)
    assert other == pytest.approx(loss, rel=1e-13, abs=1e-14)
    np.testing.assert_allclose(other_grad, grad, atol=1e-14)
