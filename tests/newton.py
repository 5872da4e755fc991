"""The minimum of penalised softmax regression, by Newton's method. Imports nothing from softmax_xp.

The objective is scikit-learn's, divided by C times the sum of weights:

    f(coef, intercept) = sum_i s_i cross_entropy_i / S + ||coef||^2 / (2 C S),   S = sum_i s_i

Two classes share one row of coefficients, and class 0 has the logit 0. Logits, losses and the gradient, which decide
about the result, are numpy.longdouble (64 bits of mantissa on x86-64); Hessians and their factors are float64.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import helmert, qr, solve_triangular

WIDE = np.longdouble
REACH = 0.1  # largest change of a difference of two logits of a row, in the last Newton step
REFINEMENTS = 50  # conjugate gradient steps on a Newton system, at most


class NotSolvedError(RuntimeError):
    """Newton's method has not come to the minimum, so that nothing can be judged."""


def logits_of(X, coef, intercept):
    """The logits (n, K) as longdouble, class 0 having 0 where there is one row of coefficients."""
    logits = np.asarray(X).astype(WIDE) @ np.asarray(coef).astype(WIDE).T + np.asarray(intercept).astype(WIDE)
    return np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits


def value_and_size(X, y, coef, intercept, C, sample_weight=None):
    """The objective at given coefficients, and its size for rounding, both longdouble.

    An error of eps, relative to each logit and loss, changes the objective by at most eps times the second. `y` holds
    class indices. Entries of X and of the coefficients count as they are, whatever their dtype.
    """
    s = _weights(sample_weight, len(X))
    rows = s > 0
    y, shares = np.asarray(y)[rows], s[rows] / s.sum()
    logits = logits_of(np.asarray(X)[rows], coef, intercept)
    losses, slope = _losses(logits, y)
    slope[np.arange(len(y)), y] -= 1
    penalty = (np.asarray(coef).astype(WIDE) ** 2).sum() / (2 * WIDE(C) * s.sum())
    return shares @ losses + penalty, shares @ (losses + abs(slope * np.where(slope == 0, 0, logits)).sum(axis=1))


def duality_gap(X, y, coef, intercept, C, sample_weight=None, fit_intercept=True):
    """A bound on how far the objective is above its minimum: what it exceeds the dual objective by, at the same logits.

    That is ||gradient in coef||^2 C S / 2, where the gradient in the intercepts is zero, as the dual problem asks.
    """
    s = _weights(sample_weight, len(X))
    y, shares = np.asarray(y)[s > 0], s[s > 0] / s.sum()
    slopes = _losses(logits_of(X, coef, intercept)[s > 0], y)[1]
    slopes[np.arange(len(y)), y] -= 1
    slopes = shares[:, None] * slopes[:, len(slopes[0]) - len(coef) :]
    X = np.asarray(X)[s > 0].astype(WIDE)
    if fit_intercept:  # another origin changes nothing but rounding
        assert abs(slopes.sum(axis=0)).max() < 1e-10
        X = X - np.median(X, axis=0)
    strength = 1 / (WIDE(C) * s.sum())
    return ((slopes.T @ X + strength * coef) ** 2).sum() / (2 * strength)


def minimum(X, y, C, fit_intercept=True, sample_weight=None, start=None):
    """The minimum of the objective and where it is: value, coef (K, D), intercept (K,), as longdouble.

    Parameters
    ----------
    X : array of shape (n, D), finite
    y : array of shape (n,)
        Class indices, 0 to K - 1. A class without any weight takes the intercept -inf, if there is one: the value is
        the infimum.
    C : float, finite
    fit_intercept : bool
    sample_weight : array of shape (n,), optional
    start : int, optional
        Seed of a random start, instead of zero coefficients.
    """
    if not np.isfinite(C):
        raise ValueError(f"`C` must be finite, got {C}: without a penalty there may be no minimum.")
    n_classes = int(np.max(y)) + 1
    s = _weights(sample_weight, len(X))
    rows = s > 0
    X, y, s = np.asarray(X)[rows], np.asarray(y)[rows], s[rows]
    present = np.unique(y) if fit_intercept else np.arange(n_classes)
    if n_classes == 2 and len(present) == 1:
        return WIDE(0), np.zeros((1, X.shape[1]), dtype=WIDE), np.array([np.inf if present[0] else -np.inf], dtype=WIDE)
    # The matrix (K, q) that takes q free rows of coefficients to K rows; for many classes these sum to zero.
    E = np.array([[0.0], [1.0]]) if n_classes == 2 else helmert(len(present)).T
    problem = _Problem(X, np.searchsorted(present, y), E, C, fit_intercept, s)
    params = problem.solve(None if start is None else np.random.default_rng(start))
    coef, intercept = problem.coefficients(params)
    if len(present) < n_classes:
        whole = np.zeros((n_classes, X.shape[1]), dtype=WIDE), np.full(n_classes, -np.inf, dtype=WIDE)
        whole[0][present], whole[1][present] = coef, intercept
        coef, intercept = whole
    best, _ = value_and_size(X, y, coef, intercept, C, s)
    if not abs(best - problem.value(params)) <= 1e-9 * best:
        raise NotSolvedError(f"{best} at the coefficients, {problem.value(params)} before they are scaled back")
    return best, coef, intercept


def _weights(sample_weight, n):
    return np.ones(n, dtype=WIDE) if sample_weight is None else np.asarray(sample_weight).astype(WIDE)


def _losses(logits, y):
    """The loss of each row, to a few units in the last place also where it is tiny, and the probabilities."""
    rows = np.arange(len(y))
    top = logits.argmax(axis=1)
    shifted = logits - logits[rows, top][:, None]
    powers = np.exp(shifted)
    others = powers.copy()
    others[rows, top] = 0
    others = others.sum(axis=1)
    return np.log1p(others) - shifted[rows, y], powers / (1 + others)[:, None]


class _Problem:
    """The objective in coordinates in which features, and the penalty, are of about one size.

    Features are centred if there is an intercept, which takes up the difference, and divided by their size. The free
    rows of coefficients A (r, q), the intercepts being the last of r, give the logits Z A E'.
    """

    def __init__(self, X, y, E, C, fit_intercept, s):
        self.y, self.E, self.s, self.fit_intercept = y, E, s / s.sum(), fit_intercept
        self.centre = np.median(X, axis=0).astype(WIDE) if fit_intercept else np.zeros(X.shape[1], dtype=WIDE)
        X = X.astype(WIDE) - self.centre
        # The median, which outliers leave alone, as long as their squares stay within the range of float64.
        size = [max(np.median(abs(x[x != 0])), abs(x).max() / 1e20) if x.any() else 1 for x in X.T]
        size = np.exp2(np.rint(np.log2(np.array(size, dtype=WIDE))))
        root = np.sqrt(1 / (WIDE(C) * s.sum())) / size
        self.size = size * np.sqrt(1 + root**2)  # where the penalty holds a feature, by its curvature
        self.Z = X / self.size
        self.root = np.sqrt(1 / (WIDE(C) * s.sum())) / self.size  # of the penalty, which is ||root A||^2 / 2
        if fit_intercept:
            self.Z = np.hstack([self.Z, np.ones((len(X), 1), dtype=WIDE)])
            self.root = np.append(self.root, 0)
        self.Z64 = self.Z.astype(float)

    def coefficients(self, A):
        """The coefficients (K, D) and intercepts (K,) of the features as they were given; one row for two classes."""
        E = self.E[1:] if len(self.E) == 2 else self.E
        coef = A[: len(self.size)] / self.size[:, None] @ E.T
        intercept = A[-1] @ E.T - self.centre @ coef if self.fit_intercept else np.zeros(len(E), dtype=WIDE)
        return coef.T, intercept

    def value(self, A):
        """The objective."""
        return self.s @ _losses(self.Z @ A @ self.E.T, self.y)[0] + ((self.root[:, None] * A) ** 2).sum() / 2

    def solve(self, rng):
        """The minimiser, from zero or from a random start."""
        A = np.zeros((self.Z.shape[1], self.E.shape[1]), dtype=WIDE)
        if A.size == 0:
            return A
        if rng is not None:
            A += rng.normal(size=A.shape) / (1e-9 + abs(self.Z).max(axis=0))[:, None]
        damping, least = 0.0, -100 - 2 * np.log(abs(self.Z).max())
        for _ in range(1000):
            f, grad, p = self._value_and_grad(A)
            if not grad.any():
                return A
            step = self._newton_step(grad / f, p, f, damping)
            decrement = -(grad * step).sum()
            t = self._line_search(A, step) if decrement > 0 else 0
            reach = self._reach(A, step, least + min(np.log(f), 0))
            if damping == 0 and 0 < decrement <= (2e-13 if t > 0 else 1e-9) * f and reach <= REACH:
                return A + t * step
            if damping > 1e6:
                break
            damping = (damping / 100 if damping > 1e-14 else 0.0) if t > 0 else max(1e-12, 10 * damping)
            A = A + t * step
        raise NotSolvedError(f"{f} with a decrement of {decrement}, reach {reach}, step {t}, damping {damping}")

    def _reach(self, A, step, least):
        """The largest change of a logit, against the largest of its row; logits below `least` count for nothing."""
        rows, before, change = np.arange(len(self.y)), self.Z @ A @ self.E.T, self.Z @ step @ self.E.T
        top = before.argmax(axis=1)
        before, change = before - before[rows, top][:, None], change - change[rows, top][:, None]
        return abs(np.maximum(before + change, least) - np.maximum(before, least)).max()

    def _line_search(self, A, step):
        """The length of the step at which the slope is at most a tenth of what it was, or 0 where there is none.

        Found to the last digit if need be: where a row has large features, its loss has a kink, at which its
        curvature is seen, and nowhere else.
        """
        free, along = self.Z @ A, self.Z @ step
        penalised, penalised_along = self.root[:, None] * A, self.root[:, None] * step

        def slope(t):
            slopes = self._slopes(_losses((free + t * along) @ self.E.T, self.y)[1]) @ self.E
            return (slopes * along).sum() + ((penalised + t * penalised_along) * penalised_along).sum()

        first, low, high = slope(0), WIDE(0), WIDE(np.inf)
        t = WIDE(1)
        for _ in range(150):
            now = slope(t)
            if now > 0:
                high = t
            else:
                low = t
            if abs(now) <= -first / 10:
                return t
            t = 2 * t if high == np.inf else (low + high) / 2
        return low

    def _value_and_grad(self, A):
        """The objective, its gradient, and the probabilities."""
        losses, p = _losses(self.Z @ A @ self.E.T, self.y)
        value = self.s @ losses + ((self.root[:, None] * A) ** 2).sum() / 2
        return value, self.Z.T @ (self._slopes(p) @ self.E) + self.root[:, None] ** 2 * A, p

    def _slopes(self, p):
        """The gradient of the sum of losses in the logits (n, K), without cancellation where a row's p is near 1."""
        rows, slopes = np.arange(len(self.y)), p.copy()
        slopes[rows, self.y] = 0
        slopes[rows, self.y] = -slopes.sum(axis=1)
        return self.s[:, None] * slopes

    def _newton_step(self, grad, p, f, damping):
        """The solution of (H + damping) step = -grad, for the objective divided by f, so that float64 can hold it.

        By conjugate gradients, with a triangular factor of the matrix as the preconditioner.
        """
        top = p.argmax(axis=1)
        weight, p = np.sqrt(p * self.s[:, None] / f).astype(float), p.astype(float)
        E = self.E - self.E[top][:, None, :]  # (n, K, q); so nothing cancels where p is near 1
        rows = weight[:, :, None] * (E - np.einsum("nk,nkq->nq", p, E)[:, None, :])  # (n, K, q)
        curvature = np.einsum("nka,nkb->nab", rows, rows)
        root = np.sqrt(self.root**2 / f + damping).astype(float)
        factor, scale = self._factor(rows, curvature, root)

        def product(v):
            return self.Z64.T @ np.einsum("nab,nb->na", curvature, self.Z64 @ v) + root[:, None] ** 2 * v

        def precondition(v):
            v = solve_triangular(factor, (v / scale).T.ravel(), trans="T")
            return solve_triangular(factor, v).reshape(v.size // len(root), -1).T / scale

        residual = -grad.astype(float)
        step = np.zeros_like(residual)
        direction = z = precondition(residual)
        rho = first = (residual * z).sum()
        for _ in range(REFINEMENTS):
            image = product(direction)
            along = (direction * image).sum()
            if not (0 < along < np.inf and 0 < rho < np.inf):
                break
            step, residual = step + rho / along * direction, residual - rho / along * image
            z = precondition(residual)
            rho, last = (residual * z).sum(), rho
            if not rho > 1e-20 * first:
                break
            direction = z + rho / last * direction
        return step

    def _factor(self, rows, curvature, root):
        """The upper triangular R with R'R = H in a diagonal scaling, and the scale (r, q).

        By Cholesky's method, or by QR of the factors of H, rows and root, where H is ill-conditioned.
        """
        r, q = len(root), curvature.shape[1]
        H = np.empty((q, r, q, r))
        for a in range(q):
            for b in range(a, q):
                H[a, :, b, :] = self.Z64.T @ (curvature[:, a, b, None] * self.Z64) + (a == b) * np.diag(root**2)
                H[b, :, a, :] = H[a, :, b, :].T
        H = H.reshape(q * r, q * r)
        scale = np.sqrt(np.maximum(H.diagonal(), 1e-200))
        try:
            R = np.linalg.cholesky(H / scale / scale[:, None]).T
            if R.diagonal().min() > 1e-4:
                return R, scale.reshape(q, r).T
        except np.linalg.LinAlgError:
            pass
        J = np.einsum("nka,nr->nkar", rows, self.Z64).reshape(-1, q * r)
        J = np.vstack([J, np.diag(np.tile(root, q))]) / scale
        J = J[np.argsort(-abs(J).max(axis=1))]  # Householder's QR is stable by rows if the largest come first
        J = np.vstack([J, 1e-15 * np.eye(q * r)])
        return qr(J, mode="r", check_finite=False, overwrite_a=True)[0][: q * r], scale.reshape(q, r).T
