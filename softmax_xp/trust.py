"""How far the quadratic model of a LinearObjective can be trusted, and what gap it may hide.

A row's loss is self-concordant: a step that changes its logits by at most r changes its curvature by a factor of e^r at
most (Bach, 2010; Sun and Tran-Dinh, 2019). Rows that a Newton step changes by more than TRUSTED_CHANGE are not trusted.
Convexity bounds them from below by their tangents, that is, without any curvature. With H = T + U, where U is what the
rows that are not trusted have in the Hessian, s the Newton step and v = U s, the gap is then at most

    g' T^-1 g / 2 = (s' H s + s' v + v' T^-1 v) / 2,

of which the first term is the Newton decrement. The others are what is hidden. An outlier that fixes a coefficient, for
example, hides what the other rows would gain with another coefficient, and no gradient shows it. At the end of the step
the gradient is what the untrusted rows' gradient d there differs from their quadratic model's, and d' T^-1 d / 2 is
hidden.

References
----------
Bach, 2010, doi:10.1214/09-EJS521, and Sun and Tran-Dinh, 2019, doi:10.1007/s10107-018-1282-4.
"""

from __future__ import annotations

import numpy as np

from softmax_xp._arrays import Array, accumulation_dtype, block_bytes, bytes_of, dtype_name, row_blocks, to_numpy
from softmax_xp.objective import LinearObjective

TRUSTED_CHANGE = 0.3  # of a logit against the mean logit of its row
LEAST_CURVATURE = (
    0.001  # of T in any direction, as a share of that of a usual feature in it, beside the penalty; a guess
)
SUMS = 8  # parts of the rows over which v and d are summed
SMALLEST, SMALLEST_SIZE = 1e-300, 1e-30  # their inverses are finite in float64, and in float32


def hidden_gap(objective: LinearObjective, params: Array, step: Array) -> tuple[float, float]:
    """Return what the gap may be more than the Newton decrement, at the start of a Newton step and at its end.

    Rounding counts. With e_i a bound of the rounding errors of row i's logits, and w_i = s_i max_k p_ik (1 - p_ik), it
    hides at most sum_i w_i e_i^2 / 2 / sum_i s_i. The residual p - t is rounded too, by which a row that alone holds a
    direction may be wrong by any amount.

    Parameters
    ----------
    objective : LinearObjective
    params, step : arrays of shape (n_params,)
    """
    backend, X = objective.backend, objective.X
    xp, dtype = backend.xp, X.dtype
    wide = accumulation_dtype(xp, backend.device)
    n, n_features = X.shape
    usual = objective.usual_size()
    (coef, intercept), (along, shift) = (objective.split(xp.astype(x, dtype, copy=False)) for x in (params, step))
    both, n_coef = xp.concat([coef, along], axis=0), coef.shape[0]
    eps, softmax = float(xp.finfo(dtype).eps), backend.kernels(dtype).softmax
    # Sums of |x_if|, of these by how large they usually are, and of their products with the largest coefficients: the
    # first is at least ||x_i||.
    ones, per_usual = np.ones(n_features), 1.0 / np.maximum(usual, SMALLEST_SIZE)
    factors = [*(backend.asarray(x, dtype_name(dtype)) for x in (ones, per_usual)), eps * xp.max(xp.abs(coef), axis=0)]
    of_sizes = xp.stack(factors, axis=1)  # (D, 3)
    sizes = xp.empty((n, 3), dtype=dtype, device=backend.device)
    w = xp.empty(n, dtype=dtype, device=backend.device)
    parts = list(row_blocks(n, 1, -(-n // SUMS)))
    pulls = xp.zeros((len(parts), 2 * n_coef, n_features), dtype=wide, device=backend.device)  # v and d
    of_intercepts = xp.zeros((len(parts), 2 * n_coef), dtype=wide, device=backend.device)
    row_bytes = (32 * (n_coef + 1) + 4 * n_features) * bytes_of(xp, dtype)

    def weights(part: slice) -> Array:
        return xp.ones_like(w[part]) if objective.sample_weight is None else objective.sample_weight[part]

    def add(i: int) -> None:
        for block in row_blocks(parts[i].stop - parts[i].start, row_bytes, block_bytes(backend.device)):
            part = slice(parts[i].start + block.start, parts[i].start + block.stop)
            rows = X[part, :]
            products = both @ rows.T
            z, u = products[:n_coef, :], products[n_coef:, :]  # (K, m)
            if intercept is not None and shift is not None:
                z, u = z + intercept[:, None], u + shift[:, None]
            if n_coef == 1:
                z, u = (xp.concat([xp.zeros_like(x), x], axis=0) for x in (z, u))
            p = softmax(z, 0)
            moved = u - xp.sum(p * u, axis=0)
            sizes[part, :] = xp.abs(rows) @ of_sizes
            weight = weights(part)
            w[part] = xp.max(p * (1.0 - p), axis=0) * weight
            change = xp.max(xp.abs(moved), axis=0) + sizes[part, 2]
            untrusted = xp.where(change > TRUSTED_CHANGE, weight, xp.zeros_like(change))
            if bool(xp.any(untrusted > 0.0)):
                model = (p * moved)[-n_coef:, :]
                pull = xp.concat([model, (softmax(z + u, 0) - p)[-n_coef:, :] - model], axis=0) * untrusted
                pulls[i, :, :] += xp.astype(pull @ rows, wide, copy=False)
                of_intercepts[i, :] += xp.astype(xp.sum(pull, axis=1), wide, copy=False)

    objective.workspace.map(add, range(len(parts)))
    uncertain, penalty = float(xp.sum(w, dtype=wide)), objective.penalty.strength * objective.total_weight
    v, d = (xp.sum(pulls, axis=0)[part, :] for part in (slice(0, n_coef), slice(n_coef, None)))
    curvature = backend.asarray(penalty + LEAST_CURVATURE * uncertain * usual**2 + SMALLEST, dtype_name(wide))
    s, s_intercept = objective.split(xp.astype(step, wide, copy=False))
    start = 0.5 * xp.sum(v * s) + 0.5 * xp.sum(v * v / curvature)
    end = 0.5 * xp.sum(d * d / curvature)
    if s_intercept is not None:
        v, d = (xp.sum(of_intercepts, axis=0)[part] for part in (slice(0, n_coef), slice(n_coef, None)))
        of_intercept = LEAST_CURVATURE * uncertain + SMALLEST
        start = start + 0.5 * xp.sum(v * s_intercept) + 0.5 * xp.sum(v * v) / of_intercept
        end = end + 0.5 * xp.sum(d * d) / of_intercept
    by_rounding = xp.zeros_like(start)
    for part in row_blocks(n, 256, block_bytes(backend.device)):
        size, ratio, rounding, own_w = (
            xp.astype(x, wide) for x in (sizes[part, 0], sizes[part, 1], sizes[part, 2], w[part])
        )
        # What T has along x_i, for each ||x_i||^4, and the error of the residual: eps, or all of it.
        own = LEAST_CURVATURE * uncertain / (ratio**2 + SMALLEST) + penalty / (size**2 + SMALLEST)
        error = xp.minimum(eps * xp.astype(weights(part), wide), own_w)
        alone = xp.where(own_w > own, error**2 / (own + SMALLEST), xp.zeros_like(own))
        by_rounding = by_rounding + 0.5 * xp.sum(own_w * rounding**2 + alone)
    start, end = (to_numpy(xp.stack([start, end]) + by_rounding) / objective.total_weight).tolist()
    return start, end
