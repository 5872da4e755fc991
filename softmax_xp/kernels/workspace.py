"""What one solve keeps between its evaluations: worker threads, and buffers that are allocated once."""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

T = TypeVar("T")


@cache
def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity, its container and its parent's wishes."""
    from joblib import cpu_count

    return int(cpu_count())


class Workspace(AbstractContextManager[None]):
    """Threads that share out the row blocks of an evaluation, and the buffers they work in.

    Threads are started when they are first needed, and end with the workspace. Two evaluations must not run in
    one workspace at the same time.

    Parameters
    ----------
    workers : int, optional
        Number of threads; by default as many as the process may use cores.
    precision : str, default "float32"
        Of matrix products, one of the provider's PRECISIONS; the first of them means that of the data.
    """

    def __init__(self, workers: int | None = None, precision: str = "float32") -> None:
        self.workers = usable_cores() if workers is None else workers
        self.precision = precision
        self._pool: ThreadPoolExecutor | None = None
        self._buffers: dict[tuple[str, int], np.ndarray] = {}

    def __enter__(self) -> None:
        """Keep BLAS on one thread until the end of the solve: its threads go on spinning after each product."""
        BLAS_ON_ONE_THREAD.__enter__()

    def __exit__(self, *error: object) -> None:
        BLAS_ON_ONE_THREAD.__exit__()

    def map(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        """Call `function` on each item, on the calling thread and the others, with BLAS on one thread in each.

        The others see the context of the caller: numpy.errstate is part of it.
        """
        items = list(items)
        waiting = enumerate(items)  # one step of a list's iterator is one step for all threads

        def work() -> None:
            try:
                while (item := next(waiting, None)) is not None:
                    function(item[1])
            finally:
                deque(waiting, maxlen=0)  # an error, or Ctrl-C, ends the work of all

        n_others = min(self.workers, len(items)) - 1
        with BLAS_ON_ONE_THREAD:
            if n_others > 0 and self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers - 1, thread_name_prefix="softmax_xp")
            others = [self._pool.submit(copy_context().run, work) for _ in range(n_others)] if self._pool else []
            try:
                work()
            finally:
                if others:  # to wait for none takes time too
                    wait(others)
            for other in others:
                other.result()

    def buffer(self, name: str, shape: tuple[int, ...], dtype: Any, *, shared: bool = False) -> np.ndarray:
        """Return an uninitialised array of this thread (or, if `shared`, of all threads) that keeps its memory."""
        key = name, 0 if shared else threading.get_ident()
        size = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._buffers.get(key)
        if held is None or held.nbytes < size:
            self._buffers[key] = held = np.empty(size, dtype=np.uint8)
        array: np.ndarray = held[:size].view(dtype).reshape(shape)
        return array


class _BlasOnOneThread(AbstractContextManager[None]):
    """Keeps the BLAS of this process on one thread while any evaluation is running.

    The number is a global of the BLAS library: with evaluations in several threads, the first that comes sets it
    and the last that goes restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._controller: ThreadpoolController | None = None
        self._limiter: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._controller = _blas("scipy.linalg" in sys.modules)
                self._let_go()
                self._limiter = self._controller.limit(limits=1)
                self._let_go()

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._let_go()
                self._limiter.restore_original_limits()
                self._let_go()

    def _let_go(self) -> None:
        """Let any thread set the number: threadpoolctl gives it to the first that does, and ignores the others."""
        for library in self._controller.lib_controllers if self._controller else ():
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread(force=True)


@cache
def blas_architectures() -> frozenset[str]:
    """Return the names of the processors whose kernels OpenBLAS runs, if it is OpenBLAS that NumPy calls."""
    libraries = _blas("scipy.linalg" in sys.modules).lib_controllers
    return frozenset(library.architecture for library in libraries if library.internal_api == "openblas")


@cache
def _blas(with_scipy: bool) -> ThreadpoolController:
    """Return what controls the BLAS libraries that are loaded: SciPy brings its own."""
    return ThreadpoolController().select(user_api="blas")


BLAS_ON_ONE_THREAD = _BlasOnOneThread()
