"""Newton's method, with each step found by conjugate gradients.

References
----------
Nocedal and Wright, Numerical Optimization, 2nd ed., 2006, doi:10.1007/978-0-387-40065-5: algorithms 5.3 and 7.1.
Strakos and Tichy, 2002, ETNA 13, 56-80: the error in the norm of the matrix, from the decrease of some iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from softmax_xp.arrays import Array, namespace, to_numpy
from softmax_xp.curvature.estimates import Preconditioner
from softmax_xp.curvature.hidden_gap import TRUSTED_CHANGE
from softmax_xp.solvers import Callback, State, solve
from softmax_xp.solvers.descent import Descent, Evaluation
from softmax_xp.solvers.line_search import Point, ValueAndGrad, dot

SMALLEST = 1e-100  # curvature, and inverse of a length, that are numbers to go on with
SOLVED = 1e-7  # ratio of a residual to the first one, from which the residual of a singular system is rounding
MAX_PRODUCTS = 100  # for one step
MIN_PRODUCTS = 4
ACCURACY = 0.1  # share of the decrease of the quadratic model that a step may miss
UNSETTLED = (
    0.5  # ratio of the decrease by the second half of the iterations to that by the first: above, the rest is unknown
)
KNOWN_TO = 10.0  # ratio of the bound of a gap to the Newton decrement, above which the gap is unknown
# Share of the objective from which a gap is that small, and the share of the decrease that conjugate gradients may miss
# then. With ACCURACY the coefficients of standardised digits at tol=1e-8 were 1e-6 from the optimum, with this 6e-9.
CLOSE_GAP, CLOSE_ACCURACY = 1e-8, 1e-3
MISSED = 0.1  # share of the decrement that conjugate gradients may miss unnoticed. A guess
CURVATURE_CHANGE = math.exp(TRUSTED_CHANGE)  # factor by which rows that are trusted change their curvature at most

HessianProduct: TypeAlias = Callable[[Array], Callable[[Array], Array]]
HiddenGap: TypeAlias = Callable[[Array, Array], tuple[float, float]]


class Check(NamedTuple):
    """When conjugate gradients that check a gap have seen enough: what `newton_step` takes by these names."""

    accuracy: float
    min_products: int
    negligible: float

    def for_target(self, target: float, value: float) -> Check:
        """Return the check of a gap of at most `target`, of an objective of `value`.

        A Newton step leaves the error squared, and what conjugate gradients have missed. Where `target` is small, the
        second would be the larger one.
        """
        close = target < CLOSE_GAP * abs(value)
        return Check(CLOSE_ACCURACY, self.min_products, 0.0) if close else self


# Of the gap by which Newton's method ends: with 4 products it was up to ten times the estimate.
CLOSER = Check(ACCURACY, 20, 0.0)
# Where the preconditioner is the inverse Hessian itself, but for rounding.
EXACT = Check(ACCURACY, 3, 0.0)


class NewtonStep(NamedTuple):
    """A solution s of H s = -g, and what is known of it.

    Attributes
    ----------
    step : array of shape (n,)
    decrease : float
        By how much the quadratic model falls along the step: a lower bound of g' H^-1 g / 2.
    remainder : float
        An estimate of what the step has missed of g' H^-1 g / 2; infinite where conjugate gradients were still far
        from their end, or H has no curvature along g.
    """

    step: Array
    decrease: float
    remainder: float

    @property
    def gap(self) -> float:
        """The Newton decrement, g' H^-1 g / 2."""
        return self.decrease + self.remainder


def newton_step(
    product: Callable[[Array], Array],
    grad: Array,
    precondition: Preconditioner | None = None,
    accuracy: float = ACCURACY,
    max_products: int = MAX_PRODUCTS,
    min_products: int = MIN_PRODUCTS,
    negligible: float = 0.0,
    convex: bool = True,
) -> NewtonStep:
    """Solve H s = -g by preconditioned conjugate gradients.

    Parameters
    ----------
    product : callable
        Takes an array (n,) to the positive semidefinite H times it.
    grad : array of shape (n,)
    precondition : callable, optional
        Takes arrays (m, n) to an estimate of the inverse of H times each row.
    accuracy : float
        The iterations end when their second half has added at most this share of the decrease.
    max_products : int
    min_products : int
        The least number of iterations whatever `accuracy` says, but three quarters of n at most, since later ones may
        be rounding. Directions of which the gradient has little come late, the later the less the preconditioner knows
        of the curvature, and an early end would miss them.
    negligible : float
        Fewer iterations suffice once r' P r, with the residual r and the preconditioner P, has fallen to this share of
        its first value.
    convex : bool
        Whether H is known to have no negative curvature. Otherwise, where conjugate gradients meet one, the step ends
        and what it has missed is unknown.

    Returns
    -------
    NewtonStep
    """
    xp = namespace(grad=grad)

    def preconditioned(r: Array) -> Array:
        return r if precondition is None else precondition(r[None, :])[0, :]

    step, residual = xp.zeros_like(grad), -grad
    z = preconditioned(residual)
    direction, rz = z, dot(xp, residual, z)
    decreases: list[float] = []
    least = min(min_products, max(MIN_PRODUCTS, 3 * grad.shape[0] // 4))
    enough, settled, first_size = False, False, math.inf
    for _ in range(max_products):
        image = product(direction)
        size, curvature = to_numpy(xp.stack([rz, dot(xp, direction, image)])).tolist()
        if decreases and size <= SOLVED**2 * first_size:
            return NewtonStep(step, sum(decreases), size / first_size * sum(decreases))
        if not (curvature > SMALLEST and 0.0 < size < curvature / SMALLEST):
            if not convex and curvature < 0.0:
                return NewtonStep(step if decreases else z, sum(decreases), math.inf)
            settled = True
            break
        length = size / curvature
        first_size = first_size if decreases else size
        decreases.append(0.5 * length * size)
        step = step + length * direction
        enough = enough or len(decreases) >= least or size < negligible * first_size
        if enough and _halves(decreases)[1] <= accuracy * sum(decreases):
            settled = True
            break
        residual = residual - length * image
        z = preconditioned(residual)
        rz, before = dot(xp, residual, z), rz
        direction = z + xp.astype(rz / before, grad.dtype) * direction
    if not decreases:  # without curvature along the gradient the optimum may be anywhere
        return NewtonStep(-grad, 0.0, math.inf if bool(xp.any(grad != 0.0)) else 0.0)
    first, second = _halves(decreases)
    share = second / first if first > 0.0 else 0.0
    known = settled or share <= UNSETTLED
    share = min(0.9, share)
    return NewtonStep(step, first + second, second * share / (1.0 - share) if known else math.inf)


def _halves(decreases: list[float]) -> tuple[float, float]:
    """Return the sums over the first half of the iterations and over the second."""
    half = len(decreases) - len(decreases) // 2
    return sum(decreases[:half]), sum(decreases[half:])


class _NewtonCG:
    """Directions by conjugate gradients on the Hessian itself."""

    ends_by_newton_step = True

    def __init__(
        self,
        hessian_product: HessianProduct,
        precondition: Callable[[Array], Preconditioner] | None,
        hidden_gap: HiddenGap | None,
        exact_inverse: Callable[[Array], Preconditioner | None] | None,
        convex: bool,
    ) -> None:
        self.hessian_product = hessian_product
        self.precondition = precondition
        self.hidden_gap = hidden_gap
        self.exact_inverse = exact_inverse
        self.convex = convex
        self._last: tuple[Point, Decrement] | None = None
        self._closing = False  # whether the last step may be the last one of the solve

    def direction(self, point: Point, target: float) -> tuple[Array, float, float | None]:
        precondition = None if self.precondition is None else self.precondition(point.x)
        product = self.hessian_product(point.x)
        newton = newton_step(product, point.grad, precondition, convex=self.convex)
        exact, self._closing = None, newton.gap <= target
        if self._closing:
            exact = None if self.exact_inverse is None else self.exact_inverse(point.x)
            check = (CLOSER if exact is None else EXACT).for_target(target, point.value)
            precondition = exact or precondition
            newton = newton_step(product, point.grad, precondition, convex=self.convex, **check._asdict())
        self._last = point, Decrement(newton, point.x, precondition, self.hidden_gap, exact is not None)
        return newton.step, self._last[1].gap if self._closing else newton.gap, 1.0

    def stepped(self, before: Point, after: Point) -> None:
        pass

    def restarted(self) -> bool:
        return False

    def gap(self, point: Point) -> float:
        if self._last is None or self._last[0] is not point:
            return math.inf
        return self._last[1].known_gap

    def gap_after(self, before: Point, after: Point) -> float:
        if self._last is None or self._last[0] is not before or not self._closing:
            return math.inf
        return self._last[1].gap_after(after)


class Decrement:
    """The gap to the optimum by a Newton step: the Newton decrement, and a bound of what it leaves out.

    Parameters
    ----------
    newton : NewtonStep
    params : array of shape (n,)
        Where it starts.
    precondition : callable, optional
        The preconditioner that it was found with.
    hidden_gap : callable, optional
        Takes parameters and a Newton step to a bound of the gap beyond the decrement, at both ends of the step. Without
        it the quadratic model is taken to be right everywhere.
    exact : bool
        Whether the preconditioner is the inverse Hessian where the step starts.
    missed : float
        Share of the decrement that conjugate gradients may have missed unnoticed.
    """

    def __init__(
        self,
        newton: NewtonStep,
        params: Array,
        precondition: Preconditioner | None,
        hidden_gap: HiddenGap | None,
        exact: bool = False,
        missed: float = MISSED,
    ) -> None:
        self.newton = newton
        self.exact = exact
        self.missed = missed
        self.precondition = precondition
        self._params = params
        self._hidden_gap = hidden_gap
        self._hidden: tuple[float, float] | None = None

    @property
    def hidden(self) -> tuple[float, float]:
        """The bound of the gap beyond the decrement, at both ends of the step. It is formed when first needed."""
        if self._hidden is None:
            self._hidden = 0.0, 0.0
            if self._hidden_gap is not None and math.isfinite(self.newton.gap) and self.newton.decrease > 0.0:
                self._hidden = self._hidden_gap(self._params, self.newton.step)
        return self._hidden

    @property
    def gap(self) -> float:
        """A bound of the gap where the step starts."""
        return self.newton.gap + self.hidden[0]

    @property
    def known_gap(self) -> float:
        """The same bound, or infinity where it is more than KNOWN_TO times the decrement: the gap is unknown then."""
        return self.gap if self.gap <= KNOWN_TO * self.newton.gap else math.inf

    def gap_after(self, point: Point) -> float:
        """Return the gap at the end of the step, or infinity if `point` is not its end.

        If the preconditioner is the inverse Hessian, the gap follows from the gradient at the end. Otherwise the gap is
        taken to be the share `missed` of the decrement at least, because conjugate gradients miss directions whose
        curvature the preconditioner overestimates.
        """
        grad, xp = point.grad, namespace(grad=point.grad)
        if point.step != 1.0:
            return math.inf
        if not self.exact or self.precondition is None:
            return max(self.missed * self.newton.gap, self.newton.remainder) + self.hidden[1]
        left = 0.5 * float(dot(xp, grad, self.precondition(grad[None, :])[0, :]))
        return max(left, self.newton.remainder) * CURVATURE_CHANGE + self.hidden[1]


def minimize(
    value_and_grad: ValueAndGrad,
    params: Array,
    hessian_product: HessianProduct,
    *,
    tol: float = 1e-4,
    max_iter: int = 1000,
    noise: Callable[[Array], float] | None = None,
    rough: Evaluation | None = None,
    precondition: Callable[[Array], Preconditioner] | None = None,
    hidden_gap: HiddenGap | None = None,
    exact_inverse: Callable[[Array], Preconditioner | None] | None = None,
    convex: bool = True,
    callbacks: Sequence[Callback] = (),
) -> State:
    """Minimise a function from `params`; the minimum is a local one where it is not convex.

    Parameters
    ----------
    value_and_grad, tol, max_iter, noise, rough : as for `descent.Descent`
    params : array of shape (n,), real floating
        Where to start; not modified.
    hessian_product : callable
        Takes parameters to the function that takes a direction to the Hessian there times it.
    precondition : callable, optional
        Takes parameters to an estimate of the inverse Hessian, which takes arrays (m, n) to its product with each row.
    hidden_gap : callable, optional
        As for `Decrement`.
    exact_inverse : callable, optional
        Takes parameters to the inverse Hessian there, as a `precondition`, or to None where it costs more than
        conjugate gradients do. It finds the gap by which the solve ends.
    convex : bool, default True
        As for `newton_step`.
    callbacks : as for `solve`

    Returns
    -------
    State
    """
    method = _NewtonCG(hessian_product, precondition, hidden_gap, exact_inverse, convex)
    descent = Descent(method, value_and_grad, tol=tol, max_iter=max_iter, noise=noise, rough=rough)
    return solve(descent, params, callbacks)
