"""What one solve keeps between its evaluations: worker threads, and buffers that are allocated once."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import cache
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import LibController, ThreadpoolController

T = TypeVar("T")

# Read at each fit: whoever sets one after the BLAS has been loaded means the threads of this library too.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """Return how many threads an evaluation takes by default.

    The smallest of: the cores that this process may use (affinity, container, LOKY_MAX_CPU_COUNT), the number in each
    of THREAD_VARIABLES, and the number of threads that the BLAS has outside of evaluations, which
    `threadpoolctl.threadpool_limits` sets.
    """
    from joblib import cpu_count

    numbers = [re.match(r"\s*\+?(\d+)\s*(,|$)", os.environ.get(name, "")) for name in THREAD_VARIABLES]
    limits = [int(number[1]) for number in numbers if number]  # of "4,2" the first is that of the outermost level
    return max(1, min([int(cpu_count()), *(limit for limit in limits if limit > 0), *BLAS_ON_ONE_THREAD.limits()]))


class Workspace(AbstractContextManager[None]):
    """Threads that share out the row blocks of an evaluation, and the buffers they work in.

    Threads are started when they are first needed, and end with the workspace. An evaluation goes on with fewer where
    the system starts no more. Two evaluations must not run in one workspace at the same time.

    Parameters
    ----------
    workers : int, optional
        Number of threads; by default `usable_cores()`, asked when it is first needed.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.asked = self._workers = workers
        self._threads: list[ThreadPoolExecutor] = []  # of one thread each: an executor of many may start only some
        self._max_threads = sys.maxsize  # how many the system starts, once it has refused one
        self._running: list[Future[None]] = []
        self._process = os.getpid()
        self._buffers: dict[tuple[str, int], np.ndarray] = {}
        self._thread = threading.local()  # its `in_task` says whether the thread runs a task

    @property
    def workers(self) -> int:
        """The number of threads, the calling one included."""
        # Not a cached_property: its lock, which all objects of a class share, may be held where the process forks.
        if self._workers is None:
            self._workers = usable_cores()
        return self._workers

    def __enter__(self) -> None:
        """Keep BLAS on one thread until the end of the solve: its threads go on spinning after each product."""
        BLAS_ON_ONE_THREAD.__enter__()

    def __exit__(self, *error: object) -> None:
        BLAS_ON_ONE_THREAD.__exit__()

    def map(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        """Call `function` on each item, on the calling thread and the others, with BLAS on one thread in each.

        The others see the context of the caller: numpy.errstate is part of it. A task that calls this runs the items
        itself.
        """
        if getattr(self._thread, "in_task", False):  # to wait for the others would be to wait for itself
            for item in items:
                function(item)
            return
        items = list(items)
        waiting = enumerate(items)  # one step of a list's iterator is one step for all threads

        def work() -> None:
            self._thread.in_task = True
            try:
                while (item := next(waiting, None)) is not None:
                    function(item[1])
            finally:
                self._thread.in_task = False
                deque(waiting, maxlen=0)  # an error, or Ctrl-C, ends the work of all

        with BLAS_ON_ONE_THREAD:
            if os.getpid() != self._process:  # a fork copies no threads
                self._threads, self._running, self._process = [], [], os.getpid()
            if self._running:  # a second Ctrl-C has ended the wait for them
                wait(self._running)
            self._running = []
            try:
                if len(items) > 1:
                    self._start(work, min(self.workers, len(items)) - 1)
                work()
            finally:
                if self._running:  # to wait for none takes time too
                    wait(self._running)
            done, self._running = self._running, []
            for other in done:
                other.result()

    def _start(self, work: Callable[[], None], n_others: int) -> None:
        """Let `n_others` threads work, or as many as the system starts."""
        try:
            for i in range(min(n_others, self._max_threads)):
                if i == len(self._threads):
                    self._threads.append(ThreadPoolExecutor(1, thread_name_prefix="softmax_xp"))
                self._running.append(self._threads[i].submit(copy_context().run, work))
        except RuntimeError:  # "can't start new thread", or the interpreter is about to end
            self._max_threads = len(self._running)
            del self._threads[self._max_threads :]

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
    and the last that goes restores it. So does a process that is forked in an evaluation of another thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may fork
        self._inside = 0
        self._thread = threading.local()  # its `inside` counts the evaluations of each thread
        self._outside: list[tuple[LibController, int]] = []  # the number of threads that each library goes back to
        if hasattr(os, "register_at_fork"):  # no other thread may hold the lock when it is copied
            os.register_at_fork(
                before=lambda: self._lock.acquire(),
                after_in_parent=lambda: self._lock.release(),
                after_in_child=self._after_fork,
            )

    def __enter__(self) -> None:
        with self._lock:
            if not self._outside:
                self._outside = _blas_threads()
                self._set([(library, 1) for library, _ in self._outside])
            self._inside += 1
            self._thread.inside = getattr(self._thread, "inside", 0) + 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            self._thread.inside -= 1
            if self._inside == 0:
                self._restore()

    def limits(self) -> list[int]:
        """Return the numbers of threads, outside of evaluations, of the libraries that somebody has limited."""
        with self._lock:
            return [number for library, number in self._outside or _blas_threads() if _is_limit(library, number)]

    def _restore(self) -> None:
        self._set(self._outside)
        self._outside = []

    def _set(self, numbers: list[tuple[LibController, int]]) -> None:
        for library, number in numbers:
            # threadpoolctl lets the first thread that sets a number set it again, and ignores the others.
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread(force=True)
            library.set_num_threads(number)
            if hasattr(library, "clear_controlling_thread"):
                library.clear_controlling_thread(force=True)

    def _after_fork(self) -> None:
        """Make a new lock, and forget the evaluations of the threads that the child has not got."""
        self._lock = threading.RLock()
        self._inside = getattr(self._thread, "inside", 0)
        if self._inside == 0:
            self._restore()


@cache
def blas_architectures() -> frozenset[str]:
    """Return the names of the processors whose kernels OpenBLAS runs, if it is OpenBLAS that NumPy calls."""
    libraries = _blas("scipy.linalg" in sys.modules).lib_controllers
    return frozenset(library.architecture for library in libraries if library.internal_api == "openblas")


@cache
def _blas(with_scipy: bool) -> ThreadpoolController:
    """Return what controls the BLAS libraries that are loaded: SciPy brings its own."""
    return ThreadpoolController().select(user_api="blas")


def _blas_threads() -> list[tuple[LibController, int]]:
    """Return the BLAS libraries whose number of threads can be set, and that number."""
    libraries = _blas("scipy.linalg" in sys.modules).lib_controllers
    return [(library, library.num_threads) for library in libraries if library.num_threads]


def _is_limit(library: LibController, n_threads: int) -> bool:
    """Return whether the number of threads of a BLAS says how many this process should use.

    BLIS has one unless it is told otherwise, a sequential build has one whatever it is told, and an OpenBLAS has at
    most as many as it was built for.
    """
    if getattr(library, "threading_layer", "") in ("disabled", "sequential"):
        return False
    if library.internal_api == "openblas":
        return n_threads < _openblas_max_threads(library)
    return n_threads > 1 or library.internal_api == "mkl"


def _openblas_max_threads(library: LibController) -> float:
    for prefix, suffix in itertools.product(("", "scipy_"), ("", "64_", "_64")):
        config = getattr(library.dynlib, f"{prefix}openblas_get_config{suffix}", None)
        if config is not None:
            config.restype = ctypes.c_char_p
            found = re.search(rb"MAX_THREADS=(\d+)", config() or b"")
            return float(found[1]) if found else math.inf
    return math.inf


BLAS_ON_ONE_THREAD = _BlasOnOneThread()
