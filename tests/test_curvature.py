"""The preconditioners against dense matrices and the Hessian by differences, when they are made, and what they do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import softmax_xp as sx
from softmax_xp.curvature import estimates, inverses, sampling, timetable, whole
from softmax_xp.curvature.costs import COSTS, TIMES
from softmax_xp.curvature.timetable import Curvature
from softmax_xp.kernels.workspace import Workspace
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows

AMPLE = 1 << 30  # bytes
DIAGONAL = 1  # bytes: room for no matrix
STRENGTH = 0.01
# Against dense algebra in float64: the largest error of a matrix scaled to a unit diagonal.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}
CASES = [{}, {"c": 2}, {"weighted": True}, {"fit_intercept": False}, {"c": 2, "weighted": True, "fit_intercept": False}]


class Problem:
    """An objective on an array library, the same in NumPy and float64, and what is computed densely from it.

    A dense matrix has the layout of kron(classes, columns), where the columns are the features and the intercept.
    """

    def __init__(self, xp, rng, n=60, d=4, c=3, *, weighted=False, fit_intercept=True, strength=STRENGTH, X=None):
        X = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3) * np.resize([1, 5, 0.2, 2], d) + 1 if X is None else X
        X = X.astype(np.float32).astype(np.float64)  # the same in every dtype
        y, weight = np.arange(len(X)) % c, rng.uniform(0.2, 3, size=len(X)) if weighted else None
        self.xp, self.dtype = xp, xp.float_dtypes[-1]
        rows = DenseRows(xp.asarray(X), xp.asarray(weight) if weighted else None)
        self.on_library = LinearObjective(rows, xp.asarray(y), c, Penalty(strength), fit_intercept)
        self.dense = LinearObjective(DenseRows(X, weight), y, c, Penalty(strength), fit_intercept)
        self.n_coef, self.n_features = self.dense.coef_shape
        self.A = np.hstack([X, np.ones((len(X), 1))]) if fit_intercept else X
        self.weight = np.full(len(X), 1 / len(X)) if weight is None else weight / weight.sum()
        self.penalty = np.eye(self.A.shape[1]) * strength
        self.penalty[self.n_features :, self.n_features :] = 0.0
        # The place of each entry of kron(classes, columns) in the flat parameters.
        coef = np.arange(self.n_coef * self.n_features).reshape(self.n_coef, self.n_features)
        intercept = coef.size + np.arange(self.n_coef)[:, None]
        self.flat = np.hstack([coef, intercept] if fit_intercept else [coef]).ravel()

    def curvature(self, max_bytes=AMPLE, **options):
        return Curvature(self.on_library, max_bytes, costs=replace(COSTS, **options))

    def params(self, flat):
        """An array of the library."""
        return self.xp.asarray(flat)

    def matrix(self, preconditioner):
        """The matrix that a preconditioner stands for."""
        M = self.xp.to_numpy(preconditioner(self.xp.asarray(np.eye(self.dense.n_params)))).astype(np.float64)
        return M[np.ix_(self.flat, self.flat)]

    def hessian(self, params, step=1e-5):
        """By central differences of the gradient."""
        columns = []
        for move in step * np.eye(self.dense.n_params):
            up, down = (self.dense.value_and_grad(params + s * move)[1] for s in (1, -1))
            columns.append((up - down) / (2 * step))
        return np.array(columns)[np.ix_(self.flat, self.flat)]

    def class_hessians(self, params):
        """diag(p_i) - p_i p_i' of each row, (n, K, K)."""
        coef, intercept = self.dense.split(params)
        logits = self.dense.rows.part(slice(None)) @ coef.T + (0.0 if intercept is None else intercept)
        logits = np.hstack([np.zeros_like(logits), logits]) if self.n_coef == 1 else logits
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = (p / p.sum(axis=1, keepdims=True))[:, self.n_coef == 1 :]
        return p[:, :, None] * np.eye(self.n_coef) - p[:, :, None] * p[:, None, :]

    def gram(self, weight):
        return (self.A * weight[:, None]).T @ self.A

    def factors(self, params):
        """The factors of the Kronecker product, by the formulas of the module's docstring."""
        S = self.class_hessians(params)
        trace = self.weight * np.trace(S, axis1=1, axis2=2)
        return np.tensordot(self.weight, S, axes=1), self.gram(trace / trace.sum())

    def penalised(self, M):
        return M + np.kron(np.eye(self.n_coef), self.penalty)

    def centring(self):
        """A basis of what is centred over the classes; of everything where there is one row of coefficients."""
        K = self.n_coef
        basis = np.linalg.svd(np.eye(K) - 1 / K)[0][:, : K - 1] if K > 1 else np.eye(1)
        return np.kron(basis, np.eye(self.A.shape[1]))

    def centred_inverse(self, M):
        """The inverse on the centred space, zero off it."""
        Z = self.centring()
        M = Z.T @ M @ Z
        scale = 1 / np.sqrt(np.diag(M))
        return Z @ (scale[:, None] * np.linalg.inv(M * scale * scale[:, None]) * scale) @ Z.T

    def assert_equal(self, actual, expected):
        """Assert that matrices are equal in the units of the diagonal of the expected one."""
        scale = np.sqrt(np.diag(expected))
        error = np.abs(actual - expected) / scale / scale[:, None]
        assert error.max() < TOLERANCE[self.dtype]


def matrices_as_on_a_gpu(monkeypatch):
    """Let matrices be kept, and inverted, where the data are."""
    for module in (sampling, estimates, timetable):
        monkeypatch.setattr(module, "is_gpu", lambda device: True)


@pytest.fixture(params=["host", "device"])
def home(request, xp, monkeypatch):
    """Matrices are where they are on this library, or with its data as on a GPU, where they are inverted by halves."""
    if request.param == "device":
        if "float64" not in xp.float_dtypes:
            pytest.skip(f"{xp} has no float64, which every GPU has")
        matrices_as_on_a_gpu(monkeypatch)
        monkeypatch.setattr(inverses, "ON_HOST", 2)


# What the three estimates are.


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bound_is_above_the_hessian_everywhere(xp, rng, case):
    p = Problem(xp, rng, **case)
    P = p.matrix(p.curvature().bound())
    size = 0.25 if p.n_coef == 1 else 0.5
    p.assert_equal(P, p.centred_inverse(p.penalised(np.kron(size * np.eye(p.n_coef), p.gram(p.weight)))))
    root = p.centring() @ np.linalg.cholesky(p.centring().T @ P @ p.centring())
    largest = {}  # ratio of the Hessian to the bound along any direction
    for scale in (0.0, 0.3, 2.0):
        H = p.hessian(scale * rng.normal(size=p.dense.n_params))
        largest[scale] = np.linalg.eigvalsh(root.T @ H @ root).max()
        assert largest[scale] < 1 + TOLERANCE[p.dtype]
    assert largest[0.0] > 0.6  # with equal probabilities the bound is not far off
    if p.dense.fit_intercept:  # and with all rows between two classes, it is exact
        params = np.zeros(p.dense.n_params)
        params[p.n_coef * p.n_features :][2:] = -100.0
        assert np.linalg.eigvalsh(root.T @ p.hessian(params) @ root).max() == pytest.approx(1, rel=1e-3)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_class_blocks_invert_the_diagonal_of_the_hessian_in_the_eigenbasis_of_the_classes(xp, rng, case):
    p = Problem(xp, rng, **case)
    params = 0.3 * rng.normal(size=p.dense.n_params)
    params = params.astype(np.float32).astype(np.float64)
    H, width = p.hessian(params), p.A.shape[1]
    sizes, Q = np.linalg.eigh(np.tensordot(p.weight, p.class_hessians(params), axes=1))
    assert np.diff(sizes).min(initial=1) > 1e-3  # so that the basis is unique
    expected = np.zeros_like(H)
    for k in range(int(p.n_coef > 1), p.n_coef):  # the first is the shift of all classes
        q = np.kron(Q[:, k : k + 1], np.eye(width))
        expected += q @ np.linalg.inv(q.T @ H @ q) @ q.T
    P = p.matrix(p.curvature().class_blocks(p.params(params)))
    p.assert_equal(P, expected)
    # No more is lost than that: the identity on the whole where there is one block, and near it otherwise.
    eigenvalues = np.linalg.eigvals(p.centring().T @ P @ H @ p.centring()).real
    assert np.abs(eigenvalues - 1).max() < (TOLERANCE[p.dtype] if p.n_coef == 1 else 0.9)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_class_blocks_at_zero_are_the_whole_inverse(xp, rng, case):
    p = Problem(xp, rng, **case)
    params = np.zeros(p.dense.n_params)
    p.assert_equal(p.matrix(p.curvature().class_blocks(p.params(params))), p.centred_inverse(p.hessian(params)))


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("case", [*CASES, {"scaled": True}, {"scaled": True, "c": 2}], ids=str)
def test_kronecker_is_the_inverse_of_the_product_of_the_mean_factors(xp, rng, case):
    case = dict(case)
    X, scale = rng.normal(size=(60, 7)) @ (np.eye(7) + 0.2) + 1, 10.0 ** np.arange(-3, 4)
    if case.pop("scaled", False):
        X = X * scale
    else:
        scale = np.ones(7)
    p = Problem(xp, rng, X=X, **case)
    params = 0.3 * rng.normal(size=p.dense.n_params)
    params[: p.n_coef * 7] /= np.tile(scale, p.n_coef)
    params[p.n_coef * 7 :][:1] -= 5.0  # a rare class, whose direction is the smaller by far
    params = params.astype(np.float32).astype(np.float64)
    S, G = p.factors(params)
    expected = p.centred_inverse(p.penalised(np.kron(S, G)))
    p.assert_equal(p.matrix(p.curvature().kronecker(p.params(params))), expected)
    # Scales of 10^3 and penalties that outweigh some features and count for nothing beside others.
    share = np.diag(p.penalty)[:7] / (np.diag(p.penalty) + np.diag(G) * S.max())[:7]
    assert "scaled" not in case or (share.max() > 0.9 and share.min() < 1e-6)


# What fits.


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_memory_the_bound_and_kronecker_keep_the_diagonal(xp, rng, case):
    p = Problem(xp, rng, **case)
    params = 0.3 * rng.normal(size=p.dense.n_params)
    params = params.astype(np.float32).astype(np.float64)
    size, (S, G) = 0.25 if p.n_coef == 1 else 0.5, p.factors(params)
    diagonal = np.diag(np.diag(p.gram(p.weight)))
    bound = p.centred_inverse(p.penalised(np.kron(size * np.eye(p.n_coef), diagonal)))
    p.assert_equal(p.matrix(p.curvature(DIAGONAL).bound()), bound)
    # Room for the matrix of the classes, and for no other.
    between = 4 * 8 * p.n_coef**2
    assert between < 4 * 8 * p.A.shape[1] ** 2
    kronecker = p.centred_inverse(p.penalised(np.kron(S, np.diag(np.diag(G)))))
    p.assert_equal(p.matrix(p.curvature(between).kronecker(p.params(params))), kronecker)
    # Room for neither: the inverse of a diagonal matrix, then centred.
    Z = p.centring()
    diagonal = np.linalg.inv(p.penalised(np.kron(np.diag(np.diag(S)), np.diag(np.diag(G)))))
    p.assert_equal(p.matrix(p.curvature(between - 1).kronecker(p.params(params))), Z @ Z.T @ diagonal @ Z @ Z.T)


@pytest.mark.parametrize("c", [2, 3])
def test_what_does_not_fit_is_never_made(xp, rng, c, monkeypatch):
    p = Problem(xp, rng, c=c)
    params, fits = p.params(0.3 * rng.normal(size=p.dense.n_params)), 4 * 8 * p.A.shape[1] ** 2
    full, made = p.matrix(p.curvature().kronecker(params)), []
    np.testing.assert_array_equal(p.matrix(p.curvature(fits).kronecker(params)), full)
    monkeypatch.setattr(inverses, "cholesky", None)  # so that no matrix can be inverted
    monkeypatch.setattr(whole, "factorise", None)
    for max_bytes in (DIAGONAL, fits - 1):
        curvature = p.curvature(max_bytes)
        made += [curvature.bound(), curvature.kronecker(params), curvature.first(params), curvature.at(params)]
        makers = [curvature.due(1.0, 1.0, 1e-9) for _ in range(3 * TIMES.first_look)]
        assert any(makers)  # the diagonal at a point is better than that of the bound
        made += [make(params) for make in makers if make is not None]
    for product in made:
        assert np.abs(p.matrix(product) - full).max() > 0.01 * full.max()


def gumbel_problem(rng, n, d, c):
    X = rng.normal(size=(n, d))
    return X, (X @ rng.normal(size=(d, c)) * 0.5 + rng.gumbel(size=(n, c))).argmax(axis=1)


def optimum(X, y, C=1.0, dtype="float64"):
    """The objective that SoftmaxClassifier minimises, in float64, and its minimum by scikit-learn."""
    X = X.astype(dtype).astype(np.float64)
    f = LinearObjective(DenseRows(X), y, len(np.unique(y)), Penalty(1 / (C * len(X))))
    with threadpool_limits(1):  # it is small, and the machine may be busy
        best = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10, max_iter=200).fit(X, y)
    return f, float(f.value_and_grad(np.concatenate([best.coef_.ravel(), best.intercept_]))[0])


@pytest.mark.parametrize("solver", ["auto", "newton-cg"])
@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
def test_fit_without_memory_reaches_the_optimum(load, solver):
    X, y = load(return_X_y=True)
    ours = sx.SoftmaxClassifier(solver=solver, max_memory=1, device="cpu").fit(X, y)
    assert ours.objective_ == pytest.approx(optimum(X, y)[1], rel=1e-4)


DEGENERATE = {
    "zero": lambda rng: np.zeros((10, 3)),
    "constant": lambda rng: np.ones((10, 3)) * [1, 2, 0],
    "repeated": lambda rng: np.tile(rng.normal(size=(10, 1)), (1, 4)),
    "sums": lambda rng: rng.normal(size=(30, 4)) @ np.hstack([np.eye(4), np.ones((4, 2))]),
    "wide": lambda rng: rng.normal(size=(5, 12)),
    "scales": lambda rng: rng.normal(size=(10, 3)) * [1e-8, 1, 1e8],
    "one row": lambda rng: rng.normal(size=(1, 3)),
}


def degenerate(xp, rng, name, c, strength):
    """A problem of such features, and parameters: zeros, and those that give logits of size one."""
    p = Problem(xp, rng, c=c, X=DEGENERATE[name](rng), strength=strength)
    size = np.ones(p.dense.n_params)
    size[: p.n_coef * p.n_features] = np.tile(
        np.maximum(np.abs(p.dense.rows.part(slice(None))).max(axis=0), 1e-8), p.n_coef
    )
    return p, (np.zeros(p.dense.n_params), 0.3 * rng.normal(size=p.dense.n_params) / size)


def products(p, params):
    """Every preconditioner, by name."""
    ample, diagonal = p.curvature(), p.curvature(DIAGONAL)
    return {
        "bound": ample.bound(),
        "kronecker": ample.kronecker(params),
        "class blocks": ample.class_blocks(params),
        "diagonal of the bound": diagonal.bound(),
        "diagonal of kronecker": diagonal.kronecker(params),
    }


def along(p, product, v):
    """v'Pv, with the centred part of a flat v; NaN where Pv is not finite."""
    Z, flat = p.centring(), np.empty_like(v)
    flat[p.flat] = Z @ (Z.T @ v[p.flat])
    out = p.xp.to_numpy(product(p.xp.asarray(flat[None])))[0].astype(np.float64)
    return float(flat @ out) if np.isfinite(out).all() else math.nan


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("strength", [0.0, 1e-3])
@pytest.mark.parametrize("c", [2, 3, 12])  # the last are more than most have rows
@pytest.mark.parametrize("name", DEGENERATE)
def test_products_are_finite_and_positive_whatever_the_features(xp, rng, name, c, strength):
    p, points = degenerate(xp, rng, name, c, strength)
    for params in points:
        for kind, product in products(p, p.params(params)).items():
            for v in rng.normal(size=(3, p.dense.n_params)):
                assert along(p, product, v) > 0, kind


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("strength", [0.0, 1e-3])
@pytest.mark.parametrize("c", [2, 3, 12])
@pytest.mark.parametrize("name", DEGENERATE)
def test_products_with_gradients_are_descent_directions_whatever_the_features(xp, rng, name, c, strength):
    """A gradient has no part where there is no curvature, and what is left of it there must not outweigh the rest."""
    p, points = degenerate(xp, rng, name, c, strength)
    for params in points:
        gradient = xp.to_numpy(p.on_library.value_and_grad(p.params(params))[1]).astype(np.float64)
        if np.abs(gradient).max() > 1e-6:
            for kind, product in products(p, p.params(params)).items():
                assert along(p, product, gradient) > 0, kind


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize("max_bytes", [AMPLE, DIAGONAL])
def test_products_are_finite_where_the_model_is_sure_of_every_row(xp, rng, c, max_bytes):
    """No row has any weight, and none can be drawn by it."""
    p = Problem(xp, rng, X=np.sign(rng.normal(size=(300, 1))) + 0.01 * rng.normal(size=(300, 3)), c=c)
    params = np.zeros(p.dense.n_params)
    params[:1] = 1e4  # the logit of the one class grows with the first feature
    params[3:4] = -1e4 if c == 3 else 0.0  # that of another falls
    assert p.class_hessians(params).max() == 0
    curvature, params = p.curvature(max_bytes, min_rows=100), p.params(params)
    for product in (curvature.kronecker(params), curvature.class_blocks(params), curvature.first(params)):
        assert along(p, product, rng.normal(size=p.dense.n_params)) > 0


@pytest.mark.parametrize(
    ("solver", "C"), [("auto", 1.0), ("auto", 1e8), ("auto", math.inf), ("newton-cg", 1.0), ("newton-cg", 1e8)]
)
def test_repeated_features_are_fitted_in_any_precision(xp, rng, solver, C):
    X, y = gumbel_problem(rng, 500, 3, 3)
    X = np.hstack([X, X]).astype(np.float32)
    known = sx.SoftmaxClassifier(C=C, solver="lbfgs", tol=1e-6, device="cpu").fit(X.astype(np.float64), y)
    ours = sx.SoftmaxClassifier(C=C, solver=solver, max_iter=50).fit(xp.asarray(X), xp.asarray(y))
    assert ours.objective_ == pytest.approx(known.objective_, rel=1e-4)


# Samples of the rows.


@pytest.mark.parametrize("sure", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_of_a_sample_are_near_those_of_all_rows(xp, rng, sure, weighted):
    n, d = 8000, 5
    X = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3)
    p = Problem(xp, rng, X=X, c=4, weighted=weighted, strength=1e-9)
    params = (100.0 if sure else 0.3) * rng.normal(size=p.dense.n_params)
    directions = rng.normal(size=(20, p.dense.n_params))

    def sizes(**options):
        product = p.curvature(**options).class_blocks(p.params(params))
        return np.sum(directions * xp.to_numpy(product(xp.asarray(directions))), axis=1)

    of_all = sizes()
    assert p.curvature(min_rows=400).n_sampled == 400 < n
    np.testing.assert_allclose(sizes(min_rows=400), of_all, rtol=0.3)
    trace = p.weight * np.trace(p.class_hessians(params), axis1=1, axis2=2)
    effective = trace.sum() ** 2 / (trace**2).sum()  # rows that count
    if sure:  # twenty times fewer in an even sample, and too few to form a matrix
        assert effective / 20 < 2 * (d + 1)


@pytest.mark.parametrize("scale", [0.0, 0.3, 20.0])
@pytest.mark.parametrize("sampled", [100, 10**6])
def test_rows_drawn_for_a_block_weigh_as_much_as_it(xp, rng, scale, sampled, monkeypatch):
    monkeypatch.setattr(sampling, "block_bytes", lambda device: 50_000)  # several blocks of rows
    p = Problem(xp, rng, n=3000, c=4, weighted=True)
    params = scale * rng.normal(size=p.dense.n_params)
    params = params.astype(np.float32).astype(np.float64)
    S = p.class_hessians(params)
    sizes, Q = np.linalg.eigh(np.tensordot(p.weight, S, axes=1))
    curvature = p.curvature(min_rows=sampled)
    drawn, squares = curvature._drawn(p.params(params), Q, np.maximum(sizes, sampling.SMALLEST * sizes.max()))
    assert len(drawn) == len(squares) == 4
    for (weight, rows), own, size, q in list(zip(drawn, squares, sizes, Q.T, strict=True))[1:]:
        exact = p.weight * np.einsum("k,ikl,l->i", q, S, q)
        np.testing.assert_allclose(own, exact @ p.A**2, rtol=1e-4 if p.dtype == "float32" else 1e-9)
        assert np.all(np.diff(rows) > 0)
        assert len(weight) == len(rows) <= curvature.n_sampled + 1
        rounding = 1e-4 if p.dtype == "float32" else 1e-9
        if curvature.n_sampled == 3000:
            np.testing.assert_allclose(weight, exact[rows], rtol=0, atol=rounding * exact.max())
        else:  # a row stands for others, each of the same weight, or for itself where it has more than that
            np.testing.assert_allclose(weight, np.maximum(exact[rows], size / sampled), rtol=1e-3)
        assert weight.sum() == pytest.approx(size, rel=rounding + (1.01 / sampled if sampled < 3000 else 0.0))


@pytest.mark.parametrize("name", ["bound", "kronecker", "class_blocks"])
@pytest.mark.parametrize("weighted", [False, True])
def test_features_that_a_sample_has_missed_keep_their_curvature(xp, rng, name, weighted):
    """One row in a hundred has a feature, and no row of the sample: the diagonal is that of all rows all the same."""
    X = rng.normal(size=(3000, 4))
    X[:, 2] = np.arange(3000) % 100 == 7  # every 60th row is sampled, from the first on
    p = Problem(xp, rng, X=X, c=3, weighted=weighted)
    curvature, at = p.curvature(min_rows=50), p.params(np.zeros(p.dense.n_params))
    assert curvature.n_sampled == 50
    make = curvature.bound() if name == "bound" else getattr(curvature, name)(at)
    exact = {"bound": 0.5, "kronecker": 1 / 3, "class_blocks": 1 / 3}[name] * (p.weight @ p.A[:, 2] ** 2)
    M = p.matrix(make).reshape(3, 5, 3, 5)
    own = np.linalg.eigvalsh(M[:, 2, :, 2])[1:]  # the classes in which not all logits shift alike
    np.testing.assert_allclose(own, 1 / (exact + STRENGTH), rtol=0.3)


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "lbfgs"])
@pytest.mark.parametrize("C", [1e5, np.inf])
def test_rare_features_are_fitted(rng, solver, C):
    n = 20000
    X = np.hstack([rng.normal(size=(n, 5)), rng.uniform(size=(n, 5)) < 8e-4])
    y = (X @ rng.normal(size=(10, 3)) + rng.gumbel(size=(n, 3))).argmax(axis=1)
    minimum = sx.SoftmaxClassifier(solver="newton-cg", C=C, tol=1e-10, device="cpu").fit(X, y).objective_
    ours = sx.SoftmaxClassifier(solver=solver, C=C, device="cpu").fit(X, y)
    assert ours.objective_ - minimum <= 1e-4 * minimum
    assert ours.n_iter_[0] <= (30 if solver == "auto" else 100)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("c", [2, 3])
def test_the_bound_of_few_rows_is_that_of_the_columns(xp, rng, c, fit_intercept, monkeypatch):
    X = 3 + rng.normal(size=(7, 12)) * np.logspace(-1, 1, 12)
    p = Problem(xp, rng, X=X, c=c, weighted=True, fit_intercept=fit_intercept)
    assert p.curvature()._few_rows()
    by_rows = p.matrix(p.curvature().bound())
    monkeypatch.setattr(Curvature, "_few_rows", lambda self: False)
    rounding = 1e-2 if p.dtype == "float32" else 1e-5
    by_columns = p.matrix(p.curvature().bound())
    np.testing.assert_allclose(by_rows, by_columns, rtol=rounding, atol=rounding * np.abs(by_rows).max())


@pytest.fixture
def no_whole(monkeypatch):
    """Problems of any size are too large for the whole Hessian."""
    monkeypatch.setattr(Curvature, "cost_of_whole", lambda *_: math.inf)


def test_the_bound_is_inverted_once(rng, monkeypatch, no_whole):
    X = rng.normal(size=(50, 40))
    curvature = Curvature(LinearObjective(DenseRows(X), np.arange(50) % 3, 3, Penalty(0.1)), AMPLE)
    monkeypatch.setattr(Curvature, "cost", lambda *_: np.inf)
    assert curvature.at(np.zeros(123)) is curvature.at(1e-3 * np.ones(123)) is curvature.bound()


def test_rows_are_drawn_by_their_weight(rng):
    """Of the rows that have nearly no weight, none; of a row with more than a sample's share, always."""
    X = np.where(np.arange(5000) % 50 == 7, 0.001, 50.0)[:, None] * rng.choice([-1.0, 1.0], size=(5000, 1))
    f = LinearObjective(DenseRows(X), np.arange(5000) % 2, 2, Penalty(1e-3), fit_intercept=False)
    curvature = Curvature(f, AMPLE, costs=replace(COSTS, min_rows=100))
    ((weight, rows),), _ = curvature._drawn(np.ones(1), np.eye(1), np.array([0.25 / 50]))
    np.testing.assert_array_equal(rows, np.arange(7, 5000, 50))
    np.testing.assert_allclose(weight, 0.25 / 5000, rtol=1e-5)


# What they cost, and when they are made.


def test_cost_counts_evaluations_and_knows_what_does_not_fit(rng):
    X, y = rng.normal(size=(1000, 30)), np.arange(1000) % 5
    f = LinearObjective(DenseRows(X), y, 5, Penalty(1e-3), fit_intercept=False)
    assert Curvature(f, AMPLE).cost(1) == 0.0  # small enough not to count
    costs = replace(COSTS, free=0.0)

    def curvature(f, max_bytes):
        return Curvature(f, max_bytes, costs=costs)

    inverse, eigen, gather = COSTS.inverse, COSTS.eigen, COSTS.gather
    half, draw = COSTS.gram / 2, 1000 * 5 * COSTS.draw
    evaluation = 1000 * (2 * 30 * (5 + COSTS.stream) + 5 * COSTS.logit)
    gram, of_classes = 1000 * 30 * (gather + 30 * half), eigen * 5**3
    work = 5 * (gram + inverse * 30**3) + draw + of_classes
    assert curvature(f, AMPLE).cost(5) == pytest.approx(work / evaluation)
    assert curvature(f, AMPLE).cost(1) == pytest.approx((gram + inverse * 30**3) / evaluation)
    assert curvature(f, AMPLE).cost(1, eigen) == pytest.approx((gram + eigen * 30**3 + of_classes) / evaluation)
    with_intercept = LinearObjective(DenseRows(X), y, 5, Penalty(1e-3))
    work = 1000 * 31 * (gather + 31 * half) + inverse * 31**3
    assert curvature(with_intercept, AMPLE).cost(1) == pytest.approx(work / evaluation)
    costs = replace(costs, min_rows=100, rows_per_feature=4)
    work = 120 * 30 * (gather + 30 * half) + inverse * 30**3
    assert curvature(f, AMPLE).cost(1) == pytest.approx(work / evaluation)
    bytes_of_blocks = 5 * (8 * 30**2 + 12 * 120)  # and the rows drawn for them, with their weights
    assert curvature(f, bytes_of_blocks).cost(5) == curvature(f, AMPLE).cost(5)
    assert curvature(f, bytes_of_blocks - 1).cost(5) == math.inf
    assert curvature(f, bytes_of_blocks - 1).cost(1) == curvature(f, AMPLE).cost(1)
    assert curvature(f, DIAGONAL).cost(1) == pytest.approx((120 * (gather + half) + inverse) / evaluation)
    narrow = LinearObjective(DenseRows(X[:, :2]), np.arange(1000) % 50, 50, Penalty(1e-3), fit_intercept=False)
    assert curvature(narrow, 4 * 8 * 50**2).cost(50) < math.inf  # the basis of the classes takes the most
    assert curvature(narrow, 4 * 8 * 50**2 - 1).cost(50) == math.inf


def slow(curvature, n_calls, fall, target):
    """What `due` returns for gaps that fall by a factor each, from one, to the minimum zero."""
    return [curvature.due(fall**i, fall**i, target) for i in range(n_calls)]


@pytest.fixture
def counted(rng):
    """A problem small enough to be quick, where work counts: the Kronecker product costs less than the blocks."""
    X = rng.normal(size=(200, 60))
    f = LinearObjective(DenseRows(X), np.arange(200) % 30, 30, Penalty(1e-3))
    curvature = Curvature(f, AMPLE, costs=replace(COSTS, free=0.0, gather=0.0, draw=0.0))
    assert 2 < curvature.cost(1, COSTS.eigen) < curvature.cost(30) / 4 < 10
    return curvature


def between(curvature, fall, gap):
    """The target at which a gap that falls so is worth the Kronecker product, and not the class blocks."""
    iterations = math.sqrt(curvature.cost(1, COSTS.eigen) * curvature.cost(30))
    return gap * fall**iterations


def test_a_gap_that_falls_slowly_brings_the_class_blocks(counted):
    n = TIMES.first_look
    later = math.ceil(n * TIMES.look_growth)
    made = slow(counted, n + later, 0.99, 1e-8)
    assert [i for i, make in enumerate(made, 1) if make is not None] == [n, n + later]
    assert made[n - 1] == made[-1] == counted.class_blocks


def test_a_gap_that_does_not_fall_brings_the_class_blocks(counted):
    assert slow(counted, TIMES.first_look, 1.0, 1e-8)[-1] == counted.class_blocks


def test_no_more_is_saved_than_the_steps_that_are_foreseen(counted):
    n, later = TIMES.first_look, math.ceil(TIMES.first_look * TIMES.look_growth)
    costs = np.array([counted.cost(1, COSTS.eigen), counted.cost(30)])
    counted.times = replace(TIMES, most_to_come=0.9 * costs[0])
    assert slow(counted, n, 1.0, 1e-8) == [None] * n
    counted.times = replace(TIMES, most_to_come=0.9 * costs[1])
    assert slow(counted, n, 1.0, 1e-8)[0] == counted.kronecker  # asked for at each step, once there were enough
    counted.times = replace(TIMES, most_to_come=1.1 * costs[1])
    assert slow(counted, later, 1.0, 1e-8)[later - n] == counted.class_blocks


def test_gains_that_fall_fast_bring_nothing_whatever_the_estimate_of_the_gap(counted):
    n = TIMES.first_look
    target = 0.1**n
    assert [counted.due(0.1**i, (1 + i) * target, target) for i in range(n + 1)] == [None] * (n + 1)


def test_gains_that_do_not_fall_bring_the_class_blocks_whatever_the_estimate_of_the_gap(counted):
    n = TIMES.first_look
    target = 0.1**n
    assert [counted.due(-float(i), 0.5 * 0.1**i, target) for i in range(n)][-1] == counted.class_blocks


def test_the_whole_hessian_is_made_anew_after_a_share_of_its_cost(counted, monkeypatch):
    counted.times = replace(TIMES, most_to_come_of_whole=math.inf)
    monkeypatch.setattr(Curvature, "cost_of_whole", lambda *args: 100.0)
    made = [i for i, make in enumerate(slow(counted, 400, 1.0, 1e-8), 1) if getattr(make, "func", None)]
    first = math.ceil(TIMES.earned * 100.0)
    assert len(made) > 3
    assert first <= made[0] <= 2 * first
    assert set(np.diff(made)) == {round(TIMES.whole_age * 100.0)}


def test_a_gap_that_falls_fast_brings_nothing(counted):
    n = TIMES.first_look
    assert slow(counted, 50, 0.1, 0.1 ** (n + 1)) == [None] * 50


def test_a_gap_that_is_small_enough_brings_nothing(counted):
    assert [counted.due(1.0, 1.0, 1.0) for _ in range(50)] == [None] * 50
    assert [counted.due(1.0, 0.5, 1.0) for _ in range(50)] == [None] * 50
    assert [counted.due(1.0, math.nan, 1.0) for _ in range(50)] == [None] * 50


def test_kronecker_comes_where_the_class_blocks_are_too_dear(counted):
    n, fall = TIMES.first_look, 0.5
    assert slow(counted, n, fall, between(counted, fall, fall ** (n - 1)))[-1] == counted.kronecker
    n = math.ceil(n * TIMES.look_growth)
    assert slow(counted, n, 0.99, 1e-8)[-1] == counted.class_blocks  # a finer one comes after it


def test_kronecker_never_comes_after_the_class_blocks(counted):
    n, fall = TIMES.first_look, 0.5
    assert slow(counted, n, 0.99, 1e-8)[-1] == counted.class_blocks
    n = math.ceil(n * TIMES.look_growth)
    assert slow(counted, n, fall, between(counted, fall, fall ** (n - 1))) == [None] * n


def test_kronecker_never_comes_after_a_warm_start(counted):
    counted.times = replace(TIMES, warm_estimate=math.inf)
    n, fall = TIMES.first_look, 0.5
    counted.first(np.ones(counted.objective.n_params))
    assert slow(counted, n, fall, between(counted, fall, fall ** (n - 1))) == [None] * n


def test_first_is_the_bound_from_zeros_and_the_blocks_from_a_warm_start(xp, rng, no_whole):
    p = Problem(xp, rng)
    cold, warm = p.params(np.zeros(p.dense.n_params)), p.params(rng.normal(size=p.dense.n_params))
    curvature = p.curvature()
    bound, blocks = p.matrix(curvature.bound()), p.matrix(curvature.class_blocks(warm))
    np.testing.assert_array_equal(p.matrix(p.curvature().first(cold)), bound)
    np.testing.assert_array_equal(p.matrix(p.curvature().first(warm)), blocks)
    curvature = p.curvature(free=0.0)
    curvature.times = replace(TIMES, warm_estimate=0.0)
    np.testing.assert_array_equal(p.matrix(curvature.first(warm)), bound)
    curvature.times = replace(TIMES, warm_estimate=0.0, first_estimate=0.0)
    assert curvature.first(cold) is None
    assert curvature.first(warm) is None


def test_of_uncorrelated_features_the_scales_are_enough(xp, rng):
    X = rng.normal(size=(500, 6)) * [1, 10, 1, 0.1, 1, 4]
    flat, mixed = Problem(xp, rng, X=X), Problem(xp, rng, X=X + X[:, :1] * [0, 20, 1, 0.1, 1, 4])
    zeros = flat.params(np.zeros(flat.dense.n_params))
    curvature = flat.curvature()
    diagonal, whole = flat.matrix(curvature.first(zeros)), flat.matrix(flat.curvature().bound())
    np.testing.assert_allclose(diagonal, flat.matrix(flat.curvature(DIAGONAL).bound()), rtol=1e-5)
    assert np.abs(diagonal - whole).max() > 1e-3 * np.abs(whole).max()
    assert not any(curvature.due(1.0, 1.0, 1e-9) for _ in range(TIMES.patience - 1))
    assert curvature.due(1.0, 1.0, 1e-9) is not None
    np.testing.assert_array_equal(mixed.matrix(mixed.curvature().first(zeros)), mixed.matrix(mixed.curvature().bound()))


def test_class_blocks_serve_another_objective_of_the_same_features(xp, rng, no_whole):
    p, other = Problem(xp, rng), Problem(xp, rng, d=5)
    params = p.params(rng.normal(size=p.dense.n_params))
    first = p.curvature()
    made = p.matrix(first.class_blocks(params))
    later = Curvature(p.on_library, AMPLE, first.blocks)
    later.class_blocks = later.bound = None  # neither is called
    np.testing.assert_array_equal(p.matrix(later.first(params)), made)
    wider = other.params(rng.normal(size=other.dense.n_params))
    assert Curvature(other.on_library, AMPLE, first.blocks).first(wider) is not None  # not those: another shape
    moved = Problem(xp, rng, X=2.0 * np.asarray(p.dense.rows.part(slice(None))))
    blocks = moved.curvature()
    np.testing.assert_array_equal(
        moved.matrix(Curvature(moved.on_library, AMPLE, first.blocks).first(params)),
        moved.matrix(blocks.class_blocks(params)),
    )


def test_a_path_of_penalties_keeps_its_class_blocks(monkeypatch, no_whole):
    made = []
    make = Curvature.class_blocks
    monkeypatch.setattr(Curvature, "class_blocks", lambda self, params: made.append(1) or make(self, params))
    monkeypatch.setattr(Curvature, "due", lambda self, value, gap, target: None)
    X, y = load_breast_cancer(return_X_y=True)
    model = sx.SoftmaxClassifier(warm_start=True, device="cpu")
    for C in (0.01, 0.03, 0.1, 0.3, 1.0):
        model.set_params(C=C).fit(X, y)
        best = sx.SoftmaxClassifier(C=C, tol=1e-8, device="cpu").fit(X, y)
        assert model.converged_
        assert best.objective_ * (1 - 1e-8) <= model.objective_ <= best.objective_ * (1 + 1e-4)
    assert len(made) == 1
    model.fit(X * 2.0, y)  # other features
    assert len(made) == 2
    assert "_class_blocks" not in model.__getstate__()
    assert "_class_blocks" not in vars(model.set_params(warm_start=False).fit(X, y))


def test_at_zero_the_hessian_is_a_kronecker_product(xp, rng):
    p = Problem(xp, rng)
    zeros = p.params(np.zeros(p.dense.n_params))
    np.testing.assert_array_equal(p.matrix(p.curvature().at(zeros)), p.matrix(p.curvature().kronecker(zeros)))
    np.testing.assert_allclose(
        p.matrix(p.curvature().at(zeros)), p.matrix(p.curvature().class_blocks(zeros)), rtol=1e-3
    )


def test_the_finest_that_a_step_is_worth_is_made_at_a_point(xp, rng, no_whole):
    p = Problem(xp, rng, n=200, d=8, c=30)
    params, curvature = p.params(0.3 * rng.normal(size=p.dense.n_params)), p.curvature(free=0.0)
    costs = curvature.cost(30), curvature.cost(1, COSTS.eigen)
    assert 0 < costs[1] < costs[0]
    for worth, expected in (
        (costs[0], curvature.class_blocks(params)),
        (costs[1], curvature.kronecker(params)),
        (0.0, curvature.bound()),
    ):
        curvature.times = replace(TIMES, newton_estimate=worth)
        np.testing.assert_array_equal(p.matrix(curvature.at(params)), p.matrix(expected))


@pytest.mark.parametrize("c", [2, 3])
@pytest.mark.parametrize("max_bytes", [AMPLE, DIAGONAL])
def test_gradients_keep_their_dtype_and_place(xp, rng, c, max_bytes):
    for data in xp.float_dtypes:
        X = xp.asarray(rng.normal(size=(20, 4)), data)
        f = LinearObjective(DenseRows(X), xp.asarray(np.arange(20) % c), c, Penalty(STRENGTH))
        curvature = Curvature(f, max_bytes)
        for dtype in xp.float_dtypes:
            v = rng.normal(size=(3, f.n_params))
            params, grads = xp.asarray(v[0], dtype), xp.asarray(v, dtype)
            made = [curvature.bound(), curvature.kronecker(params), curvature.at(params)]
            made += [curvature.class_blocks(params)] if max_bytes == AMPLE else []
            for product in made:
                out = product(grads)
                xp.assert_here(out, dtype, grads.shape)
                np.testing.assert_array_equal(xp.to_numpy(grads), xp.to_numpy(xp.asarray(v, dtype)))  # as it was
                alone = xp.to_numpy(product(grads[1:2, :]))[0]
                np.testing.assert_allclose(xp.to_numpy(out)[1], alone, rtol=1e-4, atol=1e-5 * np.abs(alone).max())


# What they do for a fit.

RAW = {"wine": load_wine, "breast_cancer": load_breast_cancer, "digits": load_digits}


@pytest.mark.parametrize("name", RAW)
def test_data_as_they_come_are_fitted_in_a_few_dozen_steps(name):
    X, y = RAW[name](return_X_y=True)
    ours = sx.SoftmaxClassifier(tol=1e-4, device="cpu").fit(X, y)
    assert ours.objective_ == pytest.approx(optimum(X, y)[1], rel=1e-4)
    assert ours.n_iter_[0] <= 60


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_badly_scaled_and_shifted_features_reach_the_optimum(rng, dtype):
    """Scales of 10^U(-3, 3) and shifts: the fit to which scikit-learn's lbfgs does not come in 1000 steps."""
    Z, y = gumbel_problem(rng, 4000, 60, 5)
    X = (Z + 3 * rng.normal(size=60)) * 10 ** rng.uniform(-3, 3, size=60)
    ours = sx.SoftmaxClassifier(tol=1e-6, max_iter=200, device="cpu").fit(X.astype(dtype), y)  # a warning is an error
    f, least = optimum(X, y, dtype=dtype)
    reached = f.value_and_grad(np.concatenate([ours.coef_.ravel(), ours.intercept_]).astype(np.float64))[0]
    assert reached == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("name", ["digits", "wine", "synthetic"])
def test_units_of_the_features_do_not_change_the_number_of_steps(rng, name):
    X, y = gumbel_problem(rng, 2000, 30, 4) if name == "synthetic" else RAW[name](return_X_y=True)
    steps = {
        scale: sx.SoftmaxClassifier(C=scale**-2, device="cpu", fit_intercept=True).fit(X * scale, y).n_iter_[0]
        for scale in (1.0, 1e-3, 1e3)
    }
    for scale in (1e-3, 1e3):
        assert abs(steps[scale] - steps[1.0]) <= 0.2 * steps[1.0]


# Where they are made.


@pytest.mark.parametrize("xp", ["strict-device1"], indirect=True)
@pytest.mark.parametrize("c", [2, 3])
def test_a_gpu_keeps_matrices_and_what_it_has_of_every_row(xp, rng, c, monkeypatch, transfers):
    matrices_as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(inverses, "ON_HOST", 8)
    p = Problem(xp, rng, n=3000, c=c, X=rng.normal(size=(3000, 20)))
    curvature, params = p.curvature(min_rows=50, rows_per_feature=2), p.params(0.3 * rng.normal(size=p.dense.n_params))
    transfers.clear()
    bound, blocks = curvature.bound(), curvature.class_blocks(params)
    drawn = p.n_coef * (curvature.n_sampled + 1)
    assert max(transfers) <= max(drawn, p.n_coef * 8**2) < 21**2
    kronecker = curvature.kronecker(params)
    assert max(transfers) == 21**2  # whose eigenvectors the host makes
    transfers.clear()
    for product in (bound, blocks, kronecker):
        product(params[None, :])
    assert not transfers


@pytest.mark.parametrize("n", [1, 2, 5, 16, 33])
def test_inverses_by_halves_are_inverses(xp, rng, n, monkeypatch):
    if "float64" not in xp.float_dtypes:
        pytest.skip(f"{xp} has no float64, which every GPU has")
    monkeypatch.setattr(inverses, "ON_HOST", 3)
    X = rng.normal(size=(4, 50, n)) * np.geomspace(1, 10, n)
    matrices = X.mT @ X
    given = xp.asarray(matrices)
    actual = inverses.inverses(given, 1e-3, Workspace(2))
    xp.assert_close(actual, np.linalg.inv(matrices + 1e-3 * np.eye(n)), "float64", "hessian")
    np.testing.assert_array_equal(xp.to_numpy(given), matrices)  # not modified


def test_a_matrix_without_a_cholesky_factor_gets_a_larger_ridge(xp, monkeypatch):
    if "float64" not in xp.float_dtypes:
        pytest.skip(f"{xp} has no float64, which every GPU has")
    monkeypatch.setattr(inverses, "ON_HOST", 2)
    matrix = np.ones((6, 6)) - 1e-9 * np.eye(6)
    inverse = xp.to_numpy(inverses.inverses(xp.asarray(matrix[None]), 1e-10, Workspace(1)))[0]
    assert np.linalg.eigvalsh((inverse + inverse.T) / 2).min() > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 4, 5, 33])
def test_a_factor_whose_work_is_shared_out_is_the_cholesky_factor(rng, n, dtype, monkeypatch):
    """The same to the last bit for any number of workers."""
    monkeypatch.setattr(inverses, "PANEL", 4)
    X = rng.normal(size=(3 * n, n)).astype(dtype)
    matrix, factors = X.T @ X + np.eye(n, dtype=dtype), []
    for workers in (1, 2, 3):
        factors.append(np.array(matrix, order="F"))
        assert inverses.factorise(factors[-1], Workspace(workers))
        np.testing.assert_array_equal(np.tril(factors[-1]), np.tril(factors[0]))
    expected = np.linalg.cholesky(matrix.astype("float64"))
    tolerance = (1e-5 if dtype == "float32" else 1e-13) * np.abs(expected).max()
    np.testing.assert_allclose(np.tril(factors[0]), expected, rtol=0, atol=tolerance)


def test_the_whole_hessian_of_float32_needs_no_larger_ridge(rng, monkeypatch):
    """A shift of all classes has no curvature. Rounding of float32 probabilities would make it negative."""
    tries, factorise = [], whole.factorise
    monkeypatch.setattr(whole, "factorise", lambda *args: tries.append(1) or factorise(*args))
    X = (rng.normal(size=(2000, 12)) * np.logspace(-3, 3, 12)).astype(np.float32)
    f = LinearObjective(DenseRows(X), np.arange(2000) % 5, 5, Penalty(1e-9))
    for scale in (0.0, 1e-3):
        Curvature(f, AMPLE).whole((scale * rng.normal(size=f.n_params)).astype(np.float32))
    assert len(tries) == 2


def test_a_whole_hessian_without_a_cholesky_factor_gets_a_larger_ridge(rng, monkeypatch):
    factorise, tried = inverses.factorise, []

    def fails_twice(matrix, workspace):
        tried.append(matrix[0, 0] - 1.0)
        return factorise(matrix, workspace) and len(tried) == 3

    X, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    curvature = Curvature(LinearObjective(DenseRows(X), y, 3, Penalty(1e-3)), AMPLE)
    params = 0.1 * rng.normal(size=12)
    expected = curvature.whole(params)(params[None, :])
    monkeypatch.setattr(whole, "factorise", fails_twice)
    np.testing.assert_allclose(curvature.whole(params)(params[None, :]), expected, rtol=1e-5)
    np.testing.assert_allclose(tried, whole.RIDGE_OF_WHOLE * np.array([1.0, 1e2, 1e4]), rtol=1e-3)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("max_bytes", [1 << 30, 30_000])
@pytest.mark.parametrize("c", [2, 3, 7])
def test_the_whole_hessian_is_inverted(rng, c, max_bytes, weighted, fit_intercept):
    """In float64, and in float32 where no more fits."""
    scale = np.logspace(-3, 3, 5)
    X, y = rng.normal(size=(90, 5)) * scale, np.arange(90) % c
    weight = rng.exponential(size=90) if weighted else None
    f = LinearObjective(DenseRows(X, weight), y, c, Penalty(1e-3), fit_intercept)
    n_coef = f.coef_shape[0]
    params = np.concatenate([(0.5 * rng.normal(size=(n_coef, 5)) / scale).ravel(), np.zeros(n_coef * fit_intercept)])
    curvature = Curvature(f, max_bytes)
    single = max_bytes < 1 << 30 and curvature._dtype_of_whole() == np.float32
    grad = f.value_and_grad(params)[1]
    step = curvature.whole(params)(grad[None, :])[0]
    image = f.hessian_product(params)(step)
    if n_coef > 1:  # a shift of all classes has the penalty's curvature alone, and counts for nothing here
        for x in (grad, image):
            coef = x[: n_coef * 5].reshape(n_coef, 5)
            coef -= coef.mean(axis=0)
    np.testing.assert_allclose(image, grad, rtol=0, atol=(1e-2 if single else 1e-6) * np.abs(grad).max())


def test_the_diagonal_of_the_hessian_replaces_what_has_aged(rng):
    """One row holds a feature, and has become certain: the bound takes the feature for stiff."""
    X, y = rng.normal(size=(500, 4)), np.arange(500) % 3
    X[7, 2] = 1e6
    f = LinearObjective(DenseRows(X), y, 3, Penalty(1e-3))
    params = np.zeros(f.n_params)
    params[2:12:4] = [0.0, 1e-3, 0.0]  # the logits of row 7 differ by 1000
    curvature = Curvature(f, 1 << 30)
    bound = curvature.bound()
    e = np.zeros(f.n_params)
    e[2], e[6] = 1.0, -1.0
    product = f.hessian_product(params)(e) * np.abs(e)  # what it has of this feature
    assert bound(product[None, :])[0] @ product < 1e-3 * (e @ product)
    renewed = curvature.renewed(params, bound)(product[None, :])[0]
    assert renewed @ product == pytest.approx(e @ product, rel=0.5)
    assert curvature.renewed(np.zeros(f.n_params), bound) is bound
