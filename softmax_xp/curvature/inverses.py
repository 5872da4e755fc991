"""Inverses of positive semidefinite matrices, a ridge added: by LAPACK on the host, by products on any other device."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.linalg import get_lapack_funcs, lapack

from softmax_xp.arrays import Array, is_numpy, namespace, to_numpy
from softmax_xp.backend import backend_of
from softmax_xp.kernels.workspace import Workspace

# Columns up to which another device leaves an inverse to the host, as its products would be small ones. A guess, not
# measured on a GPU.
ON_HOST = 128
PANEL = 384  # columns of a large matrix that are factorised at a time


def inverses(matrices: Array, ridge: float, workspace: Workspace) -> Array:
    """Return the inverses of positive semidefinite matrices, with a ridge on their diagonals.

    That of a large matrix [[P, Q], [Q', R]] on another device than the host is made of those of P and of its Schur
    complement R - Q' P^-1 Q, which have half its size.

    Parameters
    ----------
    matrices : array of shape (k, n, n), float64
    ridge : float, positive
        Where rounding has left one of them without a Cholesky factor even so, it gets more.
    workspace : Workspace
        Shares out what the host does.
    """
    n = matrices.shape[1]
    if is_numpy(matrices):
        return _on_host(matrices, ridge, workspace)
    if n <= ON_HOST:
        return backend_of(matrices).asarray(_on_host(to_numpy(matrices), ridge, workspace))
    first, second = slice(n // 2), slice(n // 2, n)
    Q = matrices[:, first, second]
    of_P = inverses(matrices[:, first, first], ridge, workspace)
    W = of_P @ Q
    of_complement = inverses(matrices[:, second, second] - Q.mT @ W, ridge, workspace)
    V = W @ of_complement
    out = namespace(matrices=matrices).empty_like(matrices)
    out[:, first, first] = of_P + V @ W.mT
    out[:, first, second] = -V
    out[:, second, first] = -V.mT
    out[:, second, second] = of_complement
    return out


def with_diagonal(matrices: Array, values: Array | float) -> Array:
    """Return matrices (..., n, n) with values (..., n), or a number, added on their diagonals."""
    xp, (*many, n, _) = namespace(matrices=matrices), matrices.shape
    out = xp.asarray(matrices, copy=True)
    flat = xp.reshape(out, (*many, n * n), copy=False)
    flat[..., :: n + 1] += values
    return out


def cholesky(matrix: np.ndarray, ridge: float) -> np.ndarray:
    """Return the lower Cholesky factor of matrix + ridge * I, for a symmetric matrix (n, n).

    The ridge grows 100-fold until the factorisation succeeds.
    """
    potrf = get_lapack_funcs("potrf", (matrix,))
    while True:
        shifted = np.array(matrix.T, order="F")  # symmetric: LAPACK's order without a transposition
        shifted[np.diag_indices_from(shifted)] += ridge
        factor, failed = potrf(shifted, lower=1, clean=1, overwrite_a=1)
        if not failed:
            return factor  # type: ignore[no-any-return]
        ridge *= 100.0


def factorise(matrix: np.ndarray, workspace: Workspace) -> bool:
    """Overwrite the lower triangle of a symmetric matrix by its Cholesky factor; return whether there is one.

    One panel of columns after the other, less what the panels before it contribute (Golub and Van Loan, Matrix
    Computations, 4th ed., 2013, section 4.2). LAPACK's own threads are as fast, but their number changes the result.

    Parameters
    ----------
    matrix : numpy.ndarray of shape (n, n), column by column
        What is above the diagonal is not read.
    workspace : Workspace
        Shares out the work.
    """
    potrf, trtri = get_lapack_funcs(("potrf", "trtri"), (matrix,))
    n, upper = len(matrix), matrix.T  # row by row

    def subtract(panel: slice, part: slice) -> None:
        upper[panel, part] -= upper[: panel.start, panel].T @ upper[: panel.start, part]

    def solve(panel: slice, inverse: np.ndarray, part: slice) -> None:
        upper[panel, part] = inverse @ upper[panel, part]

    for start in range(0, n, PANEL):
        panel = slice(start, min(start + PANEL, n))
        parts = [slice(i, min(i + PANEL, n)) for i in range(start, n, PANEL)]
        if start:
            workspace.map(partial(subtract, panel), parts)
        factor, failed = potrf(upper[panel, panel], lower=0)
        if failed:
            return False
        upper[panel, panel] = factor
        if len(parts) > 1:
            workspace.map(partial(solve, panel, trtri(factor)[0].T), parts[1:])
    return True


def _on_host(matrices: np.ndarray, ridge: float, workspace: Workspace) -> np.ndarray:
    out = np.empty(matrices.shape)

    def invert(k: int) -> None:
        lower = lapack.dpotri(cholesky(matrices[k], ridge), lower=1)[0]  # zeros are above, as in the factor
        np.add(lower, lower.T, out=out[k])
        out[k][np.diag_indices_from(lower)] /= 2.0

    workspace.map(invert, range(len(matrices)))
    return out
