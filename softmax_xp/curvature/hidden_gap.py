"""A bound of the gap to the minimum that the quadratic model of a LinearObjective leaves out.

A row's loss is self-concordant: a step that changes its logits by at most r changes its curvature by a factor of e^r at
most (Bach, 2010; Sun and Tran-Dinh, 2019). Rows that a Newton step changes by more than TRUSTED_CHANGE are not trusted.
Convexity bounds them from below by their tangents, that is, without any curvature. With H = T + U, where U is what the
rows that are not trusted have in the Hessian, s the Newton step and v = U s, the gap is then at most

    g' T^-1 g / 2 = (s' H s + s' v + v' T^-1 v) / 2,

The first term is the Newton decrement. The sum of the others is called the hidden gap. For example, an outlier fixes a
coefficient; the other rows would gain by another value of it, but the gradient is zero.

For a loss that is not convex the tangents are no bound. With the positive part of the Hessian for T, the same formulas
then estimate what the quadratic model leaves out near a local minimum.

At the end of the step, let d be the gradient of the untrusted rows less the gradient of their quadratic model. The
quadratic model of all rows has no gradient there, so that the hidden gap is d' T^-1 d / 2.

References
----------
Bach, 2010, doi:10.1214/09-EJS521, and Sun and Tran-Dinh, 2019, doi:10.1007/s10107-018-1282-4.
"""

from __future__ import annotations

import numpy as np

from softmax_xp.arrays import (
    Array,
    accumulation_dtype,
    block_bytes,
    bytes_of,
    dtype_name,
    row_blocks,
    sum_parts,
    to_numpy,
)
from softmax_xp.kernels import reference
from softmax_xp.objective import LinearObjective

TRUSTED_CHANGE = 0.3  # of the difference between a logit and the mean logit of its row
# T has at least this share of the curvature that features of the usual size would give it, and the penalty. A guess.
LEAST_CURVATURE = 0.001
SMALLEST, SMALLEST_SIZE = 1e-300, 1e-30  # their inverses are finite in float64, and in float32


def hidden_gap(objective: LinearObjective, params: Array, step: Array) -> tuple[float, float]:
    """Return a bound of the hidden gap at the start of a Newton step, and one at its end.

    Both include the effect of rounding. With e_i a bound of the rounding errors of row i's logits, and
    w_i = s_i max_k p_ik (1 - p_ik), rounding of the logits hides at most sum_i w_i e_i^2 / 2 / sum_i s_i. Rounding of
    the residual p - t counts in rows that have more curvature along x_i than all other rows together.

    Parameters
    ----------
    objective : LinearObjective
    params, step : arrays of shape (n_params,)
    """
    backend, data = objective.backend, objective.rows
    xp, dtype = backend.xp, data.dtype
    wide = accumulation_dtype(xp, backend.device)
    n, n_features = data.n_rows, data.n_features
    usual = data.usual_size()
    (coef, intercept), (along, shift) = (objective.split(xp.astype(x, dtype, copy=False)) for x in (params, step))
    both, n_coef = xp.concat([coef, along], axis=0), coef.shape[0]
    eps, softmax = float(xp.finfo(dtype).eps), backend.kernels(dtype).softmax
    # Each row has three sums: of |x_if|, which is at least ||x_i||; of |x_if| over the usual size of feature f; and of
    # |x_if| times the largest coefficient of feature f, times eps, which bounds the rounding error of a logit.
    ones, per_usual = np.ones(n_features), 1.0 / np.maximum(usual, SMALLEST_SIZE)
    factors = [*(backend.asarray(x, dtype_name(dtype)) for x in (ones, per_usual)), eps * xp.max(xp.abs(coef), axis=0)]
    of_sizes = xp.stack(factors, axis=1)  # (D, 3)
    sizes = xp.empty((n, 3), dtype=dtype, device=backend.device)
    w = xp.empty(n, dtype=dtype, device=backend.device)
    parts = sum_parts(n, n_features * (2 * n_coef + 3))
    pulls = xp.zeros((len(parts), 2 * n_coef, n_features), dtype=wide, device=backend.device)  # v and d
    of_intercepts = xp.zeros((len(parts), 2 * n_coef), dtype=wide, device=backend.device)
    row_bytes = (64 * (n_coef + 1) + 2 * n_features) * bytes_of(xp, dtype)

    of_rows = objective.curvature_weight(params)  # for cross-entropy those of the rows
    is_cross_entropy, kernels = objective.row_pass.is_cross_entropy, backend.kernels(dtype)

    def weights(part: slice, given: Array | None) -> Array:
        return xp.ones_like(w[part]) if given is None else given[part]

    def changes(z: Array, u: Array, rows: Array, part: slice) -> tuple[Array, Array]:
        """Return how the gradients in the logits of rows change along u: by the Hessian, and in truth, (C, m)."""
        targets = xp.take(objective.targets[part, ...], rows, axis=0)
        targets = targets if targets.ndim == 1 else targets.T
        before, after = (
            kernels.cross_entropy_with_grad(x, targets, None, objective.row_pass, 0)[1] for x in (z, z + u)
        )
        return reference.curved(kernels.log_softmax(z, 0), u, targets, objective.row_pass, 0), after - before

    def add(i: int) -> None:
        for block in row_blocks(parts[i].stop - parts[i].start, row_bytes, block_bytes(backend.device)):
            part = slice(parts[i].start + block.start, parts[i].start + block.stop)
            rows = data.part(part)
            products = both @ rows.T
            z, u = products[:n_coef, :], products[n_coef:, :]  # (K, m)
            if intercept is not None and shift is not None:
                z, u = z + intercept[:, None], u + shift[:, None]
            if n_coef == 1:
                z, u = (xp.concat([xp.zeros_like(x), x], axis=0) for x in (z, u))
            z = z - xp.max(z, axis=0)
            e = xp.exp(z)
            total = xp.sum(e, axis=0)
            mean = xp.sum(e * u, axis=0) / total
            sizes[part, :] = xp.abs(rows) @ of_sizes
            weight = weights(part, of_rows)
            # The largest p (1 - p). It is not 1 / total - 1 / total^2, which rounds to zero where a row is certain.
            w[part] = xp.max(e * (total - e), axis=0) / total**2 * weight
            change = xp.maximum(xp.max(u, axis=0) - mean, mean - xp.min(u, axis=0)) + sizes[part, 2]
            (untrusted,) = xp.nonzero((change > TRUSTED_CHANGE) & (weight > 0.0))
            if untrusted.shape[0]:
                z, u, e = (xp.take(x, untrusted, axis=1) for x in (z, u, e))
                rows, total, mean, weight = (xp.take(x, untrusted, axis=0) for x in (rows, total, mean, weight))
                if is_cross_entropy:
                    p = e / total
                    model, change = p * (u - mean), softmax(z + u, 0) - p
                else:
                    model, change = changes(z, u, untrusted, part)
                    weight = xp.take(weights(part, data.sample_weight), untrusted, axis=0)
                pull = xp.concat([model[-n_coef:, :], (change - model)[-n_coef:, :]], axis=0) * weight
                pulls[i, :, :] += xp.astype(pull @ rows, wide, copy=False)
                of_intercepts[i, :] += xp.astype(xp.sum(pull, axis=1), wide, copy=False)

    data.workspace.map(add, range(len(parts)))
    uncertain, total = float(xp.sum(w, dtype=wide)), data.total_weight
    penalty = objective.penalty.diagonal(n_features) * total
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
        own = LEAST_CURVATURE * uncertain / (ratio**2 + SMALLEST) + objective.penalty.least * total / (
            size**2 + SMALLEST
        )
        error = xp.minimum(eps * xp.astype(weights(part, of_rows), wide), own_w)
        alone = xp.where(own_w > own, error**2 / (own + SMALLEST), xp.zeros_like(own))
        by_rounding = by_rounding + 0.5 * xp.sum(own_w * rounding**2 + alone)
    start, end = (to_numpy(xp.stack([start, end]) + by_rounding) / total).tolist()
    return start, end
