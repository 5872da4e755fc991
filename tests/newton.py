"""The minimum of penalised softmax regression, by Newton's method. Imports nothing from softmax_xp.

The objective is scikit-learn's, divided by C times the sum of weights:

    f(coef, intercept) = sum_i s_i cross_entropy_i / S + ||coef||^2 / (2 C S),   S = sum_i s_i

Two classes share one row of coefficients, and class 0 has the logit 0. Everything that decides about the result (logits,
losses, gradient) is computed in numpy.longdouble, which has 64 bits of mantissa on x86-64; Hessians and their factors are float64.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import qr, solve_triangular

WIDE = np.longdouble
REACH = 0.1  # largest change of a difference of two logits of a row, in the last Newton step
REFINEMENTS = 50  # conjugate gradient steps on a Newton system, at most


class NotSolvedError(RuntimeError):
    """Newton's method has not come to the minimum, so that nothing can be judged."""


def logits_of(X, coef, intercept):
    """The logits (n, K) as longdouble, class 0 having 0 where there is one row of coefficients."""
    logits = np.asarray(X).astype(WIDE) @ np.asarray(coef).astype(WIDE).T + np.asarray(intercept).astype(WIDE)
    return np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits


def value_and_rounding(X, y, coef, intercept, C, sample_weight=None):
    """The objective at given coefficients, and what a relative error of one in every logit would make of it at most, longdoubles.

    `y` holds class indices. Entries of X and of the coefficients count as they are, whatever their dtype.
    """
    s = _weights(sample_weight, len(X))
    rows = s > 0
    y, shares = np.asarray(y)[rows], s[rows] / s.sum()
    logits = logits_of(np.asarray(X)[rows], coef, intercept)
    losses, slope = _losses(logits, y)
    slope[np.arange(len(y)), y] -= 1
    penalty = (np.asarray(coef).astype(WIDE) ** 2).sum() / (2 * WIDE(C) * s.sum())
    return shares @ losses + penalty, shares @ (losses + abs(slope * np.where(slope == 0, 0, logits)).sum(axis=1))


def minimum(X, y, C, fit_intercept=True, sample_weight=None, start=None):
    """The minimum of the objective and where it is: value, coef (K, D), intercept (K,), as longdouble.

    Parameters
    ----------
    X : array of shape (n, D), finite
    y : array of shape (n,)
        Class indices, 0 to K - 1. Classes without any weight take the intercept -inf, if there is one: the value is the infimum.
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
    present = np.bincount(y, minlength=n_classes) > 0 if fit_intercept else np.full(n_classes, True)
    E = _contrasts(n_classes, present)
    problem = _Problem(X, y, E, C, fit_intercept, s)
    params = problem.solve(None if start is None else np.random.default_rng(start))
    coef, intercept = problem.coefficients(params)
    if n_classes == 2 and not present.all():
        return WIDE(0), 0 * coef, np.full(1, np.inf if present[1] else -np.inf, dtype=WIDE)
    if n_classes > 2:
        intercept = np.where(present, intercept, -np.inf)
    best, _ = value_and_rounding(X, y, coef, intercept, C, s)
    if not abs(best - problem.value(params)) <= 1e-9 * best:
        raise NotSolvedError(f"{best} at the coefficients, {problem.value(params)} before they are scaled back")
    return best, coef, intercept


def _weights(sample_weight, n):
    return np.ones(n, dtype=WIDE) if sample_weight is None else np.asarray(sample_weight).astype(WIDE)


def _contrasts(n_classes, present):
    """The matrix (K, q) that takes q free rows of coefficients to K rows of logits, with columns of norm one."""
    if n_classes == 2:
        return np.array([[0.0], [1.0]])
    E = np.zeros((n_classes, present.sum() - 1))
    for column in range(E.shape[1]):  # Helmert's
        own = np.flatnonzero(present)[: column + 2]
        E[own[:-1], column], E[own[-1], column] = 1.0, -(column + 1.0)
    return E / np.sqrt((E**2).sum(axis=0))


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

    Features are centred if there is an intercept, which takes up the difference, and divided by their size.
    """

    def __init__(self, X, y, E, C, fit_intercept, s):
        n, D = X.shape
        self.y, self.E, self.s, self.fit_intercept = y, E, s / s.sum(), fit_intercept
        centre = np.median(X, axis=0).astype(WIDE) if fit_intercept else np.zeros(D, dtype=WIDE)
        X = X.astype(WIDE) - centre
        # The median, which outliers leave alone, as long as their squares stay within the range of float64.
        scale = np.array(
            [max(np.median(abs(x[x != 0])), abs(x).max() / 1e20) if x.any() else 1 for x in X.T], dtype=WIDE
        )
        scale = np.exp2(np.rint(np.log2(scale)))
        X = X / scale
        root = np.sqrt(1 / (WIDE(C) * s.sum())) / scale  # of the penalty of a unit of each scaled feature
        size = np.sqrt(1 + root**2)  # where the penalty holds a feature, its curvature counts, not that of the losses
        self.Z, self.scale, self.centre = X / size, scale * size, centre
        self.penalty = np.diag(root / size)  # the norm of penalty @ A, squared and halved, is added
        if fit_intercept:
            self.Z = np.hstack([self.Z, np.ones((n, 1), dtype=WIDE)])
            self.penalty = np.hstack([self.penalty, np.zeros((D, 1), dtype=WIDE)])
        self.Z64, self.penalty64 = self.Z.astype(float), self.penalty.astype(float)
        self.gram = self.penalty64.T @ self.penalty64

    def coefficients(self, A):
        D = len(self.centre)
        coef = A[:D] / self.scale[:, None]
        intercept = (A[D] if self.fit_intercept else 0) - self.centre @ coef
        E = self.E[1:] if len(self.E) == 2 else self.E
        return (coef @ E.T).T, E @ intercept if self.fit_intercept else np.zeros(len(E), dtype=WIDE)

    def value(self, A):
        return self._value(self.Z @ A, self.penalty @ A)

    def _value(self, free, penalised):
        return self.s @ _losses(free @ self.E.T, self.y)[0] + (penalised**2).sum() / 2

    def solve(self, rng):
        A = np.zeros((self.Z.shape[1], self.E.shape[1]), dtype=WIDE)
        if A.size == 0:
            return A
        if rng is not None:
            A += rng.normal(size=A.shape) / (1e-9 + abs(self.Z).max(axis=0))[:, None]
        free, penalised = self.Z @ A, self.penalty @ A
        f = self._value(free, penalised)
        for _ in range(2000):
            grad, probabilities = self._gradient(free, penalised)
            step = self._newton_step(grad, probabilities)
            along, penalised_along = self.Z @ step, self.penalty @ step
            decrement = -(grad * step).sum()
            reach = self._reach(free, along, min(np.log(f), 0) - 100)
            t, lowest = self._line_search(free, penalised, along, penalised_along, f, decrement)
            if decrement <= 2e-13 * f and reach <= REACH:  # half of it is the gap, or about that
                return A + step if lowest < f else A
            if t == 0:
                if decrement <= 1e-9 * f and reach <= REACH:
                    return A
                raise NotSolvedError(f"no descent from {f}: decrement {decrement}, reach {reach}")
            A = A + t * step
            free, penalised = self.Z @ A, self.penalty @ A
            f = self._value(free, penalised)
        raise NotSolvedError(f"too many steps: {f}, decrement {decrement}, reach {reach}")

    def _reach(self, free, along, least):
        """The largest change, by a step, of a logit against the largest of its row; what is below `least` counts for nothing."""
        rows, before, change = np.arange(len(self.y)), free @ self.E.T, along @ self.E.T
        top = before.argmax(axis=1)
        before, change = before - before[rows, top][:, None], change - change[rows, top][:, None]
        return abs(np.maximum(before + change, least) - np.maximum(before, least)).max()

    def _line_search(self, free, penalised, along, penalised_along, f, decrement):
        """The length of the step, 0 where none descends, and the value there: halved until it descends enough, else doubled while it pays."""

        def at(t):
            return self._value(free + t * along, penalised + t * penalised_along)

        t, lowest = WIDE(1), at(WIDE(1))
        while not lowest <= f - decrement * t / 10:
            t /= 2
            lowest = at(t)
            if t < 1e-12:
                return WIDE(0), f
        if t == 1:
            while (further := at(2 * t)) < lowest:
                t, lowest = 2 * t, further
        return t, lowest

    def _gradient(self, free, penalised):
        rows = np.arange(len(self.y))
        probabilities = _losses(free @ self.E.T, self.y)[1]
        slope = probabilities.copy()
        slope[rows, self.y] = 0
        slope[rows, self.y] = -slope.sum(axis=1)  # p - 1, without cancellation
        return self.Z.T @ (self.s[:, None] * (slope @ self.E)) + self.penalty.T @ penalised, probabilities

    def _newton_step(self, grad, probabilities):
        """The solution of H step = -grad, by conjugate gradients with a factor of H as the preconditioner."""
        r, q = grad.shape
        p = probabilities.astype(float)
        from_top = (
            self.E - self.E[p.argmax(axis=1)][:, None, :]
        )  # (n, K, q), of classes: nothing cancels where p is near 1
        mean = np.einsum("nk,nkq->nq", p, from_top)
        root = np.sqrt(p * self.s.astype(float)[:, None])[:, :, None] * (from_top - mean[:, None, :])  # (n, K, q)
        M = np.einsum("nka,nkb->nab", root, root)

        def product(direction):
            rows = np.einsum("nab,nb->na", M, self.Z64 @ direction)
            return self.Z64.T @ rows + self.gram @ direction

        factor, scale = self._factor(M, root, r, q)

        def precondition(v):
            v = (v / scale).T.ravel()
            v = solve_triangular(factor, solve_triangular(factor, v, trans="T"))
            return v.reshape(q, r).T / scale

        residual = -grad.astype(float)
        step = np.zeros_like(residual)
        direction = z = precondition(residual)
        rho = first = (residual * z).sum()
        for _ in range(REFINEMENTS):
            image = product(direction)
            curvature = (direction * image).sum()
            if not curvature > 0:
                break
            step = step + rho / curvature * direction
            residual = residual - rho / curvature * image
            z = precondition(residual)
            rho, last = (residual * z).sum(), rho
            if not rho > 1e-20 * first:
                break
            direction = z + rho / last * direction
        return step

    def _factor(self, M, root, r, q):
        """The upper triangular R with R'R = H in a diagonal scaling, and the scale (r, q): Cholesky, or QR where H is ill-conditioned."""
        H = np.empty((q, r, q, r))
        for a in range(q):
            for b in range(a, q):
                H[a, :, b, :] = self.Z64.T @ (M[:, a, b, None] * self.Z64) + (a == b) * self.gram
                H[b, :, a, :] = H[a, :, b, :].T
        H = H.reshape(q * r, q * r)
        scale = np.sqrt(np.maximum(H.diagonal(), np.finfo(float).tiny))
        H = H / scale / scale[:, None]
        try:
            R = np.linalg.cholesky(H).T
            if R.diagonal().min() > 1e-4:
                return R, scale.reshape(q, r).T
        except np.linalg.LinAlgError:
            pass
        J = np.einsum("nka,nr->nkar", root, self.Z64).reshape(-1, q * r)
        J = np.vstack([J, np.kron(np.eye(q), self.penalty64)]) / scale
        J = J[np.argsort(-abs(J).max(axis=1))]  # Householder's QR is stable by rows if the largest come first
        J = np.vstack([J, 1e-15 * np.eye(q * r)])
        return qr(J, mode="r", check_finite=False, overwrite_a=True)[0][: q * r], scale.reshape(q, r).T
