"""Limited-memory BFGS, from any preconditioner, with Newton's own estimate of the gap to the optimum at the end.

Written in the array API: the vectors stay on their device, and what comes to the host are a few scalars.

References
----------
Byrd, Nocedal and Schnabel, 1994, doi:10.1007/BF01582063: the compact form of the inverse, theorem 2.2.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from softmax_xp._arrays import Array, accumulation_dtype, device_of, namespace
from softmax_xp.preconditioners import Preconditioner
from softmax_xp.solvers import Iterate, Solution
from softmax_xp.solvers.descent import Evaluation, descend
from softmax_xp.solvers.line_search import Point, ValueAndGrad, dot
from softmax_xp.solvers.newton_cg import EXACT, Check, Decrement, HessianProduct, HiddenGap, newton_step

# Where the curvature is known in advance. With 4 products the gap of one in eight nearly separated problems was more
# than ten times its estimate, up to 28 times; with these it was at most eight times, of 675 random problems.
KNOWN = Check(0.4, 12, 1e-2)
# Where only the pairs tell of it: they have seen little of directions in which features are small, or nearly constant.
UNKNOWN = Check(0.1, 50, 0.0)
CHECK_PRODUCTS = 100
LAST_PRODUCTS = 20  # where the solve has to end: what is wanted then is how far it is, not whether it may end
SMALLEST = 1e-100  # curvature along a step whose inverse, and square, are still numbers
MOST_UNDERSTATED = 1e3  # ratio of gaps that is remembered: of pairs that are mostly rounding it may be any number
RECENT = 4  # steps whose gain is held against the gap expected before them

# Called after each step with the estimated gap and the one at which the solve ends; returns what makes a better
# preconditioner at given parameters, or None.
Due: TypeAlias = Callable[[float, float], Callable[[Array], Preconditioner] | None]


class Pairs:
    """The last pairs of a step s and the difference y of the gradients at its ends, and the estimate that they make.

    With these as the rows of S and Y, from oldest to last, both divided by the root of s'y, R the upper triangle
    of S Y', and H0 a first estimate of the inverse Hessian, the one of BFGS is

        H = (I - S' R^-T Y) H0 (I - Y' R^-1 S) + S' R^-T R^-1 S,

    which is what the recursion over pairs computes, in as many operations for twenty pairs as for one: on a GPU each of
    them is a launch. R^-1 gains a column with each pair, and loses a row and a column with the one that is forgotten.
    The rows of S, Y and R^-1 are in no order: a new pair takes the place of the oldest.

    Parameters
    ----------
    memory : int
        How many pairs are kept.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._arrays: tuple[Array, Array, Array] | None = None
        self._n_seen = 0

    def __len__(self) -> int:
        return min(self._n_seen, self.memory)

    def clear(self) -> None:
        """Forget all pairs."""
        self._n_seen = 0

    def append(self, s: Array, y: Array, curvature: float) -> None:
        """Add a pair (n,), (n,) of which `curvature` = s'y is positive."""
        xp, device = namespace(s=s), device_of(s)
        wide = accumulation_dtype(xp, device)
        if self._arrays is None:
            S, Y = (xp.empty((self.memory, s.shape[0]), dtype=wide, device=device) for _ in range(2))
            self._arrays = S, Y, xp.empty((self.memory, self.memory), dtype=wide, device=device)
        at, root = self._n_seen % self.memory, math.sqrt(curvature)
        self._n_seen += 1
        S, Y, inverse = self._known()
        S[at, :] = xp.astype(s, wide, copy=False) / root
        Y[at, :] = xp.astype(y, wide, copy=False) / root
        inverse[at, :] = 0.0
        inverse[:, at] = 0.0
        inverse[:, at] = -(inverse @ (S @ Y[at, :]))
        inverse[at, at] = 1.0

    def product(self, v: Array, start: Preconditioner) -> Array:
        """Return H v, (n,), where `start` maps rows (m, n) to H0 times each, which is scaled by the last pair.

        No number comes to the host.
        """
        xp = namespace(v=v)
        S, Y, inverse = self._known()
        last = (self._n_seen - 1) % self.memory
        a = inverse @ (S @ xp.astype(v, S.dtype, copy=False))
        q = xp.astype(v, S.dtype, copy=False) - a @ Y
        started = start(xp.stack([q, Y[last, :]]))  # both in one pass over the preconditioner
        r = started[0, :] / (Y[last, :] @ started[1, :])
        r = r + ((a - Y @ r) @ inverse) @ S
        return xp.astype(r, v.dtype, copy=False)

    def _known(self) -> tuple[Array, Array, Array]:
        """Return views of S, Y and R^-1, as far as there are pairs."""
        S, Y, inverse = self._arrays  # type: ignore[misc]
        n = len(self)
        return S[:n, :], Y[:n, :], inverse[:n, :n]


class _LBFGS:
    """Directions from the last pairs of steps and gradient differences.

    Their decrement costs nothing, but is only as good as the estimate of the inverse Hessian that they make. When
    it says that the optimum is near, a Newton step has the last word, by conjugate gradients on the Hessian itself;
    the ratio of both is taken into account from then on, and so is what recent steps have gained.
    """

    def __init__(
        self,
        memory: int,
        precondition: Preconditioner | None,
        hessian_product: HessianProduct | None,
        hidden_gap: HiddenGap | None,
        exact_inverse: Callable[[Array], Preconditioner | None] | None,
        renewed: Callable[[Array, Preconditioner | None], Preconditioner | None] | None,
        due: Due | None,
        correlations: bool = True,
    ) -> None:
        self.precondition = precondition
        self.correlations = correlations
        self.hessian_product = hessian_product
        self.ends_by_newton_step = hessian_product is not None
        self.hidden_gap = hidden_gap
        self.exact_inverse = exact_inverse
        self.renewed = renewed
        self.due = due
        self.pairs = Pairs(memory)
        self.understated = 1.0  # the ratio of the gap by a Newton step to that by the pairs
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT + 1)  # values, and gaps by the pairs
        self._gap = math.inf
        self._checked: tuple[Point, Decrement] | None = None  # the last Newton step, and where it starts
        self._stepped = False

    def direction(self, point: Point, target: float) -> tuple[Array, float, float | None]:
        xp = namespace(grad=point.grad)
        direction = -self._product(point.grad[None, :])[0, :]
        decrement = -0.5 * float(dot(xp, direction, point.grad))
        if decrement < 0.0:  # rounding has made an estimate that is not positive definite
            return direction, math.inf, 1.0
        self._recent.append((point.value, decrement))
        value, expected = self._recent[0]  # what has been gained since then was missing then
        gap = self._gap = decrement * max(self.understated, (value - point.value) / expected if expected > 0.0 else 1.0)
        make = self.due(gap, target) if self.due is not None and self._stepped else None
        self._stepped = False
        if make is not None:
            self.pairs.clear()
            self.precondition = None  # its memory is free before the next one is made
            self.precondition = make(point.x)
            self.understated = 1.0
            self._recent.clear()
            return self.direction(point, target)
        if gap <= target and self.hessian_product is not None and decrement > 0.0:
            checked = self._check(self.hessian_product, point, CHECK_PRODUCTS)
            newton = checked.newton
            self._gap, self._checked = checked.gap, (point, checked)
            if newton.decrease == 0.0:
                return direction, math.inf, 1.0
            ratio = newton.gap / decrement if math.isfinite(newton.gap) else 10.0 * self.understated
            self.understated = min(max(1.0, ratio), MOST_UNDERSTATED)
            return newton.step, checked.gap, 1.0
        return direction, gap, 1.0 if self.pairs or self.precondition else None

    def stepped(self, before: Point, after: Point) -> None:
        xp = namespace(x=after.x)
        s, y = after.x - before.x, after.grad - before.grad
        curvature = float(dot(xp, s, y))
        if curvature > SMALLEST:
            self.pairs.append(s, y, curvature)
        self._stepped = True

    def restarted(self) -> bool:
        had = len(self.pairs) > 0
        self.pairs.clear()
        return had

    def gap(self, point: Point) -> float:
        if self._checked is not None and point is self._checked[0]:
            return self._checked[1].known_gap
        if self.hessian_product is None:
            return self._gap
        return self._check(self.hessian_product, point, LAST_PRODUCTS).known_gap

    def gap_after(self, before: Point, after: Point) -> float:
        if self._checked is None or self._checked[0] is not before:
            return math.inf
        return self._checked[1].gap_after(after)

    def _check(self, hessian_product: HessianProduct, point: Point, max_products: int) -> Decrement:
        """Return the decrement at a point by a Newton step: by the exact inverse where that is had cheaply."""
        precondition = None if self.exact_inverse is None else self.exact_inverse(point.x)
        exact = precondition is not None
        if exact:
            check = EXACT
        else:
            start = self.precondition if self.renewed is None else self.renewed(point.x, self.precondition)
            # Pairs of steps from before the curvature has changed would hide the change.
            precondition = self._product if start is self.precondition else start
            check = KNOWN if self.precondition is not None and self.correlations else UNKNOWN
        product = hessian_product(point.x)
        newton = newton_step(product, point.grad, precondition, max_products=max_products, **check._asdict())
        return Decrement(newton, point.x, precondition, self.hidden_gap, exact)

    def _product(self, rows: Array) -> Array:
        """Return the estimate of the inverse Hessian times each of `rows`, (m, n)."""
        start = self.precondition or (lambda x: x)
        if not len(self.pairs):
            return start(rows)
        return namespace(rows=rows).stack([self.pairs.product(rows[i, :], start) for i in range(rows.shape[0])])


def minimize(
    value_and_grad: ValueAndGrad,
    params: Array,
    *,
    tol: float = 1e-4,
    max_iter: int = 1000,
    memory: int = 10,
    noise: Callable[[Array], float] | None = None,
    rough: Evaluation | None = None,
    precondition: Preconditioner | None = None,
    hessian_product: HessianProduct | None = None,
    hidden_gap: HiddenGap | None = None,
    exact_inverse: Callable[[Array], Preconditioner | None] | None = None,
    renewed: Callable[[Array, Preconditioner | None], Preconditioner | None] | None = None,
    due: Due | None = None,
    correlations: bool = True,
    observe: Callable[[Iterate], object] | None = None,
) -> Solution:
    """Minimise a smooth function from `params`.

    Parameters
    ----------
    value_and_grad, params, tol, max_iter, noise, rough, observe : as for `descent.descend`
    memory : int, default 10
        How many pairs of steps and gradient differences describe the curvature; 2 * memory vectors are kept.
    precondition : callable, optional
        Takes arrays (m, n) to a symmetric positive definite estimate of the inverse Hessian times each row, from
        which the recursion starts; the identity, scaled, by default.
    hessian_product : callable, optional
        Takes parameters to the function that takes a direction to the Hessian there times it. With it, the estimate
        of the gap that ends the solve is that of a Newton step; without, that of the recursion.
    hidden_gap : callable, optional
        As for `newton_cg.Decrement`.
    exact_inverse : callable, optional
        Takes parameters to the inverse Hessian there, as a `precondition`, or to None where it costs more than
        conjugate gradients do.
    renewed : callable, optional
        Takes parameters and the `precondition` in use to one that conjugate gradients can trust there.
    due : callable, optional
        Called with the estimated gap, and that at which the solve will end, after each step; returns what makes
        another `precondition` at given parameters, with which the recursion starts afresh, or None to go on.
    correlations : bool, default True
        Whether `precondition` knows those of the parameters, and not their scales alone. If not, or without it, the
        estimate of the gap takes 50 products with the Hessian at least.

    Returns
    -------
    Solution
    """
    method = _LBFGS(memory, precondition, hessian_product, hidden_gap, exact_inverse, renewed, due, correlations)
    return descend(
        method, value_and_grad, params, tol=tol, max_iter=max_iter, noise=noise, rough=rough, observe=observe
    )
