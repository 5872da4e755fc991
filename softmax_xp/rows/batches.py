"""The order of the rows in a stochastic solve: mini-batches drawn without replacement, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from softmax_xp.arrays import Array
from softmax_xp.backend import Backend


def minibatches(backend: Backend, n_rows: int, batch_size: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield integer index arrays of mini-batches on the backend, without end.

    Each epoch is a new permutation of all rows, drawn on the host so that every backend sees the same, placed
    on the device in one transfer, and cut into batches of `batch_size` rows; the last may be shorter.
    """
    while True:
        order = backend.asarray(rng.permutation(n_rows))
        for start in range(0, n_rows, batch_size):
            yield order[start : min(start + batch_size, n_rows)]
