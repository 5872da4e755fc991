"""The row pass of every provider, and the objective that adds it up, against the oracle."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import numpy as np
import oracle
import pytest
from conftest import Library
from tolerances import TOLERANCE

from softmax_xp import arrays
from softmax_xp.arrays import row_blocks
from softmax_xp.kernels import PROVIDERS, blocked, kernels_for, reference
from softmax_xp.kernels.row_pass import RowPass
from softmax_xp.kernels.workspace import Workspace
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows

TARGETS = ["labels", "probabilities"]


class Problem:
    """One problem as a library holds it in one dtype, and in float64 as the oracle must be given it."""

    def __init__(self, xp, rng, dtype, n=13, d=4, c=3, weighted=False, targets="labels", fit_intercept=True):
        self.xp, self.dtype, self.c, self.fit_intercept = xp, dtype, c, fit_intercept
        self.labelled = targets == "labels"
        self.X = self.given(rng.normal(size=(n, d)))
        if self.labelled:
            self.t = xp.asarray(rng.integers(0, c, size=n))
        else:
            self.t = self.given(np.vstack([np.eye(c)[:1], rng.dirichlet(np.ones(c), size=n - 1)]))
        self.weight = self.given(rng.uniform(0.5, 2.0, size=n)) if weighted else None
        self.shape = (1 if c == 2 else c, d)
        self.params = rng.normal(size=self.shape[0] * (d + fit_intercept))
        self.total = float(n if self.weight is None else self.exact(self.weight).sum())

    def given(self, x):
        return self.xp.asarray(x, self.dtype)

    def exact(self, x):
        x = self.xp.to_numpy(x)
        return x if np.issubdtype(x.dtype, np.integer) else x.astype(np.float64)

    def objective(self, strength=0.3, workers=None):
        rows = DenseRows(self.X, self.weight, workers)
        return LinearObjective(rows, self.t, self.c, Penalty(strength), self.fit_intercept)

    def expected(self, params, strength=0.3):
        """Value and gradient by the oracle, at float64 parameters."""
        n_coef = self.shape[0] * self.shape[1]
        coef, intercept = params[:n_coef].reshape(self.shape), params[n_coef:] if self.fit_intercept else None
        weight = None if self.weight is None else self.exact(self.weight)
        loss, grad_coef, grad_intercept = oracle.linear_sums(
            coef, intercept, self.exact(self.X), self.exact(self.t), weight
        )
        value = loss / self.total + 0.5 * strength * float((coef**2).sum())
        grad = (grad_coef / self.total + strength * coef).ravel()
        return value, np.concatenate([grad, grad_intercept / self.total]) if self.fit_intercept else grad


HERE = Library("numpy")


def wide(xp):
    """The name of the widest floating dtype of a library."""
    return xp.float_dtypes[-1]


def bound(quantity, dtype, expected):
    """What the table allows around `expected`, for values computed in `dtype`."""
    relative, absolute = TOLERANCE[quantity][dtype]
    return relative * np.abs(expected).max() + absolute


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("c", [2, 3, 11])
def test_value_and_grad_is_the_oracles(xp, rng, c, fit_intercept, weighted, targets):
    for dtype in xp.float_dtypes:
        p = Problem(xp, rng, dtype, c=c, weighted=weighted, targets=targets, fit_intercept=fit_intercept)
        params = p.given(p.params)
        value, grad = p.objective().value_and_grad(params)
        expected, expected_grad = p.expected(p.exact(params))
        xp.assert_close(value, expected, wide(xp), "loss", bound("loss", dtype, expected))
        xp.assert_close(grad, expected_grad, dtype, "grad")


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 3, 4), (5, 1, 3)])  # (n, D, C)
def test_value_and_grad_of_the_smallest_shapes(xp, rng, shape):
    n, d, c = shape
    for dtype in xp.float_dtypes:
        p = Problem(xp, rng, dtype, n, d, c)
        params = p.given(p.params)
        value, grad = p.objective().value_and_grad(params)
        expected, expected_grad = p.expected(p.exact(params))
        xp.assert_close(value, expected, wide(xp), "loss", bound("loss", dtype, expected))
        xp.assert_close(grad, expected_grad, dtype, "grad")


@pytest.mark.parametrize("c", [2, 3])
def test_grad_has_the_dtype_of_the_parameters(xp, rng, c):
    """float64 parameters with float32 rows: steps smaller than the rounding of the data are not lost."""
    if wide(xp) != "float64":
        pytest.skip(f"{xp} has no float64")
    p = Problem(xp, rng, "float32", c=c, weighted=True)
    value, grad = p.objective().value_and_grad(xp.asarray(p.params, "float64"))
    expected, expected_grad = p.expected(p.params)
    xp.assert_close(value, expected, "float64", "loss", bound("loss", "float32", expected))
    xp.assert_close(grad, expected_grad, "float64", "grad", bound("grad", "float32", expected_grad))
    # The penalty knows of no rounding: its gradient keeps what float32 cannot hold.
    far, tiny = np.zeros(len(p.params)), np.zeros(len(p.params))
    far[0], tiny[0] = 1.0, 1e-12
    _, base = p.objective(strength=1e6).value_and_grad(xp.asarray(far))
    _, moved = p.objective(strength=1e6).value_and_grad(xp.asarray(far + tiny))
    assert float(moved[0]) - float(base[0]) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("c", "fit_intercept", "weighted"), [(2, True, True), (3, True, False), (4, False, True)])
def test_grad_is_the_central_difference_of_value(xp, rng, c, fit_intercept, weighted, targets):
    if wide(xp) != "float64":
        pytest.skip(f"{xp} has no float64 to difference in")
    p = Problem(xp, rng, "float64", c=c, weighted=weighted, targets=targets, fit_intercept=fit_intercept)
    f = p.objective()
    _, grad = f.value_and_grad(xp.asarray(p.params))
    expected = oracle.central_difference(lambda x: f.value_and_grad(xp.asarray(x))[0], p.params)
    xp.assert_close(grad, expected, "float64", "difference")


@pytest.mark.parametrize("c", [2, 3])
def test_value_and_grad_does_not_depend_on_blocks(xp, rng, monkeypatch, c):
    for dtype, targets, schedule in itertools.product(xp.float_dtypes, TARGETS, SCHEDULES):
        p = Problem(xp, rng, dtype, n=53, c=c, weighted=True, targets=targets)
        params = p.given(p.params)
        with many_blocks(monkeypatch, schedule, 8 * c * 5):
            assert len(list(row_blocks(53, 8 * c))) == 11
            value, grad = p.objective().value_and_grad(params)
        expected, expected_grad = p.objective().value_and_grad(params)
        xp.assert_close(value, float(expected), wide(xp), "loss", bound("loss", dtype, float(expected)))
        xp.assert_close(grad, xp.to_numpy(expected_grad), dtype, "grad")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("c", [2, 3, 11])
def test_hessian_product_is_the_difference_of_the_oracles_gradients(xp, rng, c, fit_intercept, weighted):
    for dtype in xp.float_dtypes:
        p = Problem(xp, rng, dtype, c=c, weighted=weighted, fit_intercept=fit_intercept)
        params, v = p.given(p.params), p.given(rng.normal(size=p.params.shape))
        expected = oracle.directional_difference(lambda x, p=p: p.expected(x)[1], p.exact(params), p.exact(v))
        product = p.objective().hessian_product(params)
        xp.assert_close(product(v), expected, dtype, "hessian")
        xp.assert_close(product(2 * v), 2 * expected, dtype, "hessian")  # it may be called again


@pytest.mark.parametrize("c", [2, 3])
def test_hessian_product_has_the_dtype_of_the_parameters(xp, rng, c):
    """float64 parameters with float32 rows: the penalty's part keeps what float32 cannot hold."""
    if wide(xp) != "float64":
        pytest.skip(f"{xp} has no float64")
    p = Problem(xp, rng, "float32", c=c, weighted=True)
    v = np.zeros(len(p.params))
    v[0], v[1] = 1.0, 1e-9
    products = [p.objective(strength).hessian_product(xp.asarray(p.params))(xp.asarray(v)) for strength in (0.0, 1e6)]
    xp.assert_here(products[1], "float64", p.params.shape)
    assert float(products[1][1]) - float(products[0][1]) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize("schedule", ["lanes", "superblocks"])
def test_results_do_not_depend_on_the_number_of_workers(rng, monkeypatch, c, schedule):
    """Not by a single bit: what is added to what follows from the shapes alone."""
    for dtype, targets in itertools.product(("float32", "float64"), TARGETS):
        p = Problem(HERE, rng, dtype, n=401, d=7, c=c, weighted=True, targets=targets)
        params, v = p.given(p.params), p.given(rng.normal(size=p.params.shape))
        with many_blocks(monkeypatch, schedule):
            results = []
            for workers in (1, 2, 3):
                f = p.objective(workers=workers)
                # Three times, as the threads take turns as they come.
                results += [(*f.value_and_grad(params), f.hessian_product(params)(v)) for _ in range(3)]
        for one, other in itertools.pairwise(results):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_rounding_error_is_above_that_of_the_value_and_not_far(xp, rng):
    for scale, fit_intercept in itertools.product((0.0, 1.0, 300.0), (False, True)):
        p = Problem(xp, rng, "float32", n=200, d=6, fit_intercept=fit_intercept)
        f, params = p.objective(strength=0.0), p.given(scale * p.params)
        error = abs(float(f.value_and_grad(params)[0]) - p.expected(p.exact(params), strength=0.0)[0])
        told, eps = f.rounding_error(params), float(np.finfo("float32").eps)
        assert error <= told <= eps * (1 + 20 * scale)
        assert told >= eps * (1 + scale)


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("n", [1, 6, 7, 8, 100])
def test_row_blocks_hold_every_row_once(monkeypatch, n, itemsize):
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 7 * 3 * itemsize)
    blocks = list(row_blocks(n, 3 * itemsize))
    assert [i for rows in blocks for i in range(n)[rows]] == list(range(n))
    assert max(rows.stop - rows.start for rows in blocks) == min(n, 7)
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 1)
    assert len(list(row_blocks(n, 3 * itemsize))) == n  # a row longer than a block still passes


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_batch_estimates_average_to_the_whole(xp, rng, weighted, targets):
    for dtype, c in itertools.product(xp.float_dtypes, (2, 3)):
        p = Problem(xp, rng, dtype, n=24, c=c, weighted=weighted, targets=targets)
        f, params = p.objective(), p.given(p.params)
        parts = [f.batch_value_and_grad(params, xp.asarray(rows)) for rows in rng.permutation(24).reshape(4, 6)]
        expected, expected_grad = p.expected(p.exact(params))
        value = sum(float(value) for value, _ in parts) / 4
        assert value == pytest.approx(expected, abs=bound("loss", dtype, expected))
        grad = sum(p.exact(grad) for _, grad in parts) / 4
        np.testing.assert_allclose(grad, expected_grad, rtol=0, atol=2 * bound("grad", dtype, expected_grad))
        for value, grad in parts:
            xp.assert_here(value, wide(xp), ())
            xp.assert_here(grad, dtype, p.params.shape)


def test_a_duplicated_row_is_a_row_of_weight_two(xp, rng):
    for dtype in xp.float_dtypes:
        once = Problem(xp, rng, dtype, n=8)
        twice = once.objective()
        index = xp.asarray([0, 1, 2, 3, 4, 5, 6, 7, 7])
        once.weight = xp.asarray([1.0] * 7 + [2.0], dtype)
        twice.rows, twice.targets = DenseRows(xp.take(once.X, index, axis=0)), xp.take(once.t, index, axis=0)
        params = once.given(once.params)
        (value, grad), (expected, expected_grad) = (f.value_and_grad(params) for f in (once.objective(), twice))
        xp.assert_close(value, float(expected), wide(xp), "loss", bound("loss", dtype, float(expected)))
        xp.assert_close(grad, xp.to_numpy(expected_grad), dtype, "grad")


def test_objective_takes_labels_of_any_integer_dtype(xp, rng):
    p = Problem(xp, rng, "float32")
    expected, expected_grad = p.objective().value_and_grad(p.given(p.params))
    for dtype in ("int8", "uint8", "int16", "int32", "int64"):
        p.t = xp.astype(p.t, getattr(xp, dtype))
        value, grad = p.objective().value_and_grad(p.given(p.params))
        assert float(value) == float(expected)
        xp.assert_close(grad, xp.to_numpy(expected_grad), "float32", "grad")


@pytest.mark.parametrize(("dtype", "c"), [("int8", 200), ("uint8", 300), ("int16", 300)])
def test_kernels_take_labels_that_are_narrower_than_the_classes(xp, rng, dtype, c):
    t = rng.integers(0, 127, size=6)
    t[0] = 0  # what class 256 would be rounded to
    z = xp.asarray(rng.normal(size=(6, c)), "float32")
    expected, expected_grad = oracle.cross_entropy(xp.to_numpy(z), t, smoothing=0.1, reduction="none")
    for kernels in providers(xp):
        loss, grad = kernels.cross_entropy_with_grad(z, xp.asarray(t, dtype), None, RowPass(smoothing=0.1))
        xp.assert_close(loss, expected, "float32", "rows")
        xp.assert_close(grad, expected_grad, "float32", "grad")


def test_arguments_are_not_modified(xp, rng):
    for dtype, targets in itertools.product(xp.float_dtypes, TARGETS):
        p = Problem(xp, rng, dtype, weighted=True, targets=targets)
        arrays = [p.X, p.t, p.weight, p.given(p.params)]
        before = [xp.to_numpy(a).copy() for a in arrays]
        p.objective().value_and_grad(arrays[-1])
        p.objective().batch_value_and_grad(arrays[-1], xp.asarray([3, 1, 1]))
        for a, kept in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(xp.to_numpy(a), kept)


def test_l2_is_half_the_sum_of_squares(xp, rng):
    for dtype in xp.float_dtypes:
        coef = xp.asarray(rng.normal(size=(3, 5)), dtype)
        exact = xp.to_numpy(coef).astype(np.float64)
        expected = 0.35 * (exact**2).sum()
        xp.assert_close(Penalty(0.7).value(coef), expected, wide(xp), "loss", bound("loss", dtype, expected))
        xp.assert_close(Penalty(0.7).grad(coef), 0.7 * exact, dtype, "grad")


def test_l2_of_float32_is_summed_in_float64(xp):
    if wide(xp) != "float64":
        pytest.skip(f"{xp} has no float64 to sum in")
    coef = xp.asarray(np.full((1000, 100), 1.1), "float32")
    exact = 50_000 * float(np.float32(1.1)) ** 2
    assert float(Penalty(1.0).value(coef)) == pytest.approx(exact, rel=1e-12)


# Providers of the row pass.


def providers(xp):
    """The providers that run on a library: the definition, and what is faster there."""
    faster = {kernels_for(xp.namespace, getattr(xp.namespace, dtype)) for dtype in xp.float_dtypes}
    return sorted({reference, *faster}, key=lambda module: module.__name__)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks in every call, and a last one that is shorter."""
    monkeypatch.setattr(blocked, "BLOCK_BYTES", 1)
    monkeypatch.setattr(blocked, "MIN_BLOCK_ROWS", 3)


# The ways to share out an evaluation, on small problems: lanes of two and three blocks of three rows, with logits
# class-major and row-major, and of blocks of seven rows in pieces of two; and superblocks of 25 rows, of tiles of 20
# rows and 3 classes, passed over row by row. The last of each is shorter.
LANES = {"BLOCK_BYTES": 1, "MIN_BLOCK_ROWS": 3, "BLOCK_WORK": 1, "MIN_LANES": 2, "MAX_LANES": 5}
SCHEDULES = {
    "lanes": LANES,
    "lanes, row-major": {**LANES, "MAX_CLASS_MAJOR": 0},
    "lanes, in pieces": {
        **LANES,
        "MIN_BLOCK_ROWS": 7,
        "_piece_rows": lambda n_rows, n_features, n_coef: 2 if n_rows > 2 else None,
    },
    "superblocks": {
        "LANE_BYTES": 0,
        "SUPERBLOCK_BYTES": 1,
        "MIN_SUPERBLOCK_ROWS": 25,
        "SUPERBLOCK_ROWS_PER_FEATURE": 0,
        "TILE_ROWS": 20,
        "TILE_CLASSES": 3,
        "MIN_TILES": 1,
        "TASK_BYTES": 1,
    },
}


@contextmanager
def many_blocks(monkeypatch, schedule, block_bytes=100):
    """Many small blocks in every provider, in this schedule of the one that has two."""

    def refuse(*args):
        raise AssertionError(f"not in the schedule {schedule}")

    with monkeypatch.context() as patch:
        patch.setattr(arrays, "BLOCK_BYTES", block_bytes)
        for name, value in SCHEDULES[schedule].items():
            patch.setattr(blocked, name, value)
        patch.setattr(blocked, f"_sums_by_{'lanes' if schedule == 'superblocks' else 'superblocks'}", refuse)
        yield


def provider_schedules(xp):
    """Each provider with each of its schedules: the definition has one."""
    return [(each, name) for each in providers(xp) for name in (SCHEDULES if each is blocked else ["lanes"])]


def test_providers_are_the_blocked_ones_on_numpy_only(xp):
    library = "numpy" if xp.name.startswith("numpy") else xp.name.partition("-")[0]
    for dtype in xp.float_dtypes:
        if library == "numpy":
            assert kernels_for(xp.namespace, getattr(xp.namespace, dtype)) is blocked
        elif not any(name == library for name, _ in PROVIDERS):
            assert kernels_for(xp.namespace, getattr(xp.namespace, dtype)) is reference


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_kernels_softmax_is_the_oracles(xp, rng, axis):
    for kernels, dtype, (n, c) in itertools.product(providers(xp), xp.float_dtypes, [(1, 1), (7, 2), (10, 5)]):
        z = xp.asarray(rng.normal(size=(n, c)), dtype)
        rows = xp.to_numpy(z).astype(np.float64)
        given = z.T if axis == 0 else z
        for function, expected in (
            (kernels.softmax, oracle.softmax(rows)),
            (kernels.log_softmax, oracle.log_softmax(rows)),
        ):
            xp.assert_close(function(given, axis), expected.T if axis == 0 else expected, dtype, "rows")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_kernels_cross_entropy_is_the_oracles(xp, rng, targets, weighted, smoothing, axis):
    for kernels, dtype, (n, c) in itertools.product(providers(xp), xp.float_dtypes, [(1, 2), (10, 5)]):
        p = Problem(xp, rng, dtype, n, 2, c, weighted, targets)
        z = p.given(rng.normal(size=(n, c)))
        weight = None if p.weight is None else p.exact(p.weight)
        expected, expected_grad = oracle.cross_entropy(p.exact(z), p.exact(p.t), weight, smoothing, reduction="none")
        if axis == 0:
            z, t, expected_grad = z.T, p.t if p.labelled else p.t.T, expected_grad.T
        else:
            t = p.t
        loss, grad = kernels.cross_entropy_with_grad(z, t, p.weight, RowPass(smoothing=smoothing), axis)
        alone = kernels.cross_entropy(z, t, p.weight, RowPass(smoothing=smoothing), axis)
        xp.assert_close(loss, expected, dtype, "rows")
        xp.assert_close(alone, expected, dtype, "rows")
        xp.assert_close(grad, expected_grad, dtype, "grad")


# (n, D, C, rows of coefficients): two classes in one row and in two, and more classes or features than one task takes.
SHAPES = [
    (1, 4, 3, 3),
    (10, 4, 2, 1),
    (10, 4, 2, 2),
    (97, 4, 3, 3),
    (53, 2, 11, 11),
    (20, 300, 3, 3),
    (20, 2, 300, 300),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_kernels_linear_sums_are_the_oracles(xp, rng, monkeypatch, targets, fit_intercept, weighted, smoothing):
    for dtype, (n, d, c, n_coef) in itertools.product(xp.float_dtypes, SHAPES):
        p = Problem(xp, rng, dtype, n, d, c, weighted, targets)
        # The dtype of the coefficients need not be that of the rows.
        for coef_dtype in {dtype, wide(xp)}:
            coef = xp.asarray(rng.normal(size=(n_coef, d)) / d**0.5, coef_dtype)
            intercept = xp.asarray(rng.normal(size=n_coef), coef_dtype) if fit_intercept else None
            expected, *expected_grads = oracle.linear_sums(
                p.exact(coef),
                None if intercept is None else p.exact(intercept),
                p.exact(p.X),
                p.exact(p.t),
                None if p.weight is None else p.exact(p.weight),
                smoothing,
            )
            for kernels, schedule in provider_schedules(xp):
                with many_blocks(monkeypatch, schedule):
                    loss, *grads = kernels.linear_sums(
                        coef, intercept, p.X, p.t, p.weight, RowPass(smoothing=smoothing)
                    )
                xp.assert_close(loss, expected, wide(xp), "loss", bound("loss", dtype, expected))
                xp.assert_close(grads[0], expected_grads[0], dtype, "grad")
                if fit_intercept:
                    xp.assert_close(grads[1], expected_grads[1], dtype, "grad")
                else:
                    assert grads[1] is None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_kernels_hessian_products_are_the_differences_of_gradients(xp, rng, monkeypatch, fit_intercept, weighted):
    for dtype, (n, d, c, n_coef) in itertools.product(xp.float_dtypes, SHAPES):
        p = Problem(xp, rng, dtype, n, d, c, weighted)
        size = n_coef * d

        def split(x, n_coef=n_coef, d=d, size=size):
            return x[:size].reshape(n_coef, d), x[size:] if fit_intercept else None

        at, along = (p.given(rng.normal(size=size + n_coef * fit_intercept) / d**0.5) for _ in range(2))
        at, along = p.exact(at), p.exact(along)

        def gradient(x, p=p, split=split):
            weight = None if p.weight is None else p.exact(p.weight)
            _, grad, slope = oracle.linear_sums(*split(x), p.exact(p.X), p.exact(p.t), weight)
            return np.concatenate([grad.ravel(), slope]) if fit_intercept else grad.ravel()

        expected, expected_slope = split(oracle.directional_difference(gradient, at, along))
        arguments = [None if x is None else p.given(x) for x in (*split(at), *split(along))]
        arguments[2:2] = [p.X, p.t]
        for kernels, schedule in provider_schedules(xp):
            with many_blocks(monkeypatch, schedule):
                product, slope = kernels.linear_hessian_product(*arguments, p.weight)
            xp.assert_close(product, expected, dtype, "hessian")
            if fit_intercept:
                xp.assert_close(slope, expected_slope, dtype, "hessian")
            else:
                assert slope is None


@pytest.mark.parametrize("shape", [(20, 300, 3), (20, 2, 300), (20, 3, 5000), (20, 5000, 2)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocked_is_the_reference_where_classes_or_features_are_many(rng, monkeypatch, schedule, shape):
    """More than one task takes of a product with a superblock."""
    for dtype in ("float32", "float64"):
        p = Problem(HERE, rng, dtype, *shape, weighted=True)
        at, along = ([p.given(rng.normal(size=s) / 10) for s in (p.shape, p.shape[0])] for _ in range(2))
        with many_blocks(monkeypatch, schedule):
            actual = blocked.linear_sums(*at, p.X, p.t, p.weight, RowPass(smoothing=0.1))
            actual += blocked.linear_hessian_product(*at, p.X, p.t, *along, p.weight)
        expected = reference.linear_sums(*at, p.X, p.t, p.weight, RowPass(smoothing=0.1))
        expected += reference.linear_hessian_product(*at, p.X, p.t, *along, p.weight)
        for a, b, quantity in zip(actual, expected, ("loss", "grad", "grad", "hessian", "hessian"), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=bound(quantity, dtype, b))


@pytest.mark.parametrize("shape", [(97, 9, 11), (103, 4, 7), (20, 2, 9)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_buffer_never_grows_within_an_evaluation(rng, monkeypatch, schedule, shape):
    """Else the smaller one, while something still refers to it, would lie in memory beside the larger one."""

    class Watched(Workspace):
        def buffer(self, name, shape, dtype, *, shared=False):
            sizes.setdefault(name, []).append(int(np.prod(shape)))
            return super().buffer(name, shape, dtype, shared=shared)

    p = Problem(HERE, rng, "float32", *shape, weighted=True)
    at, along = ([p.given(rng.normal(size=s)) for s in (p.shape, p.shape[0])] for _ in range(2))
    with many_blocks(monkeypatch, schedule):
        for function, rest in (
            (blocked.linear_sums, (p.t, p.weight, RowPass(smoothing=0.1))),
            (blocked.linear_hessian_product, (p.t, *along, p.weight)),
        ):
            sizes: dict[str, list[int]] = {}
            function(*at, p.X, *rest, workspace=Watched(1))
            assert sizes
            assert {name: max(asked) for name, asked in sizes.items()} == {
                name: asked[0] for name, asked in sizes.items()
            }


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_workspace_may_be_used_for_any_shape_again(rng, monkeypatch, schedule):
    """Its buffers grow and shrink with what is asked, and nothing of the last call is left in the next."""
    workspace = Workspace(2)
    with many_blocks(monkeypatch, schedule):
        for n, d, c, dtype in (
            (50, 4, 3, "float64"),
            (97, 9, 11, "float32"),
            (10, 2, 2, "float64"),
            (97, 4, 3, "float32"),
        ):
            p = Problem(HERE, rng, dtype, n, d, c, weighted=True)
            arguments = p.given(rng.normal(size=(c, d))), p.given(rng.normal(size=c)), p.X
            along = p.given(rng.normal(size=(c, d))), p.given(rng.normal(size=c))
            kept = [a.copy() for a in (*arguments, *along)]
            for function, rest in (
                (blocked.linear_sums, (p.t, p.weight, RowPass(smoothing=0.1))),
                (blocked.linear_hessian_product, (p.t, *along)),
            ):
                first = function(*arguments, *rest, workspace=workspace)
                copies = [np.copy(x) for x in first]
                fresh = function(*arguments, *rest, workspace=Workspace(1))
                for a, b, copy in zip(first, fresh, copies, strict=True):
                    np.testing.assert_array_equal(a, b)
                    np.testing.assert_array_equal(a, copy)  # in memory of its own workspace, if of any
            for a, before in zip((*arguments, *along), kept, strict=True):
                np.testing.assert_array_equal(a, before)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_two_classes_in_two_rows_share_one_gradient(xp, rng, smoothing):
    """They differ by one logit, so that their gradients differ by the sign alone."""
    for kernels, dtype in itertools.product(providers(xp), xp.float_dtypes):
        p = Problem(xp, rng, dtype, n=50, c=2, weighted=True)
        coef, intercept = p.given(rng.normal(size=(2, 4))), p.given(rng.normal(size=2))
        _, grad, slope = (
            p.exact(x) for x in kernels.linear_sums(coef, intercept, p.X, p.t, p.weight, RowPass(smoothing=smoothing))
        )
        np.testing.assert_allclose(grad[0], -grad[1], atol=bound("grad", dtype, grad))
        np.testing.assert_allclose(slope[0], -slope[1], atol=bound("grad", dtype, slope))


@pytest.mark.usefixtures("small_blocks")
def test_blocked_is_the_reference_on_large_logits(rng):
    for dtype, targets, axis in itertools.product(("float32", "float64"), TARGETS, (0, 1)):
        z = (1e4 * rng.normal(size=(20, 6))).astype(dtype)
        t = rng.integers(0, 6, size=20) if targets == "labels" else rng.dirichlet(np.ones(6), size=20).astype(dtype)
        w = rng.uniform(size=20).astype(dtype)
        if axis == 0:
            z, t = z.T, t.T
        for given in (z, np.ascontiguousarray(z), np.asfortranarray(z)):
            actual = blocked.cross_entropy_with_grad(given, t, w, RowPass(smoothing=0.1), axis)
            expected = reference.cross_entropy_with_grad(z, t, w, RowPass(smoothing=0.1), axis)
            for a, b, quantity in zip(actual, expected, ("loss", "grad"), strict=True):
                assert a.dtype == b.dtype == dtype
                np.testing.assert_allclose(a, b, rtol=0, atol=bound(quantity, dtype, b))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocked_is_the_reference_where_exponentials_leave_the_range(rng, monkeypatch, schedule, smoothing):
    """Of rows with modest logits, with a label alone that is, with one alone that is not, and with its label beyond."""
    n, d, c = 120, 4, 7
    X, coef, b = (rng.integers(low, 4, size=size) for low, size in ((1, (n, d)), (0, (c, d)), (-3, c)))
    coef[0], b[0] = 0, 0
    X *= np.repeat([0, 1, -1, 1], n // 4)[:, None]
    weight = np.where(rng.random(n) < 0.2, 0.0, 1.0)
    for dtype, unit in (("float32", 1), ("float32", 30), ("float64", 300)):
        logits = unit * X @ coef.T + b  # integers, which are exact whatever the order of summation
        modest, label_alone, label_not, beyond = np.split(logits, 4)
        y = np.concatenate([modest.argmin(1), np.zeros(n // 4, np.int64), label_not.argmin(1), beyond.argmax(1)])
        largest = np.log(np.finfo(dtype).max)
        assert np.abs(modest).max() < 32
        if unit > 1:
            assert label_alone.max() > largest
            assert label_not.min() < -largest
        arguments = [x.astype(dtype) for x in (unit * coef, b, X)]
        with many_blocks(monkeypatch, schedule):
            actual = blocked.linear_sums(*arguments, y, weight.astype(dtype), RowPass(smoothing=smoothing))
        expected = reference.linear_sums(*arguments, y, weight.astype(dtype), RowPass(smoothing=smoothing))
        for a, e, quantity in zip(actual, expected, ("loss", "grad", "grad"), strict=True):
            assert a.dtype == e.dtype
            np.testing.assert_allclose(a, e, rtol=0, atol=bound(quantity, dtype, e))


@pytest.mark.parametrize("c", [2, 3, 1100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocked_multiplies_no_subnormal_numbers(rng, dtype, c):
    """X is the identity matrix, so that the results are the factors of the products with X."""
    n, info = 400, np.finfo(dtype)
    X, y = np.eye(n, dtype=dtype), np.zeros(n, dtype=np.int64)
    coef = np.zeros((c, n), dtype=dtype)
    coef[1:] = rng.uniform(1.2 * np.log(info.smallest_subnormal), 0, size=(c - 1, n))
    coef[:, ::2] += rng.uniform(-40, 40, size=n // 2)
    grad = blocked.linear_sums(coef, None, X, y)[1]
    along = rng.choice([-1.0, 1.0], size=(c, n)).astype(dtype)
    product = blocked.linear_hessian_product(coef, None, X, y, along, None)[0]
    p = reference.softmax(coef.astype("float64"), 0)
    of_row = np.sum(p * along, axis=0)
    for actual, exact in ((grad, p - np.eye(c)[:, :1]), (product, p * (along - of_row))):
        np.testing.assert_allclose(actual, exact, rtol=0, atol=8 * info.eps)
        assert ((actual == 0.0) | (np.abs(actual) >= info.tiny)).all()
        assert (actual[1:] == 0.0).mean() > 0.1  # many probabilities are subnormal, or less


@pytest.mark.usefixtures("small_blocks")
def test_providers_agree_where_a_class_is_masked(xp):
    z = xp.asarray([[0.0, -np.inf, 1.0], [2.0, 0.0, -np.inf]], "float32")
    kept, kept_grad = oracle.cross_entropy([[0.0, 1.0], [2.0, 0.0]], [1, 0], reduction="none")
    for kernels, t in itertools.product(providers(xp), ([2, 0], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])):
        t = xp.asarray(t) if np.ndim(t) == 1 else xp.asarray(t, "float32")
        loss, grad = kernels.cross_entropy_with_grad(z, t)
        xp.assert_close(loss, kept, "float32", "rows")
        expected = [[kept_grad[0, 0], 0, kept_grad[0, 1]], [*kept_grad[1], 0]]
        xp.assert_close(grad, expected, "float32", "grad")


@pytest.mark.parametrize(("n_features", "n_coef"), [(784, 12), (64, 10), (2, 24), (1300, 24)])
def test_pieces_are_products_that_openblas_does_without_copies(monkeypatch, n_features, n_coef):
    monkeypatch.setattr(blocked, "blas_architectures", lambda: frozenset({"SkylakeX"}))
    rows = blocked._piece_rows(1_000_000, n_features, n_coef)
    assert rows >= 32
    assert rows % 16 == 0
    assert rows * n_features * n_coef <= 1_000_000 < (rows + 16) * n_features * n_coef
    assert blocked._piece_rows(rows, n_features, n_coef) is None  # one piece is the whole


def test_products_are_whole_where_pieces_would_not_pay(monkeypatch):
    for architecture, n_features, n_coef in [
        ("SkylakeX", 784, 1),
        ("SkylakeX", 784, 25),
        ("SkylakeX", 1400, 24),
        ("Haswell", 784, 12),
        ("Zen", 784, 12),
    ]:
        monkeypatch.setattr(blocked, "blas_architectures", lambda name=architecture: frozenset({name}))
        assert blocked._piece_rows(1_000_000, n_features, n_coef) is None
