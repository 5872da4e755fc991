"""Limited-memory BFGS, from any preconditioner, with Newton's own estimate of the gap to the optimum at the end.

Written in the array API: the vectors stay on their device, and what comes to the host are a few scalars.

References
----------
Byrd, Nocedal and Schnabel, 1994, doi:10.1007/BF01582063: the compact form of the inverse, theorem 2.2.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from softmax_xp.arrays import Array, accumulation_dtype, device_of, namespace, to_numpy
from softmax_xp.curvature.estimates import Preconditioner
from softmax_xp.solvers import Callback, State, solve
from softmax_xp.solvers.descent import Descent, Evaluation
from softmax_xp.solvers.line_search import Point, ValueAndGrad, dot
from softmax_xp.solvers.newton_cg import EXACT, MISSED, Check, Decrement, HessianProduct, HiddenGap, newton_step

# Where the curvature is known in advance. With 4 products the gap of one in eight nearly separated problems was more
# than ten times its estimate, up to 28 times; with these it was at most eight times, of 675 random problems.
KNOWN = Check(0.4, 12, 1e-2)
# Where only the pairs tell of it: they have seen little of directions in which features are small, or nearly constant.
UNKNOWN = Check(0.1, 50, 0.0)
# Share of the decrement that they may miss then. On features of low rank, with C=100, the gap after the step was 1.1 to
# 5.6 times this.
MISSED_UNKNOWN = 0.5
CHECK_PRODUCTS = 100
LAST_PRODUCTS = 20  # where the solve has to end: what is wanted then is how far it is, not whether it may end
SMALLEST = 1e-100  # curvature along a step whose inverse, and square, are still numbers
MOST_UNDERSTATED = 1e3  # ratio of gaps that is remembered: of pairs that are mostly rounding it may be any number
CANCELLED = 1e-6  # ratio of y' P y to g' P g up to which P y, as a difference of two P g, has few digits. A guess
RECENT = 4  # steps whose gain is held against the gap expected before them

# Called after each step with the value, its estimated gap, and the gap at which the solve ends; returns what makes a
# better preconditioner at given parameters, or None.
Due: TypeAlias = Callable[[float, float, float], Callable[[Array], Preconditioner] | None]


class Pairs:
    """The last pairs of a step s and the difference y of the gradients at its ends, and the estimate that they make.

    With these as the rows of S and Y, from oldest to last, both divided by the root of s'y, R the upper triangle
    of S Y', and H0 a first estimate of the inverse Hessian, the one of BFGS is

        H = (I - S' R^-T Y) H0 (I - Y' R^-1 S) + S' R^-T R^-1 S,

    which is what the recursion over pairs computes, in as many operations for twenty pairs as for one: on a GPU each of
    them is a launch. H0 is a preconditioner P divided by c = y' P y of the last pair. The rows of Z = Y P are kept, and
    those of Y are not. With G = Y P Y' and a = R^-1 S v,

        H v = P v / c - Z' a / c + S' R^-T (a - (Z v - G a) / c).

    R^-1 gains a column with each pair, and loses a row and a column with the one that is forgotten. The pairs are in no
    order: a new one takes the place of the oldest.

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

    def append(self, s: Array, y: Array, preconditioned: Array, curvature: float) -> None:
        """Add a pair (n,), (n,) with P y (n,), of which `curvature` = s'y is positive."""
        xp, device = namespace(s=s), device_of(s)
        wide = accumulation_dtype(xp, device)
        if self._arrays is None:
            rows = xp.empty((2 * self.memory, s.shape[0]), dtype=wide, device=device)
            square = (self.memory, self.memory)
            self._arrays = rows, *(xp.empty(square, dtype=wide, device=device) for _ in range(2))
        at, root = self._n_seen % self.memory, math.sqrt(curvature)
        self._n_seen += 1
        rows, inverse, gram = self._known()
        rows[2 * at, :] = xp.astype(s, wide, copy=False) / root
        rows[2 * at + 1, :] = xp.astype(preconditioned, wide, copy=False) / root
        products = xp.reshape(rows @ (xp.astype(y, wide, copy=False) / root), (-1, 2))  # S y and Z y
        inverse[at, :] = 0.0
        inverse[:, at] = 0.0
        inverse[:, at] = -(inverse @ products[:, 0])
        inverse[at, at] = 1.0
        gram[at, :] = products[:, 1]
        gram[:, at] = products[:, 1]

    def product(self, v: Array, preconditioned: Array) -> Array:
        """Return H v (n,) of v (n,) and P v (n,). No number comes to the host."""
        xp = namespace(v=v)
        rows, inverse, gram = self._known()
        last = (self._n_seen - 1) % self.memory
        curvature = gram[last, last]
        products = xp.reshape(rows @ xp.astype(v, rows.dtype, copy=False), (-1, 2))  # S v and Z v
        a = inverse @ products[:, 0]
        s_factors = (a - (products[:, 1] - gram @ a) / curvature) @ inverse
        factors = xp.reshape(xp.stack([s_factors, a / -curvature], axis=1), (-1,))
        return xp.astype(xp.astype(preconditioned, rows.dtype, copy=False) / curvature + factors @ rows, v.dtype)

    def _known(self) -> tuple[Array, Array, Array]:
        """Return views of the known part of: the rows of S and Z, one after the other in turn; R^-1; and G."""
        rows, inverse, gram = self._arrays  # type: ignore[misc]
        n = len(self)
        return rows[: 2 * n, :], inverse[:n, :n], gram[:n, :n]


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
        convex: bool = True,
    ) -> None:
        self.precondition = precondition
        self.correlations = correlations
        self.convex = convex
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
        self._preconditioned: tuple[Array, Array] | None = None  # the last gradient, and the preconditioner times it
        self._stepped = False

    def direction(self, point: Point, target: float) -> tuple[Array, float, float | None]:
        xp = namespace(grad=point.grad)
        direction = -self._estimated(point.grad, self._preconditioned_grad(point))
        decrement = -0.5 * float(dot(xp, direction, point.grad))
        if decrement < 0.0:  # rounding has made an estimate that is not positive definite
            return direction, math.inf, 1.0
        self._recent.append((point.value, decrement))
        value, expected = self._recent[0]  # what has been gained since then was missing then
        gap = self._gap = decrement * max(self.understated, (value - point.value) / expected if expected > 0.0 else 1.0)
        make = self.due(point.value, gap, target) if self.due is not None and self._stepped else None
        self._stepped = False
        if make is not None:
            self.pairs.clear()
            self.precondition = None  # its memory is free before the next one is made
            self.precondition = make(point.x)
            self._preconditioned = None
            self.understated = 1.0
            self._recent.clear()
            return self.direction(point, target)
        if gap <= target and self.hessian_product is not None and decrement > 0.0:
            checked = self._check(self.hessian_product, point, CHECK_PRODUCTS, target)
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
        grad_before, grad_after = (self._preconditioned_grad(point) for point in (before, after))
        preconditioned = grad_after - grad_before  # P y
        scalars = dot(xp, s, y), dot(xp, y, preconditioned), dot(xp, after.grad, grad_after)
        curvature, y_size, grad_size = to_numpy(xp.stack(scalars)).tolist()
        if curvature > SMALLEST:
            if not y_size > CANCELLED * grad_size:  # also where it is NaN
                preconditioned = self._apply_preconditioner(y[None, :])[0, :]
            self.pairs.append(s, y, preconditioned, curvature)
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

    def _check(
        self, hessian_product: HessianProduct, point: Point, max_products: int, target: float = math.inf
    ) -> Decrement:
        """Return the decrement at a point by a Newton step: by the exact inverse where that is had cheaply.

        A gap of `target` or less would end the solve.
        """
        precondition = None if self.exact_inverse is None else self.exact_inverse(point.x)
        exact = precondition is not None
        if exact:
            check = EXACT
        else:
            start = self.precondition if self.renewed is None else self.renewed(point.x, self.precondition)
            # Pairs of steps from before the curvature has changed would hide the change.
            precondition = self._product if start is self.precondition else start
            check = KNOWN if self.precondition is not None and self.correlations else UNKNOWN
        product, of_target = hessian_product(point.x), check.for_target(target, point.value)
        newton = newton_step(
            product, point.grad, precondition, max_products=max_products, convex=self.convex, **of_target._asdict()
        )
        missed = MISSED_UNKNOWN if check is UNKNOWN else MISSED
        return Decrement(newton, point.x, precondition, self.hidden_gap, exact, missed)

    def _apply_preconditioner(self, rows: Array) -> Array:
        """Return the preconditioner times each of `rows`, (m, n)."""
        return rows if self.precondition is None else self.precondition(rows)

    def _preconditioned_grad(self, point: Point) -> Array:
        """Return the preconditioner times the gradient at a point (n,). The last one is kept."""
        if self._preconditioned is None or self._preconditioned[0] is not point.grad:
            self._preconditioned = point.grad, self._apply_preconditioner(point.grad[None, :])[0, :]
        return self._preconditioned[1]

    def _product(self, rows: Array) -> Array:
        """Return the estimate of the inverse Hessian times each of `rows`, (m, n)."""
        started = self._apply_preconditioner(rows)
        return namespace(rows=rows).stack([self._estimated(rows[i, :], started[i, :]) for i in range(rows.shape[0])])

    def _estimated(self, v: Array, preconditioned: Array) -> Array:
        """Return the estimate of the inverse Hessian times v (n,), given the preconditioner times v (n,)."""
        return self.pairs.product(v, preconditioned) if len(self.pairs) else preconditioned


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
    convex: bool = True,
    callbacks: Sequence[Callback] = (),
) -> State:
    """Minimise a smooth function from `params`.

    Parameters
    ----------
    value_and_grad, tol, max_iter, noise, rough : as for `descent.Descent`
    params : array of shape (n,), real floating
        Where to start; not modified.
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
        Called with the value, its estimated gap, and the gap at which the solve will end, after each step; returns what
        makes another `precondition` at given parameters, with which the recursion starts afresh, or None to go on.
    correlations : bool, default True
        Whether `precondition` knows those of the parameters, and not their scales alone. If not, or without it, the
        estimate of the gap takes 50 products with the Hessian at least.
    convex : bool, default True
        As for `newton_cg.newton_step`.
    callbacks : as for `solve`

    Returns
    -------
    State
    """
    method = _LBFGS(
        memory, precondition, hessian_product, hidden_gap, exact_inverse, renewed, due, correlations, convex
    )
    descent = Descent(method, value_and_grad, tol=tol, max_iter=max_iter, noise=noise, rough=rough)
    return solve(descent, params, callbacks)
