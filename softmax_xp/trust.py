"""How far the quadratic model of a LinearObjective holds along a step, and what rounding hides from it.

A row's loss is self-concordant: a step that changes the differences of its logits by at most r changes its curvature by
a factor of e^r at most. So the model holds along a step if r is small in every row that counts.

References
----------
Bach, 2010, doi:10.1214/09-EJS521, and Sun and Tran-Dinh, 2019, doi:10.1007/s10107-018-1282-4.
"""

from __future__ import annotations

import numpy as np

from softmax_xp._arrays import Array, accumulation_dtype, block_bytes, bytes_of, dtype_name, row_blocks, to_numpy
from softmax_xp.objective import LinearObjective

HELD = 0.01  # share of the penalty's curvature from which that of a row counts; a guess
HELD_AT_ALL = 1e-10  # the same of the curvature of all rows, where there is no penalty; a guess
SMALLEST, SMALLEST_SIZE = 1e-300, 1e-30  # their inverses are finite in float64, and in float32


def change_along(objective: LinearObjective, params: Array, step: Array) -> tuple[float, float]:
    """Return the largest change of a logit along a step from `params`, and the gap that rounding hides there.

    The change is that against the row's mean logit. Rounding errors count as changes: of a logit, and of the residual
    p - t in a row that alone holds a direction. Only rows and classes count that can hold a direction at one end of
    the step: those whose curvature along x_i, s_i p_ik (1 - p_ik) ||x_i||^2, is more than the share HELD of the
    penalty's, or without one the share HELD_AT_ALL of what uncertain rows have in all. The others may change by any
    amount and make no difference to the Hessian.

    With w_i = s_i max_k p_ik (1 - p_ik), and e_i a bound of the rounding errors of row i's logits, the gap that
    rounding hides is sum_i w_i e_i^2 / 2 / sum_i s_i at most.

    Parameters
    ----------
    objective : LinearObjective
    params, step : arrays of shape (n_params,)
    """
    backend, X = objective.backend, objective.X
    xp, dtype = backend.xp, X.dtype
    n, n_features = X.shape
    usual = objective.usual_size()
    strength = objective.penalty.strength * objective.total_weight
    least = (HELD * strength) ** 0.5
    least = least or (HELD_AT_ALL * objective.total_weight * n_features) ** 0.5 * float(np.median(usual))
    coef, intercept = objective.split(xp.astype(params, dtype, copy=False))
    along, shift = objective.split(xp.astype(step, dtype, copy=False))
    largest_coef = xp.max(xp.abs(coef), axis=0)  # of each feature
    per_usual = backend.asarray(1.0 / np.maximum(usual, SMALLEST_SIZE), dtype_name(dtype))
    eps, softmax = float(xp.finfo(dtype).eps), backend.kernels(dtype).softmax
    size, ratio, rounding, w, change = (xp.empty(n, dtype=dtype, device=backend.device) for _ in range(5))
    counted = xp.empty(n, dtype=xp.bool, device=backend.device)
    weight = xp.ones_like(w) if objective.sample_weight is None else objective.sample_weight

    def look(part: slice) -> None:
        rows = X[part, :]
        z, u = rows @ coef.T, rows @ along.T  # (m, K)
        if intercept is not None:
            z, u = z + intercept, u + shift
        if coef.shape[0] == 1:
            z, u = (xp.concat([xp.zeros_like(x), x], axis=1) for x in (z, u))
        before, after = softmax(z, 1), softmax(z + u, 1)
        sizes = xp.abs(rows)
        length = n_features**0.5 * xp.max(sizes, axis=1)  # at least ||x_i||
        length = xp.maximum(length, xp.ones_like(length)) if objective.fit_intercept else length
        held = xp.maximum(before * (1.0 - before), after * (1.0 - after)) * weight[part][:, None]
        counts = xp.sqrt(held) * length[:, None] > least
        moved = xp.where(counts, xp.abs(u - xp.sum(before * u, axis=1, keepdims=True)), xp.zeros_like(u))
        change[part], counted[part] = xp.max(moved, axis=1), xp.any(counts, axis=1)
        w[part], size[part] = xp.max(held, axis=1), length
        ratio[part] = n_features**0.5 * xp.max(sizes * per_usual, axis=1)
        rounding[part] = eps * (sizes @ largest_coef)

    row_bytes = 32 * (coef.shape[0] + 1) * bytes_of(xp, dtype)
    objective.workspace.map(look, row_blocks(n, row_bytes, block_bytes(backend.device)))
    wide = accumulation_dtype(xp, backend.device)
    size, ratio, rounding, w, change, weight = (xp.astype(x, wide) for x in (size, ratio, rounding, w, change, weight))
    # What the other rows and the penalty have in the Hessian along x_i, at least, for each ||x_i||^4.
    others = xp.sum(w) / (ratio**2 + SMALLEST) + strength / (size**2 + SMALLEST)
    # The residual p - t is wrong by eps, or by itself, which moves the logits of a row that alone holds a direction.
    moved = rounding + xp.minimum(eps * weight, w) / (w + others + SMALLEST)
    change = xp.where(counted, xp.maximum(change, moved), change)
    largest, squares = to_numpy(xp.stack([xp.max(change), xp.sum(w * rounding**2)])).tolist()
    return largest, 0.5 * squares / objective.total_weight
