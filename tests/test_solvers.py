"""The descent methods, the stochastic optimizers and the schedules: known solutions, conditions, formulas."""

from __future__ import annotations

import itertools
import math
import pickle

import array_api_compat.numpy
import numpy as np
import oracle
import pytest
from tolerances import TOLERANCE

import softmax_xp as sx
from softmax_xp.curvature.timetable import Curvature
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows
from softmax_xp.solvers import Iterate, State, Status, lbfgs, line_search, newton_cg, solve, stochastic
from softmax_xp.solvers.descent import Evaluation


class Counted:
    """A value_and_grad that keeps every point it was asked for, and its answer, as float64 NumPy arrays."""

    def __init__(self, xp, function):
        self.xp, self.function = xp, function
        self.points: list[tuple[np.ndarray, float, np.ndarray]] = []

    def __call__(self, params):
        value, grad = self.function(params)
        exact = (self.xp.to_numpy(x).astype(np.float64) for x in (params, grad))
        self.points.append((next(exact), float(value), next(exact)))
        return value, grad


class NumPyLibrary:
    """What the problems below need of the fixture `xp`, where NumPy alone will do."""

    @staticmethod
    def asarray(x, dtype=None):
        return np.asarray(x, dtype=dtype)

    @staticmethod
    def to_numpy(x):
        return x

    sum = staticmethod(np.sum)


def counted(function):
    return Counted(NumPyLibrary, function)


class Quadratic:
    """x'Ax / 2 - b'x with a condition of 100, in the library's arrays; its least curvature is 1."""

    def __init__(self, xp, rng, dtype, n=8, condition=100):
        rotation, _ = np.linalg.qr(rng.normal(size=(n, n)))
        A, b = rotation @ np.diag(np.geomspace(1, condition, n)) @ rotation.T, rng.normal(size=n)
        self.xp, self.A, self.b = xp, xp.asarray(A, dtype), xp.asarray(b, dtype)
        self.minimum, self.minimiser = -0.5 * b @ np.linalg.solve(A, b), np.linalg.solve(A, b)

    def value_and_grad(self, x):
        Ax = self.A @ x
        return self.xp.sum(x * (0.5 * Ax - self.b)), Ax - self.b

    def hessian_product(self, x):
        return lambda direction: self.A @ direction


def rosenbrock(x):
    """The chained Rosenbrock function of NumPy arrays; its minimum, at ones, is 1."""
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    grad = np.zeros_like(x)
    grad[1:] += 200 * a
    grad[:-1] += -400 * a * x[:-1] - 2 * b
    return np.asarray(1 + (100 * a**2 + b**2).sum()), grad


def softmax_problem(xp, rng, dtype, n=40, d=4, c=3, strength=0.05):
    X, t = xp.asarray(rng.normal(size=(n, d)), dtype), xp.asarray(rng.integers(0, c, size=n))
    return LinearObjective(DenseRows(X), t, c, Penalty(strength))


def softmax_grad(xp, f, params):
    """The gradient of a softmax_problem by the oracle."""
    coef, intercept = (xp.to_numpy(x).astype(np.float64) for x in f.split(params))
    _, grad_coef, grad_intercept = oracle.linear_sums(
        coef, intercept, xp.to_numpy(f.rows.part(slice(None))), xp.to_numpy(f.targets)
    )
    n = f.rows.n_rows
    return np.concatenate([(grad_coef / n + f.penalty.l2 * coef).ravel(), grad_intercept / n])


# The descent methods, each with what it may know of the curvature.

METHODS = {
    "lbfgs": lambda f, value_and_grad, x, **options: lbfgs.minimize(value_and_grad, x, **options),
    "lbfgs, Hessian": lambda f, value_and_grad, x, **options: lbfgs.minimize(
        value_and_grad, x, hessian_product=f.hessian_product, **options
    ),
    "newton-cg": lambda f, value_and_grad, x, **options: newton_cg.minimize(
        value_and_grad, x, f.hessian_product, **options
    ),
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def test_descent_finds_the_minimum_of_a_quadratic(xp, rng, method):
    for dtype in xp.float_dtypes:
        f = Quadratic(xp, rng, dtype)
        counting, seen = Counted(xp, f.value_and_grad), []
        start = xp.asarray(np.full(8, 3.0), dtype)
        tol, noise = {"float64": (1e-12, 1e-14), "float32": (1e-5, 1e-6)}[dtype]
        solution = method(f, counting, start, tol=tol, noise=lambda x, noise=noise: noise, callbacks=[seen.append])
        assert solution.converged
        assert f"at most tol={tol:g} of the objective" in solution.message
        xp.assert_here(solution.params, dtype, (8,))
        away = xp.to_numpy(solution.params) - f.minimiser
        true_gap = 0.5 * away @ xp.to_numpy(f.A).astype(np.float64) @ away
        assert true_gap <= tol * abs(f.minimum)
        assert solution.estimated_gap <= tol * abs(solution.objective)
        assert solution.n_evaluations == len(counting.points)
        assert 0 < solution.n_iter == len(seen) < 60
        last = seen[-1]
        assert (solution.objective, solution.gradient_norm) == (last.objective, last.gradient_norm)
        assert solution.estimated_gap == last.estimated_gap
        assert [state.n_iter for state in seen] == list(range(1, len(seen) + 1))
        for number in (solution.objective, solution.gradient_norm, solution.estimated_gap):
            assert type(number) is float
        _, value, grad = next(p for p in counting.points if np.array_equal(p[0], xp.to_numpy(solution.params)))
        assert solution.objective == value
        assert solution.gradient_norm == pytest.approx(np.linalg.norm(grad), rel=1e-5)
        np.testing.assert_array_equal(xp.to_numpy(start), np.full(8, 3.0))  # not modified


@pytest.mark.parametrize("n", [2, 10])
def test_lbfgs_finds_the_minimum_of_rosenbrock(n):
    f = counted(rosenbrock)
    start = np.where(np.arange(n) % 2, 1.0, -1.2)
    solution = lbfgs.minimize(f, start, tol=1e-13, noise=lambda x: 1e-15)
    assert solution.converged
    np.testing.assert_allclose(solution.params, np.ones(n), atol=1e-6)
    assert solution.n_evaluations == len(f.points) < 250


def test_descent_finds_the_minimum_of_the_softmax_objective(xp, rng, method):
    for dtype in xp.float_dtypes:
        f = softmax_problem(xp, rng, dtype)
        counting, tol = Counted(xp, f.value_and_grad), {"float64": 1e-14, "float32": 1e-6}[dtype]
        start = xp.zeros(f.n_params, dtype=getattr(xp, dtype), device=xp.device)
        solution = method(f, counting, start, tol=tol, noise=f.rounding_error)
        assert solution.converged
        xp.assert_here(solution.params, dtype, (15,))
        # g'H^-1 g / 2 <= tol f, and the largest curvature is of the size of that of the features.
        norm = np.linalg.norm(softmax_grad(xp, f, solution.params))
        assert norm <= 2 * math.sqrt(tol)
        assert solution.gradient_norm == pytest.approx(norm, rel=1e-2, abs=1e-6 if dtype == "float32" else 1e-12)
        assert solution.n_evaluations == len(counting.points)


@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
def test_descent_ends_within_tol_of_the_minimum_and_not_far_below(rng, method, tol):
    for strength in (1e-3, 1.0):
        f = softmax_problem(NumPyLibrary, rng, "float64", n=200, d=20, c=5, strength=strength)
        best = newton_cg.minimize(f.value_and_grad, np.zeros(f.n_params), f.hessian_product, tol=1e-14).objective
        solution = method(f, f.value_and_grad, np.zeros(f.n_params), tol=tol)
        assert solution.converged
        assert solution.objective - best <= tol * best


def test_descent_gap_falls_with_the_steps_and_is_nearly_true(rng):
    """What callbacks are shown of Newton's method: each time the decrement at the iterate itself."""
    f = softmax_problem(NumPyLibrary, rng, "float64", n=200, d=20, c=5, strength=1e-3)
    best = newton_cg.minimize(f.value_and_grad, np.zeros(f.n_params), f.hessian_product, tol=1e-14).objective
    seen = []
    newton_cg.minimize(f.value_and_grad, np.zeros(f.n_params), f.hessian_product, tol=1e-10, callbacks=[seen.append])
    assert len(seen) >= 4
    for iterate in seen[:-1]:
        assert 0.1 <= iterate.estimated_gap / (iterate.objective - best) <= 10
    assert seen[-1].objective - best <= 10 * seen[-1].estimated_gap <= 1e-9 * best  # the end of the last step
    assert all(a.estimated_gap > b.estimated_gap for a, b in itertools.pairwise(seen))


def test_descent_params_of_float64_go_on_where_float32_rows_end(rng, method):
    """Parameters wider than the rows reach the float64 optimum of the float32 data as far as their sums allow."""
    X = rng.normal(size=(40, 4)).astype("float32")
    f = LinearObjective(DenseRows(X), rng.integers(0, 3, size=40), 3, Penalty(0.05))
    solution = method(f, f.value_and_grad, np.zeros(15), tol=1e-11, noise=f.rounding_error)
    assert solution.converged
    assert solution.params.dtype == np.float64
    wide = LinearObjective(DenseRows(X.astype("float64")), f.targets, 3, Penalty(0.05))
    best = newton_cg.minimize(wide.value_and_grad, np.zeros(15), wide.hessian_product, tol=1e-14).objective
    assert float(wide.value_and_grad(solution.params)[0]) <= best * (1 + 1e-10)


def test_lbfgs_remembers_no_absurd_ratio_of_gaps(rng, monkeypatch):
    """Of pairs that are mostly rounding it may be any number: with it no later gap would be small enough to end."""
    f = softmax_problem(NumPyLibrary, rng, "float64")
    huge = newton_cg.NewtonStep(np.ones(15), 1e30, 0.0)
    monkeypatch.setattr(lbfgs, "newton_step", lambda product, grad, *rest, **check: huge)
    method = lbfgs._LBFGS(5, None, f.hessian_product, hidden_gap=None, exact_inverse=None, renewed=None, due=None)
    point = line_search.evaluated(np, f.value_and_grad, np.zeros(15), np.zeros(15), 0.0)
    assert method.direction(point, math.inf)[1] == 1e30
    assert method.understated == lbfgs.MOST_UNDERSTATED


@pytest.mark.parametrize("memory", [1, 3, 20])
def test_lbfgs_works_with_any_memory(rng, memory):
    f = softmax_problem(NumPyLibrary, rng, "float64")
    solution = lbfgs.minimize(f.value_and_grad, np.zeros(15), tol=1e-14, memory=memory)
    assert solution.converged
    assert solution.gradient_norm <= 1e-6


def test_lbfgs_takes_fewer_steps_from_an_estimate_of_the_inverse_hessian(rng):
    """With the inverse itself it is Newton's method, and what is wrong with another the pairs put right."""
    f = Quadratic(NumPyLibrary, rng, "float64", n=30, condition=1e3)
    values, vectors = np.linalg.eigh(f.A)
    shapes = []

    def steps(estimate):
        def precondition(rows):
            shapes.append(rows.shape)
            return rows @ estimate

        solution = lbfgs.minimize(f.value_and_grad, np.zeros(30), tol=1e-8, precondition=precondition)
        assert solution.converged
        return solution.n_iter

    assert steps(vectors / values @ vectors.T) == 1
    few, many = steps(vectors / values * rng.uniform(0.5, 2.0, size=30) @ vectors.T), steps(np.eye(30))
    assert few < 30
    assert many > 3 * few
    assert {len(shape) for shape in shapes} == {2}


def recursion(pairs, v, start):
    """The product of the estimate of BFGS with v, by the two loops of Nocedal and Wright's algorithm 7.4."""
    q, alphas = v.copy(), []
    for s, y in reversed(pairs):
        alphas.append((s @ q) / (s @ y))
        q -= alphas[-1] * y
    s, y = pairs[-1]
    r = start @ q * (s @ y) / (y @ start @ y)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        r += (alpha - (y @ r) / (s @ y)) * s
    return r


@pytest.mark.parametrize("memory", [1, 2, 5])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_pairs_make_the_estimate_of_the_recursion(xp, rng, memory, preconditioned):
    n = 7
    A, root = (x @ x.T + np.eye(n) for x in rng.normal(size=(2, n, n)))
    start = root if preconditioned else np.eye(n)
    for dtype in xp.float_dtypes:
        pairs, known = lbfgs.Pairs(memory), []
        for i in range(12):
            if i == 8:  # what has been forgotten leaves nothing behind
                pairs.clear()
                known = []
                assert len(pairs) == 0
            s, v = (x.astype(dtype).astype("float64") for x in rng.normal(size=(2, n)))
            y = (A @ s).astype(dtype).astype("float64")
            known = [*known, (s, y)][-memory:]
            s, y, of_y, v, of_v = (xp.asarray(x, dtype) for x in (s, y, start @ y, v, start @ v))
            pairs.append(s, y, of_y, float(known[-1][0] @ known[-1][1]))
            assert len(pairs) == len(known)
            product = pairs.product(v, of_v)
            expected = recursion(known, xp.to_numpy(v).astype("float64"), start)
            xp.assert_here(product, dtype, (n,))
            tolerance = (1e-3 if dtype == "float32" else 1e-9) * np.abs(expected).max()
            np.testing.assert_allclose(xp.to_numpy(product), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", [1e-45, 1e45])
def test_pairs_of_any_size_make_finite_estimates(rng, scale):
    A, pairs, known = np.diag(np.geomspace(1, 100, 6)), lbfgs.Pairs(5), []
    for _ in range(9):
        s = scale * rng.normal(size=6)
        known = [*known, (s, A @ s)][-5:]
        pairs.append(*known[-1], A @ s, float(s @ A @ s))
    v = rng.normal(size=6)
    np.testing.assert_allclose(pairs.product(v, v), recursion(known, v, np.eye(6)), rtol=1e-6)


class Operations(np.ndarray):
    """An array that counts what is done with it, and with what comes of it."""

    count = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        Operations.count += 1
        plain = (x.view(np.ndarray) if isinstance(x, Operations) else x for x in inputs)
        result = getattr(ufunc, method)(*plain, **options)
        return result.view(Operations) if isinstance(result, np.ndarray) else result


def test_pairs_take_as_many_operations_however_many_they_are(rng):
    """Each is a launch on a GPU."""
    pairs, counts = lbfgs.Pairs(20), []
    for _ in range(25):
        s = rng.normal(size=9)
        pairs.append(s, 2.0 * s, 2.0 * s, float(2.0 * s @ s))
        v = rng.normal(size=9).view(Operations)
        Operations.count = 0
        pairs.product(v, v)
        counts.append(Operations.count)
    assert 0 < counts[0] == max(counts) <= 12


def test_lbfgs_goes_on_from_what_is_due(rng):
    """`due` is asked once a step with the value, the gap and the target; the next step is along what it makes alone."""
    f = Quadratic(NumPyLibrary, rng, "float64", n=30, condition=1e4)
    counting, asked, made, seen = counted(f.value_and_grad), [], [], []

    def due(value, gap, target):
        asked.append((value, gap, target))
        return make if len(asked) == 5 else None

    def make(params):
        made.append(params)
        return lambda rows: rows / np.diag(f.A)

    solution = lbfgs.minimize(
        counting,
        np.zeros(30),
        tol=1e-9,
        max_iter=9,
        due=due,
        callbacks=[lambda state: seen.append((state, counting.points[-1][0]))],
    )
    assert len(asked) == len(seen) == solution.n_iter == 9
    assert len(made) == 1
    np.testing.assert_array_equal(made[0], seen[4][1])
    step, expected = seen[5][1] - made[0], -f.value_and_grad(made[0])[1] / np.diag(f.A)
    np.testing.assert_allclose(step / np.linalg.norm(step), expected / np.linalg.norm(expected), atol=1e-9)
    for (value, gap, target), (state, _) in zip(asked, seen, strict=True):
        assert value == state.objective
        assert 0 < target <= 1e-9 * abs(state.objective)
        assert gap > 0


@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_lbfgs_with_the_hessian_is_not_deceived_by_its_pairs(rng, tol):
    """A few pairs of an ill-conditioned problem say that the optimum is near when it is not."""
    f = Quadratic(NumPyLibrary, rng, "float64", n=60, condition=1e4)
    start = np.zeros(60)

    def missing(solution):
        return (solution.objective - f.minimum) / abs(f.minimum)

    deceived = lbfgs.minimize(f.value_and_grad, start, tol=tol, memory=1)
    assert deceived.converged
    assert missing(deceived) > tol
    solution = lbfgs.minimize(f.value_and_grad, start, tol=tol, memory=1, hessian_product=f.hessian_product)
    assert solution.converged
    assert missing(solution) <= tol
    options = {"memory": 1, "hessian_product": f.hessian_product, "max_iter": deceived.n_iter}
    stopped = lbfgs.minimize(f.value_and_grad, start, tol=0.0, **options)
    np.testing.assert_array_equal(stopped.params, deceived.params)
    gap = stopped.objective - f.minimum
    assert math.isinf(stopped.estimated_gap) or 0.1 <= stopped.estimated_gap / gap <= 10  # known, or not


def hills(x):
    """A function of several minima, with concave stretches between them."""
    return np.asarray((np.sin(3 * x) + 0.1 * x**2).sum()), 3 * np.cos(3 * x) + 0.2 * x


@pytest.mark.parametrize("name", ["softmax", "rosenbrock", "hills", "far start"])
def test_lbfgs_steps_satisfy_the_strong_wolfe_conditions(rng, name):
    function, start = {
        "softmax": (softmax_problem(NumPyLibrary, rng, "float64").value_and_grad, rng.normal(size=15)),
        "rosenbrock": (rosenbrock, np.where(np.arange(6) % 2, 1.0, -1.2)),
        "hills": (hills, rng.normal(size=5) * 4),
        "far start": (rosenbrock, 30 * rng.normal(size=4)),
    }[name]
    f, accepted = counted(function), []

    def note(state):
        accepted.append(f.points[-1])
        assert f.points[-1][1] == state.objective  # the last point tried is the one taken

    solution = lbfgs.minimize(f, start, tol=1e-9, callbacks=[note])
    assert solution.converged
    assert len(accepted) == solution.n_iter >= 5
    for (x, value, grad), (x_new, value_new, grad_new) in itertools.pairwise([f.points[0], *accepted]):
        slope, slope_new = grad @ (x_new - x), grad_new @ (x_new - x)
        assert slope < 0
        assert value_new <= value + line_search.SUFFICIENT_DECREASE * slope
        assert abs(slope_new) <= line_search.CURVATURE * abs(slope) * (1 + 1e-9)
        assert value_new < value


# One step of Newton's method, by conjugate gradients.


@pytest.mark.parametrize("preconditioned", [False, True])
def test_newton_step_solves_the_system_and_knows_its_decrease(xp, rng, preconditioned):
    for dtype in xp.float_dtypes:
        f, grad = Quadratic(xp, rng, dtype, n=12), rng.normal(size=12)
        A = xp.to_numpy(f.A).astype(np.float64)
        estimate = xp.asarray(np.diag(1 / np.diag(A)) + 1e-3 * np.eye(12), dtype)

        def precondition(rows, estimate=estimate):
            assert tuple(rows.shape) == (1, 12)
            return rows @ estimate

        given = xp.asarray(grad, dtype)
        newton = newton_cg.newton_step(
            f.hessian_product(None), given, precondition if preconditioned else None, accuracy=1e-12
        )
        step, decrease = newton.step, newton.gap
        xp.assert_close(step, -np.linalg.solve(A, grad), dtype, "grad", extra=1e-5 if dtype == "float32" else 1e-9)
        expected = 0.5 * grad @ np.linalg.solve(A, grad)
        assert type(decrease) is float
        assert decrease == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 1e-9)
        np.testing.assert_array_equal(xp.to_numpy(given), grad.astype(dtype))  # not modified


@pytest.mark.parametrize(
    ("condition", "products", "factor"), [(10, 8, 1.1), (100, 20, 1.1), (1e4, 100, 1.1), (1e6, 100, 10)]
)
def test_newton_step_ends_early_with_most_of_the_decrease(rng, condition, products, factor):
    f, grad, asked = Quadratic(NumPyLibrary, rng, "float64", n=60, condition=condition), rng.normal(size=60), []

    def product(direction):
        asked.append(direction)
        return f.A @ direction

    newton = newton_cg.newton_step(product, grad)
    step, decrease = newton.step, newton.gap
    assert len(asked) <= products
    expected, model = 0.5 * grad @ np.linalg.solve(f.A, grad), -(grad @ step + 0.5 * step @ f.A @ step)
    assert expected / factor <= model <= expected * (1 + 1e-9)
    assert expected / factor <= decrease
    assert decrease <= factor * expected or math.isinf(newton.remainder)  # where 100 products are too few to know
    assert math.isinf(newton.remainder) == (condition == 1e6)
    asked.clear()
    newton_cg.newton_step(product, grad, accuracy=0.0, max_products=5)
    assert len(asked) == 5


@pytest.mark.parametrize(("n", "min_products", "expected"), [(60, 30, 30), (60, 100, 45), (12, 30, 9), (4, 30, 4)])
def test_newton_step_takes_products_enough_unless_little_is_left(rng, n, min_products, expected):
    hard, easy = (Quadratic(NumPyLibrary, rng, "float64", n=n, condition=c) for c in ({60: 100, 12: 30, 4: 2}[n], 2))
    grad, asked = rng.normal(size=n), []

    def product(f):
        return lambda direction: asked.append(direction) or f.A @ direction

    newton_cg.newton_step(product(hard), grad, min_products=min_products)
    assert len(asked) == expected
    asked.clear()
    newton = newton_cg.newton_step(product(easy), grad, min_products=min_products, negligible=1e-2)
    assert len(asked) <= 5
    assert newton.gap == pytest.approx(0.5 * grad @ np.linalg.solve(easy.A, grad), rel=1e-2)
    asked.clear()
    newton = newton_cg.newton_step(product(easy), grad, accuracy=0.0)
    assert len(asked) <= min(n + 1, 30)  # the rest is rounding
    assert newton.gap == pytest.approx(0.5 * grad @ np.linalg.solve(easy.A, grad), rel=1e-9)


def test_newton_step_does_not_divide_by_what_rounds_to_zero():
    """At the optimum, of a system that one product solves, in a direction without curvature: no NaN, no warning."""
    for A, grad in (
        (np.eye(3), np.zeros(3)),
        (np.eye(3), np.ones(3)),
        (2 * np.eye(3), np.full(3, 1e-200)),
        (np.zeros((3, 3)), np.ones(3)),
        (np.diag([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0])),
    ):
        newton = newton_cg.newton_step(lambda v, A=A: A @ v, grad)
        step, decrease = newton.step, newton.gap
        assert np.isfinite(step).all()
        assert decrease >= 0.0  # without curvature there may be no end to it
        if A.any() and grad.max() != 1e-200:  # the square of that is zero
            np.testing.assert_allclose(A @ step, -grad, rtol=1e-12)
            assert decrease == pytest.approx(0.5 * grad @ -step)


def test_newton_cg_takes_as_many_steps_as_newtons_method_does(rng):
    """The error of a step by few products is not what a fit waits for."""
    f = softmax_problem(NumPyLibrary, rng, "float64", n=200, d=20, c=5, strength=1e-3)
    solution = newton_cg.minimize(f.value_and_grad, np.zeros(f.n_params), f.hessian_product, tol=1e-10)
    assert solution.converged
    assert solution.n_iter <= 12

    def precondition(params):
        H = np.array([f.hessian_product(params)(row) for row in np.eye(f.n_params)]) + 1e-12 * np.eye(f.n_params)
        inverse = np.linalg.inv(H)
        return lambda rows: rows @ inverse

    exact = newton_cg.minimize(
        f.value_and_grad, np.zeros(f.n_params), f.hessian_product, tol=1e-10, precondition=precondition
    )
    assert exact.converged
    assert exact.n_iter <= solution.n_iter
    assert exact.objective == pytest.approx(solution.objective, rel=1e-9)


# The test functions of Moré and Thuente, 1994, doi:10.1145/192115.192132, section 5.


def more_thuente_1(a, beta=2.0):
    return -a / (a * a + beta), (a * a - beta) / (a * a + beta) ** 2


def more_thuente_2(a, beta=0.004):
    return (a + beta) ** 5 - 2 * (a + beta) ** 4, 5 * (a + beta) ** 4 - 8 * (a + beta) ** 3


def more_thuente_3(a, beta=0.01, waves=39):
    if a <= 1 - beta:
        value, slope = 1 - a, -1.0
    elif a >= 1 + beta:
        value, slope = a - 1, 1.0
    else:
        value, slope = (a - 1) ** 2 / (2 * beta) + beta / 2, (a - 1) / beta
    wave = waves * math.pi / 2
    return value + (1 - beta) / wave * math.sin(wave * a), slope + (1 - beta) * math.cos(wave * a)


def yanai(beta1, beta2):
    def gamma(beta):
        return math.sqrt(1 + beta**2) - beta

    def function(a):
        left, right = math.hypot(1 - a, beta2), math.hypot(a, beta1)
        value = gamma(beta1) * left + gamma(beta2) * right
        return value, -gamma(beta1) * (1 - a) / left + gamma(beta2) * a / right

    return function


LINES = {
    "1": more_thuente_1,
    "2": more_thuente_2,
    "3": more_thuente_3,
    "4": yanai(0.001, 0.001),
    "5": yanai(0.01, 0.001),
    "6": yanai(0.001, 0.01),
    # A dip, then a plateau a hair below the start, whose slope is as flat as the minimum's.
    "plateau": lambda a: (-a * math.exp(-0.1 * a), (0.1 * a - 1) * math.exp(-0.1 * a)),
}


@pytest.mark.parametrize("step", [1e-3, 1e-1, 1e1, 1e3])
@pytest.mark.parametrize("line", list(LINES))
def test_line_search_satisfies_the_strong_wolfe_conditions(line, step):
    function = LINES[line]
    f = counted(lambda x: (np.asarray(function(float(x[0]))[0]), np.array([function(float(x[0]))[1]])))
    xp, direction = array_api_compat.numpy, np.ones(1)
    start = line_search.evaluated(xp, f, np.zeros(1), direction, 0.0)
    point, trials = line_search.wolfe_point(xp, f, start, direction, start.slope, step, lambda: 0.0)
    assert trials == len(f.points) - 1 <= 20
    assert point.step > 0
    value, slope = function(point.step)
    assert (point.value, point.slope, point.x[0]) == (value, slope, point.step)
    assert value <= start.value + line_search.SUFFICIENT_DECREASE * point.step * start.slope
    assert abs(slope) <= line_search.CURVATURE * abs(start.slope)


def point_of(step, value, slope):
    return line_search.Point(step, np.zeros(1), value, np.zeros(1), slope, abs(slope))


@pytest.mark.parametrize("reverse", [False, True])
def test_interpolation_finds_the_minimum_of_a_cubic(reverse):
    def cubic(a):  # its minimum is at 2
        return point_of(a, a**3 / 3 - 1.5 * a**2 + 2 * a, a**2 - 3 * a + 2)

    ends = [cubic(1.2), cubic(3.0)]
    assert line_search._interpolated(*(ends[::-1] if reverse else ends)) == pytest.approx(2.0, rel=1e-12)


def test_interpolation_stays_inside_the_bracket(rng):
    bad = [math.nan, math.inf, -math.inf, 0.0]
    for value, slope in [*rng.normal(scale=10, size=(200, 2)), *itertools.product(bad, bad)]:
        for low, high in ((1.0, 3.0), (3.0, 1.0)):
            step = line_search._interpolated(
                point_of(low, 0.0, -1.0 if low < high else 1.0), point_of(high, value, slope)
            )
            assert 1.2 - 1e-12 <= step <= 2.8 + 1e-12
            if not (math.isfinite(value) and math.isfinite(slope)):  # far back: the end is out of the domain
                assert step == pytest.approx(low + 0.1 * (high - low))


def test_lbfgs_compares_slopes_where_values_are_noise():
    """On a bowl whose values err by 1e-7 of themselves, the slopes still lead to the minimum."""
    scale = np.geomspace(1, 50, 6)

    def bowl(x):
        noise = 1e-4 * math.sin(1e6 * float(x.sum()))
        return np.asarray(1000 + 0.5 * (scale * x * x).sum() + noise), scale * x

    solution = lbfgs.minimize(bowl, np.ones(6), tol=1e-14, noise=lambda x: 2e-4)
    assert solution.converged
    assert solution.n_iter < 40
    assert solution.gradient_norm < 1e-4
    assert not lbfgs.minimize(bowl, np.ones(6), tol=1e-14).converged


def test_descent_at_the_minimum_takes_no_step(xp, method):
    class Bowl:
        def value_and_grad(self, x):
            return xp.sum(x * x), 2 * x

        def hessian_product(self, x):
            return lambda direction: 2 * direction

    for dtype in xp.float_dtypes:
        x = xp.asarray(np.zeros(3), dtype)
        solution = method(Bowl(), Bowl().value_and_grad, x, tol=0.0)
        assert (solution.converged, solution.n_iter, solution.n_evaluations) == (True, 0, 1)
        assert (solution.objective, solution.gradient_norm, solution.estimated_gap) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("outside", [0.0, math.nan])
def test_descent_where_there_is_no_curvature_is_not_at_the_minimum(method, outside):
    """Huber's function, linear far out: a decrement of zero, or one that is no number, says nothing there."""

    class Huber:
        def value_and_grad(self, x):
            near = np.abs(x) <= 1
            return np.asarray(1 + np.where(near, x * x / 2, np.abs(x) - 0.5).sum()), np.where(near, x, np.sign(x))

        def hessian_product(self, x):
            return lambda direction: np.where(np.abs(x) <= 1, direction, outside)

    f = Huber()
    solution = method(f, f.value_and_grad, np.array([7.0, -30.0]), tol=1e-6, max_iter=100)
    if solution.converged:
        assert solution.objective <= 1 + 1e-6
    else:
        assert not 0.0 <= solution.estimated_gap < 0.1 * (solution.objective - 1)


@pytest.mark.parametrize("max_iter", [0, 1, 5])
def test_lbfgs_stops_at_max_iter(max_iter):
    f = counted(rosenbrock)
    solution = lbfgs.minimize(f, np.array([-1.2, 1.0]), max_iter=max_iter)
    assert (solution.converged, solution.n_iter) == (False, max_iter)
    assert solution.message == f"max_iter={max_iter} steps taken"
    assert solution.n_evaluations == len(f.points)
    assert (solution.objective < f.points[0][1]) == (max_iter > 0)


@pytest.mark.parametrize("max_iter", [0, 1, 3])
def test_descent_stopped_at_max_iter_tells_a_true_gap(rng, max_iter):
    f = softmax_problem(NumPyLibrary, rng, "float64", n=200, d=20, c=5, strength=1e-3)
    best = newton_cg.minimize(f.value_and_grad, np.zeros(f.n_params), f.hessian_product, tol=1e-14).objective
    for name in ("lbfgs, Hessian", "newton-cg"):
        solution = METHODS[name](f, f.value_and_grad, np.zeros(f.n_params), tol=1e-12, max_iter=max_iter)
        assert (solution.converged, solution.n_iter) == (False, max_iter)
        assert solution.message == f"max_iter={max_iter} steps taken"
        assert 0.1 <= solution.estimated_gap / (solution.objective - best) <= 10


def test_lbfgs_of_an_unbounded_function_ends():
    solution = lbfgs.minimize(lambda x: (-x.sum(), -np.ones_like(x)), np.zeros(2), max_iter=3)
    assert (solution.converged, solution.n_iter) == (False, 3)


@pytest.mark.parametrize("tol", [0.0, 1e-30])
def test_descent_says_when_the_precision_is_exhausted(rng, method, tol):
    f = softmax_problem(NumPyLibrary, rng, "float32")
    counting = counted(f.value_and_grad)
    solution = method(f, counting, np.zeros(15, dtype="float32"), tol=tol)
    assert not solution.converged
    assert solution.message == "no step lowers the objective further in this precision"
    assert solution.gradient_norm < 1e-3
    assert solution.estimated_gap < 1e-6
    # It does not spend the rest of max_iter standing still.
    assert solution.n_evaluations == len(counting.points) < 300
    assert solution.objective == min(value for _, value, _ in counting.points)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_descent_refuses_a_start_that_is_not_finite(method, bad):
    f = Quadratic(NumPyLibrary, np.random.default_rng(0), "float64", n=3)
    solution = method(f, lambda x: (np.asarray(bad), x), np.ones(3))
    assert (solution.converged, solution.n_iter, solution.n_evaluations) == (False, 0, 1)
    assert solution.message == "the objective is not finite at the start"
    np.testing.assert_array_equal(solution.params, np.ones(3))


@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("start", [10.0, 0.01])
def test_descent_comes_back_from_values_that_are_not_finite(method, outside, start):
    """A barrier, sum(a x - log x): the curvature at a far start leads the second step out of the domain."""
    a = np.array([1.0, 3.0])

    class Barrier:
        def value_and_grad(self, x):
            if (x <= 0).any():
                return np.asarray(outside), np.full_like(x, np.nan)
            return np.asarray((a * x - np.log(x)).sum()), a - 1 / x

        def hessian_product(self, x):
            return lambda direction: direction / x**2

    f = counted(Barrier().value_and_grad)
    solution = method(Barrier(), f, np.full(2, start), tol=1e-14)
    assert solution.converged
    np.testing.assert_allclose(solution.params, 1 / a, atol=1e-6)
    if start == 10.0:
        assert not all(math.isfinite(value) for _, value, _ in f.points)


def test_descent_ends_when_a_callback_says_so(xp, rng, method):
    f = Quadratic(xp, rng, xp.float_dtypes[-1])
    start = xp.asarray(np.full(8, 3.0))
    solution = method(f, f.value_and_grad, start, tol=1e-30, callbacks=[lambda state: state.n_iter == 2])
    assert (solution.converged, solution.n_iter, solution.message) == (False, 2, "ended by the observer")
    again = method(f, f.value_and_grad, start, tol=1e-30, max_iter=2)
    np.testing.assert_array_equal(xp.to_numpy(solution.params), xp.to_numpy(again.params))


@pytest.mark.parametrize("call", [2, 7, 20])
def test_lbfgs_interrupted_returns_the_best_point_so_far(call):
    f, accepted = counted(rosenbrock), []

    def interrupting(x):
        if len(f.points) == call - 1:
            raise KeyboardInterrupt
        return f(x)

    start = np.array([-1.2, 1.0, -1.2])
    solution = lbfgs.minimize(interrupting, start, callbacks=[lambda state: accepted.append(f.points[-1])])
    assert (solution.converged, solution.message) == (False, "interrupted")
    x, value, grad = accepted[-1] if accepted else f.points[0]
    np.testing.assert_array_equal(solution.params, x)
    assert (solution.objective, solution.n_iter) == (value, len(accepted))
    assert solution.gradient_norm == pytest.approx(np.linalg.norm(grad))


@pytest.mark.parametrize("call", [1, 4, 15])
def test_newton_cg_interrupted_in_a_product_returns_the_best_point_so_far(rng, call):
    f, calls, seen = softmax_problem(NumPyLibrary, rng, "float64"), itertools.count(1), []

    def interrupting(params):
        def product(direction):
            if next(calls) == call:
                raise KeyboardInterrupt
            return f.hessian_product(params)(direction)

        return product

    solution = newton_cg.minimize(f.value_and_grad, np.zeros(15), interrupting, tol=1e-14, callbacks=[seen.append])
    assert (solution.converged, solution.message) == (False, "interrupted")
    assert solution.n_iter - len(seen) in (0, 1)  # the last point was to be shown after its gap was known
    assert solution.objective == float(f.value_and_grad(solution.params)[0])
    assert solution.objective <= (seen[-1].objective if seen else math.log(3))


# What is rough at first.


class RoughAndExact:
    """A quadratic, and an evaluation of it that is off by as much as it takes to be told apart."""

    def __init__(self, rng, tol):
        self.f = Quadratic(NumPyLibrary, rng, "float64")
        self.error = 1e-4 * rng.normal(size=8)
        self.exact, self.kinds = counted(self.f.value_and_grad), []
        self.rough = Evaluation(self.rough_value_and_grad, lambda x: 1e-2, tol)

    def value_and_grad(self, x):
        self.kinds.append("exact")
        return self.exact(x)

    def rough_value_and_grad(self, x):
        self.kinds.append("rough")
        value, grad = self.f.value_and_grad(x)
        return value + 1e-3, grad + self.error

    def solve(self, method, **options):
        return method(self.f, self.value_and_grad, np.full(8, 3.0), rough=self.rough, **options)


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-30])  # with the last, no step is found any more
def test_descent_that_begins_roughly_ends_exactly(rng, method, tol):
    problem, seen = RoughAndExact(rng, tol), []
    solution = problem.solve(method, tol=1e-10, callbacks=[seen.append])
    assert solution.converged
    away = solution.params - problem.f.minimiser
    assert 0.5 * away @ problem.f.A @ away <= 1e-10 * abs(problem.f.minimum)
    assert solution.objective == float(problem.f.value_and_grad(solution.params)[0])
    first_exact = problem.kinds.index("exact")
    assert first_exact > 1
    assert set(problem.kinds[first_exact:]) == {"exact"}
    assert solution.n_evaluations == len(problem.kinds)
    assert [state.n_iter for state in seen] == sorted({state.n_iter for state in seen})


@pytest.mark.parametrize("end", ["max_iter", "callback", "interrupt"])
def test_descent_that_ends_while_it_is_rough_tells_exact_numbers(rng, method, end):
    problem = RoughAndExact(rng, 1e-9)

    def callback(state):
        if end == "interrupt":
            raise KeyboardInterrupt
        return end == "callback"

    solution = problem.solve(method, tol=1e-12, max_iter=1 if end == "max_iter" else 100, callbacks=[callback])
    assert not solution.converged
    assert solution.n_iter == 1
    value, grad = problem.f.value_and_grad(solution.params)
    assert (solution.objective, solution.gradient_norm) == (float(value), pytest.approx(np.linalg.norm(grad)))
    assert problem.kinds[-1] == "exact"


# What comes to the host.


@pytest.mark.parametrize("preconditioned", [False, True])
def test_an_iteration_brings_only_the_scalars_of_the_line_search_to_the_host(transfers, rng, preconditioned):
    strict = pytest.importorskip("array_api_strict")
    device = strict.Device("device1")
    X = strict.asarray(rng.normal(size=(300, 6)), device=device)
    t = strict.asarray(rng.integers(0, 4, size=300), device=device)
    f = LinearObjective(DenseRows(X), t, 4, Penalty(1e-4))
    start = strict.zeros(f.n_params, device=device)
    precondition = Curvature(f, 1 << 20).bound() if preconditioned else None
    f.rounding_error(start)
    counts = []
    for max_iter in (4, 9):
        transfers.clear()
        solution = lbfgs.minimize(
            f.value_and_grad, start, tol=1e-30, max_iter=max_iter, noise=f.rounding_error, precondition=precondition
        )
        assert solution.n_iter == max_iter
        assert solution.n_evaluations <= max_iter + 2
        assert max(transfers) <= 3  # value, slope and the gradient's norm, together
        counts.append(len(transfers))
    assert counts[1] - counts[0] <= 5 * 6


# Stochastic optimizers: the formulas, one number at a time.


def sgd_number(x, grads, rates, momentum=0.0, nesterov=False):
    v = 0.0
    for g, rate in zip(grads, rates, strict=True):
        v = momentum * v + g
        x -= rate * (g + momentum * v if nesterov else v)
    return x


def adam_number(x, grads, rates, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.0):
    m = v = 0.0
    for n, (g, rate) in enumerate(zip(grads, rates, strict=True), 1):
        x -= rate * decay * x
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        x -= rate * (m / (1 - beta1**n)) / (math.sqrt(v / (1 - beta2**n)) + eps)
    return x


def rates_of(learning_rate, n):
    return [learning_rate(i) if callable(learning_rate) else learning_rate for i in range(n)]


RATE = sx.CosineSchedule(0.1, n_steps=6, warmup=2)
OPTIMIZERS = {
    "sgd": (sx.SGD(0.1), lambda x, g, rates, ndim: sgd_number(x, g, rates)),
    "sgd by schedule": (sx.SGD(RATE), lambda x, g, rates, ndim: sgd_number(x, g, rates)),
    "momentum": (sx.SGD(0.1, momentum=0.7), lambda x, g, rates, ndim: sgd_number(x, g, rates, 0.7)),
    "nesterov": (
        sx.SGD(RATE, momentum=0.7, nesterov=True),
        lambda x, g, rates, ndim: sgd_number(x, g, rates, 0.7, True),
    ),
    "adam": (sx.Adam(0.1), lambda x, g, rates, ndim: adam_number(x, g, rates)),
    "adam by schedule": (
        sx.Adam(RATE, beta1=0.5, beta2=0.8, eps=0.1),
        lambda x, g, rates, ndim: adam_number(x, g, rates, 0.5, 0.8, 0.1),
    ),
    "adamw": (
        sx.AdamW(0.1, weight_decay=0.3),
        lambda x, g, rates, ndim: adam_number(x, g, rates, decay=0.3 if ndim > 1 else 0.0),
    ),
    "adamw by schedule": (
        sx.AdamW(RATE, beta1=0.0, beta2=0.0, weight_decay=0.2),
        lambda x, g, rates, ndim: adam_number(x, g, rates, 0.0, 0.0, decay=0.2 if ndim > 1 else 0.0),
    ),
}


def steps(optimizer, params, gradients):
    """The parameters after a step along each of the gradients."""
    state = optimizer.start(params)
    for n, grads in enumerate(gradients):
        params, state = optimizer.step(params, grads, state, n)
    return params


@pytest.mark.parametrize("n_steps", [1, 2, 9])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_optimizer_follows_its_formula(xp, rng, name, n_steps):
    optimizer, formula = OPTIMIZERS[name]
    shapes = {"W": (3, 2), "b": (2,)}
    start = {k: rng.normal(size=shape) for k, shape in shapes.items()}
    gradients = [{k: rng.normal(size=shape) for k, shape in shapes.items()} for _ in range(n_steps)]
    rates = rates_of(optimizer.learning_rate, n_steps)
    for dtype in xp.float_dtypes:
        params = {k: xp.asarray(x, dtype) for k, x in start.items()}
        given = [{k: xp.asarray(g, dtype) for k, g in grads.items()} for grads in gradients]
        new = steps(optimizer, params, given)
        for k, shape in shapes.items():
            expected = np.empty(shape)
            for i in np.ndindex(shape):
                expected[i] = formula(start[k][i], [float(grads[k][i]) for grads in gradients], rates, len(shape))
            xp.assert_close(new[k], expected, dtype, "steps")
            np.testing.assert_array_equal(xp.to_numpy(params[k]), start[k].astype(dtype))  # not modified
            np.testing.assert_array_equal(xp.to_numpy(given[-1][k]), gradients[-1][k].astype(dtype))


@pytest.mark.parametrize(
    ("optimizer", "name", "options"),
    [
        (sx.SGD(0.1), "SGD", {"lr": 0.1}),
        (sx.SGD(0.1, momentum=0.9), "SGD", {"lr": 0.1, "momentum": 0.9}),
        (sx.SGD(0.1, momentum=0.9, nesterov=True), "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (sx.Adam(0.01), "Adam", {"lr": 0.01}),
        (sx.Adam(0.01, 0.8, 0.9, 1e-3), "Adam", {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3}),
        (sx.AdamW(0.01), "AdamW", {"lr": 0.01, "weight_decay": 1e-2}),
        (sx.AdamW(0.01, weight_decay=0.5), "AdamW", {"lr": 0.01, "weight_decay": 0.5}),
    ],
    ids=lambda x: repr(x) if isinstance(x, sx.SGD | sx.Adam) else "",
)
def test_optimizer_takes_the_steps_of_torch(rng, optimizer, name, options):
    torch = pytest.importorskip("torch")
    start = {"W": rng.normal(size=(3, 2)), "b": rng.normal(size=2)}
    gradients = [{k: rng.normal(size=x.shape) for k, x in start.items()} for _ in range(30)]
    theirs = {k: torch.tensor(x, requires_grad=True) for k, x in start.items()}
    groups = [{"params": [theirs["W"]]}, {"params": [theirs["b"]], "weight_decay": 0.0}]  # AdamW spares vectors here
    stepper = getattr(torch.optim, name)(groups, **options)
    for grads in gradients:
        for k, x in theirs.items():
            x.grad = torch.tensor(grads[k])
        stepper.step()
    ours = steps(optimizer, start, gradients)
    for k, x in ours.items():
        np.testing.assert_allclose(x, theirs[k].detach().numpy(), rtol=0, atol=TOLERANCE["steps"]["float64"][1])


# Schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (sx.ConstantSchedule(0.3), {0: 0.3, 7: 0.3, 10**9: 0.3}),
        (sx.StepSchedule(1.0, every=10), {0: 1.0, 9: 1.0, 10: 0.1, 19: 0.1, 20: 0.01, 35: 0.001}),
        (sx.StepSchedule(0.8, every=1, factor=0.5), {0: 0.8, 1: 0.4, 3: 0.1}),
        (sx.StepSchedule(0.8, every=3, factor=1.0), {100: 0.8}),
        (sx.CosineSchedule(1.0, n_steps=100), {0: 1.0, 25: 0.5 + 0.5**1.5, 50: 0.5, 100: 0.0, 101: 0.0, 10**6: 0.0}),
        (
            sx.CosineSchedule(2.0, n_steps=100, final=0.5),
            {0: 2.0, 50: 1.25, 75: 1.25 - 0.75 * 0.5**0.5, 100: 0.5, 250: 0.5},
        ),
        (
            sx.CosineSchedule(1.0, n_steps=24, warmup=4),
            {0: 0.2, 1: 0.4, 3: 0.8, 4: 1.0, 14: 0.5, 19: 0.5 - 0.5**1.5, 24: 0.0, 25: 0.0},
        ),
    ],
    ids=lambda x: repr(x) if callable(x) else "",
)
def test_schedule_gives_the_rate_of_a_step(schedule, expected):
    for step, rate in expected.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-12, abs=1e-15), step


def test_cosine_schedule_rises_through_the_warmup_and_then_falls():
    rates = [sx.CosineSchedule(0.5, n_steps=40, warmup=10, final=0.05)(step) for step in range(60)]
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:41]))
    assert rates[40:] == [0.05] * 20
    assert min(rates) > 0


def test_optimizer_takes_any_function_of_the_step_as_its_rate():
    x = steps(sx.SGD(lambda step: 1.0 / (step + 1)), {"x": np.zeros(1)}, [{"x": np.ones(1)}] * 3)["x"]
    assert x[0] == pytest.approx(-(1 + 1 / 2 + 1 / 3))


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: sx.SGD(0.0), ValueError, ["`learning_rate`", "(0, inf)", "0.0", "choose a value"]),
        (lambda: sx.SGD(-1.0), ValueError, ["`learning_rate`", "-1.0", "choose a value"]),
        (lambda: sx.SGD(math.nan), ValueError, ["`learning_rate`", "nan", "choose a value"]),
        (lambda: sx.SGD(math.inf), ValueError, ["`learning_rate`", "inf", "choose a value"]),
        (lambda: sx.SGD("fast"), TypeError, ["`learning_rate`", "'fast'", "pass a float"]),
        (lambda: sx.SGD(None), TypeError, ["`learning_rate`", "None", "pass a float"]),
        (lambda: sx.SGD(0.1, momentum=1.0), ValueError, ["`momentum`", "[0, 1)", "1.0", "choose a value"]),
        (lambda: sx.SGD(0.1, momentum=-0.1), ValueError, ["`momentum`", "-0.1", "choose a value"]),
        (lambda: sx.SGD(0.1, nesterov=True), ValueError, ["`nesterov`", "`momentum`", "got 0", "momentum=0.9"]),
        (lambda: sx.Adam(True), TypeError, ["`learning_rate`", "True", "pass a float"]),
        (lambda: sx.Adam(0.1, beta1=1.0), ValueError, ["`beta1`", "[0, 1)", "1.0", "choose a value"]),
        (lambda: sx.Adam(0.1, beta2=-1.0), ValueError, ["`beta2`", "-1.0", "choose a value"]),
        (lambda: sx.Adam(0.1, eps=0.0), ValueError, ["`eps`", "0.0", "choose a value"]),
        (lambda: sx.AdamW(0.1, weight_decay=-1e-2), ValueError, ["`weight_decay`", "-0.01", "choose a value"]),
        (lambda: sx.AdamW(0.1, beta1=2.0), ValueError, ["`beta1`", "2.0", "choose a value"]),
        (lambda: sx.ConstantSchedule(0), ValueError, ["`learning_rate`", "0.0", "choose a value"]),
        (lambda: sx.StepSchedule(0.1, every=0), ValueError, ["`every`", "at least 1", "got 0", "choose a value"]),
        (lambda: sx.StepSchedule(0.1, every=2.5), TypeError, ["`every`", "2.5", "pass an int"]),
        (lambda: sx.StepSchedule(0.1, 5, factor=0.0), ValueError, ["`factor`", "(0, 1]", "0.0", "choose a value"]),
        (lambda: sx.StepSchedule(0.1, 5, factor=1.5), ValueError, ["`factor`", "1.5", "choose a value"]),
        (lambda: sx.CosineSchedule(0.1, 0), ValueError, ["`n_steps`", "at least 1", "got 0", "choose a value"]),
        (lambda: sx.CosineSchedule(0.1, 5, warmup=-1), ValueError, ["`warmup`", "at least 0", "-1", "choose a value"]),
        (lambda: sx.CosineSchedule(0.1, 5, warmup=5), ValueError, ["`warmup`", "`n_steps` (5)", "got 5", "shorten"]),
        (lambda: sx.CosineSchedule(0.1, 5, final=0.2), ValueError, ["`final`", "[0, 0.1]", "0.2", "choose a value"]),
    ],
)
def test_bad_arguments_are_refused_with_name_rule_value_and_remedy(build, error, words):
    with pytest.raises(error) as caught:
        build()
    for word in words:
        assert word in str(caught.value)


# The loop of stochastic steps, and the solver made of it.


def test_mini_batches_are_a_step_each(xp):
    seen = []

    def value_and_grad(params, batch):
        return xp.sum(params["x"]), {"x": xp.asarray([float(batch)])}

    start = {"x": xp.asarray([0.0])}
    solver = stochastic.MiniBatches(value_and_grad, [1, 2, 4], sx.SGD(1.0), max_iter=3)
    ended = solve(solver, start, [lambda state: seen.append((state.n_iter, float(state.objective)))])
    assert (ended.n_iter, ended.n_evaluations, float(ended.params["x"][0])) == (3, 3, -7.0)
    assert ended.status is Status.MAX_ITER
    assert seen == [(1, 0.0), (2, -1.0), (3, -3.0)]
    assert float(start["x"][0]) == 0.0
    solver = stochastic.MiniBatches(value_and_grad, itertools.count(), sx.SGD(1.0), max_iter=100)
    ended = solve(solver, start, [lambda state: state.n_iter == 5])
    assert (ended.n_iter, ended.status) == (5, Status.STOPPED)


@pytest.mark.parametrize("place", ["value_and_grad", "callback", "batches"])
def test_mini_batches_interrupted_return_the_last_step(place):
    def interrupt(where, n):
        if where == place and n == 3:
            raise KeyboardInterrupt

    def value_and_grad(params, batch):
        interrupt("value_and_grad", batch)
        return np.zeros(()), {"x": np.ones(1)}

    def batches():
        for batch in range(10):
            interrupt("batches", batch)
            yield batch

    solver = stochastic.MiniBatches(value_and_grad, batches(), sx.SGD(1.0), max_iter=10)
    ended = solve(solver, {"x": np.zeros(1)}, [lambda state: interrupt("callback", state.n_iter)])
    assert ended.status is Status.INTERRUPTED
    assert (ended.n_iter, ended.params["x"][0]) == (3, -3.0)


@pytest.fixture
def small_batches(monkeypatch):
    """Five batches an epoch of 40 rows."""
    monkeypatch.setattr(stochastic, "BATCH_SIZE", 8)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("c", [2, 3])
def test_stochastic_minimum_nears_that_of_lbfgs(rng, name, c):
    f = softmax_problem(NumPyLibrary, rng, "float64", c=c)
    best = lbfgs.minimize(f.value_and_grad, np.zeros(f.n_params), tol=1e-12).objective
    optimizer = stochastic.default_optimizer(name, f, 100)
    solution = stochastic.minimize(
        f, np.zeros(f.n_params), optimizer, tol=1e-12, max_epochs=100, rng=np.random.default_rng(0)
    )
    assert (solution.converged, solution.n_iter, solution.n_evaluations) == (False, 100, 500)
    assert solution.message == "max_iter=100 epochs done"
    value, grad = f.value_and_grad(solution.params)
    assert solution.objective == pytest.approx(float(value))
    assert solution.gradient_norm == pytest.approx(np.linalg.norm(grad))
    assert math.isnan(solution.estimated_gap)
    # AdamW's decay is a penalty of its own, which moves the optimum.
    assert best <= solution.objective <= best * (1.01 if name == "adamw" else 1.001)
    assert optimizer.learning_rate(499) < 1e-3 * optimizer.learning_rate(0)


@pytest.mark.usefixtures("small_batches")
def test_stochastic_minimize_stays_where_the_parameters_are(xp, rng):
    for dtype in xp.float_dtypes:
        f = softmax_problem(xp, rng, dtype)
        start = xp.asarray(np.full(f.n_params, 0.5), dtype)
        solution = stochastic.minimize(f, start, sx.SGD(0.3), tol=1e-2, max_epochs=50, rng=np.random.default_rng(0))
        xp.assert_here(solution.params, dtype, (f.n_params,))
        assert np.linalg.norm(softmax_grad(xp, f, solution.params)) == pytest.approx(solution.gradient_norm, rel=1e-3)
        np.testing.assert_array_equal(xp.to_numpy(start), np.full(f.n_params, 0.5))


@pytest.mark.usefixtures("small_batches")
def test_stochastic_minimize_says_why_it_ended(rng):
    f = softmax_problem(NumPyLibrary, rng, "float64")

    def solution_by(optimizer, tol=1e-12, callbacks=()):
        start, seed = np.zeros(f.n_params), np.random.default_rng(0)
        return stochastic.minimize(f, start, optimizer, tol=tol, max_epochs=50, rng=seed, callbacks=callbacks)

    solution = solution_by(sx.SGD(0.1), tol=0.05)
    assert solution.converged
    assert solution.gradient_norm <= 0.05
    assert solution.message == "the gradient's norm is at most tol=0.05"
    assert solution.n_evaluations == 5 * solution.n_iter < 250

    seen = []
    solution = solution_by(sx.SGD(0.1), callbacks=[lambda state: seen.append(state) or state.n_iter == 4])
    assert (solution.converged, solution.n_iter, solution.message) == (False, 4, "ended by the observer")
    assert [state.n_iter for state in seen] == [1, 2, 3, 4]
    assert seen[-1].objective == solution.objective < seen[0].objective

    def interrupting(step):
        if step == 12:  # in the third epoch of five steps
            raise KeyboardInterrupt
        return 0.1

    solution = solution_by(sx.SGD(interrupting))
    assert (solution.converged, solution.n_iter, solution.n_evaluations) == (False, 3, 12)
    assert solution.message == "interrupted in epoch 3"
    assert solution.objective < math.log(3)

    with np.errstate(all="ignore"):
        solution = solution_by(sx.SGD(1e308))
    assert (solution.converged, solution.n_iter) == (False, 1)
    assert solution.message == "the objective stopped being finite in epoch 1; lower the learning rate"


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("make", [lambda rate: sx.SGD(rate, momentum=0.9), sx.Adam], ids=["momentum", "Adam"])
@pytest.mark.parametrize("generator", [np.random.PCG64, np.random.MT19937])
def test_a_stochastic_solve_resumes_from_its_state_to_the_bit(xp, rng, make, generator):
    """Stopped after two epochs, or interrupted in the third epoch, after three of its five steps."""
    f, rates = softmax_problem(xp, rng, xp.float_dtypes[-1]), sx.CosineSchedule(0.1, 30)

    def solution(start, seed, callbacks=(), interrupted_at=None):
        def rate(step):
            if step == interrupted_at:
                raise KeyboardInterrupt
            return rates(step)

        numbers = np.random.Generator(generator(seed))
        return stochastic.minimize(f, start, make(rate), tol=1e-12, max_epochs=6, rng=numbers, callbacks=callbacks)

    start = xp.asarray(np.zeros(f.n_params), xp.float_dtypes[-1])
    whole = solution(start, 3)
    assert whole.n_evaluations == 30
    stopped = solution(start, 3, callbacks=[lambda state: state.n_iter == 2])
    assert (stopped.status, stopped.n_evaluations) == (Status.STOPPED, 10)
    interrupted = solution(start, 3, interrupted_at=13)
    assert (interrupted.status, interrupted.n_iter, interrupted.n_evaluations) == (Status.INTERRUPTED, 3, 13)
    for state in (stopped, interrupted, pickle.loads(pickle.dumps(stopped)), pickle.loads(pickle.dumps(interrupted))):
        resumed = solution(state, 8)
        np.testing.assert_array_equal(xp.to_numpy(resumed.params), xp.to_numpy(whole.params))
        assert (resumed.objective, resumed.gradient_norm) == (whole.objective, whole.gradient_norm)
        assert (resumed.n_iter, resumed.n_evaluations, resumed.status) == (6, 30, Status.MAX_ITER)


# The loop of all solvers.


def test_solve_shows_each_step_once_and_the_last_one_with_its_status(rng, method):
    f, seen = Quadratic(NumPyLibrary, rng, "float64"), []
    solution = method(f, f.value_and_grad, np.full(8, 3.0), tol=1e-10, callbacks=[seen.append])
    assert [state.n_iter for state in seen] == list(range(1, solution.n_iter + 1))
    assert all(state.status is None and not state.message for state in seen[:-1])
    assert seen[-1].status in (None, Status.CONVERGED)
    assert solution.status is Status.CONVERGED
    np.testing.assert_array_equal(seen[-1].params, solution.params)


def test_solve_asks_every_callback_and_a_status_of_the_solver_stays(rng):
    f, seen = Quadratic(NumPyLibrary, rng, "float64", n=2, condition=1), []
    callbacks = [lambda state: True, lambda state: seen.append(state.n_iter)]
    options = {"hessian_product": f.hessian_product, "tol": 1e-10, "callbacks": callbacks}
    solution = newton_cg.minimize(f.value_and_grad, np.full(2, 3.0), **options)
    assert seen == [1]
    assert solution.status is Status.CONVERGED


def test_solve_raises_ctrl_c_before_the_first_point():
    def interrupting(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lbfgs.minimize(interrupting, np.zeros(2))


def test_a_solution_and_an_iterate_are_a_state():
    assert sx.Solution is State
    assert Iterate is State
