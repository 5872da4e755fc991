"""Newton's method, with each step found by conjugate gradients.

References
----------
Nocedal and Wright, Numerical Optimization, 2nd ed., 2006, doi:10.1007/978-0-387-40065-5: algorithms 5.3 and 7.1.
Strakos and Tichy, 2002, ETNA 13, 56-80: the error in the norm of the matrix, from the decrease of some iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from softmax_xp._arrays import Array, namespace, to_numpy
from softmax_xp.preconditioners import Preconditioner
from softmax_xp.solvers import Iterate, Solution
from softmax_xp.solvers.descent import Evaluation, descend
from softmax_xp.solvers.line_search import Point, ValueAndGrad, dot

SMALLEST = 1e-100  # curvature, and inverse of a length, that are numbers to go on with
MAX_PRODUCTS = 100  # for one step
MIN_PRODUCTS = 4
CLOSER_PRODUCTS = 20  # at least, for the gap by which the solve ends: with 4 it was up to ten times the estimate
ACCURACY = 0.1  # share of the decrease of the quadratic model that a step may miss

HessianProduct: TypeAlias = Callable[[Array], Callable[[Array], Array]]


def newton_step(
    product: Callable[[Array], Array],
    grad: Array,
    precondition: Preconditioner | None = None,
    accuracy: float = ACCURACY,
    max_products: int = MAX_PRODUCTS,
    min_products: int = MIN_PRODUCTS,
    negligible: float = 0.0,
) -> tuple[Array, float]:
    """Return s with H s = -g, and g' H^-1 g / 2, the decrease of the quadratic model along it.

    Parameters
    ----------
    product : callable
        Takes an array (n,) to the positive semidefinite H times it.
    grad : array of shape (n,)
    precondition : callable, optional
        Takes arrays (m, n) to an estimate of the inverse of H times each row.
    accuracy : float
        Ends when the second half of the iterations has added at most this share of the decrease.
    max_products : int
    min_products : int
        Iterations that are made whatever `accuracy` says, but three quarters of n at most, since what is left then may
        be rounding. Directions of which the gradient has little come late, the later the less the preconditioner knows
        of the curvature, and an early end would miss them.
    negligible : float
        Fewer are made once r' P r, with the residual r and the preconditioner P, has fallen to this share of what it
        was: a P that knows the curvature has no direction left then in which much is missing.

    Returns
    -------
    step : array of shape (n,)
    decrease : float
        What the iterations have brought, a bound from below, and what as many halves again would bring if each went
        on to bring the same share of the one before. Infinite, with the step -g, where H has no curvature along it.
    """
    xp = namespace(grad=grad)

    def preconditioned(r: Array) -> Array:
        return r if precondition is None else precondition(r[None, :])[0, :]

    step, residual = xp.zeros_like(grad), -grad
    z = preconditioned(residual)
    direction, rz = z, dot(xp, residual, z)
    decreases: list[float] = []
    least = min(min_products, max(MIN_PRODUCTS, 3 * grad.shape[0] // 4))
    enough, first_size = False, math.inf
    for _ in range(max_products):
        image = product(direction)
        size, curvature = to_numpy(xp.stack([rz, dot(xp, direction, image)])).tolist()
        if not (curvature > SMALLEST and 0.0 < size < curvature / SMALLEST):  # what is left is rounding
            break
        length = size / curvature
        first_size = first_size if decreases else size
        decreases.append(0.5 * length * size)
        step = step + length * direction
        enough = enough or len(decreases) >= least or size < negligible * first_size
        if enough and _halves(decreases)[1] <= accuracy * sum(decreases):
            break
        residual = residual - length * image
        z = preconditioned(residual)
        rz, before = dot(xp, residual, z), rz
        direction = z + xp.astype(rz / before, grad.dtype) * direction
    if not decreases and bool(xp.any(grad != 0.0)):  # no curvature to go by: the optimum may be anywhere
        return -grad, math.inf
    first, second = _halves(decreases)
    share = min(0.9, second / first) if first > 0.0 else 0.0
    return step, first + second + second * share / (1.0 - share)


def _halves(decreases: list[float]) -> tuple[float, float]:
    """Return what the first half of the iterations has brought, and the second."""
    half = len(decreases) - len(decreases) // 2
    return sum(decreases[:half]), sum(decreases[half:])


class _NewtonCG:
    """Directions by conjugate gradients on the Hessian itself."""

    def __init__(self, hessian_product: HessianProduct, precondition: Callable[[Array], Preconditioner] | None) -> None:
        self.hessian_product = hessian_product
        self.precondition = precondition
        self._gap = 0.0

    def direction(self, point: Point, target: float) -> tuple[Array, float, float | None]:
        precondition = None if self.precondition is None else self.precondition(point.x)
        product = self.hessian_product(point.x)
        step, self._gap = newton_step(product, point.grad, precondition)
        if self._gap <= target:
            step, self._gap = newton_step(product, point.grad, precondition, min_products=CLOSER_PRODUCTS)
        return step, self._gap, 1.0

    def stepped(self, before: Point, after: Point) -> None:
        pass

    def restarted(self) -> bool:
        return False

    def gap(self, point: Point) -> float:
        return self._gap


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
    observe: Callable[[Iterate], object] | None = None,
) -> Solution:
    """Minimise a convex function from `params`.

    Parameters
    ----------
    value_and_grad, params, tol, max_iter, noise, rough, observe : as for `descent.descend`
    hessian_product : callable
        Takes parameters to the function that takes a direction to the Hessian there times it.
    precondition : callable, optional
        Takes parameters to an estimate of the inverse Hessian, which takes arrays (m, n) to its product with each row.

    Returns
    -------
    Solution
    """
    method = _NewtonCG(hessian_product, precondition)
    return descend(
        method, value_and_grad, params, tol=tol, max_iter=max_iter, noise=noise, rough=rough, observe=observe
    )
