"""Workspace: every task once, errors and Ctrl-C come out, and BLAS is left as it was found."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.linalg  # noqa: F401 - loads a BLAS of its own, before anything here counts its threads
from scipy.linalg import lapack
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

import softmax_xp as sx
from softmax_xp.kernels import workspace as module
from softmax_xp.kernels.workspace import BLAS_ON_ONE_THREAD, Workspace, usable_cores

PATIENCE = 60  # seconds after which a test gives up on another thread; none takes any part of that


def blas_threads():
    """The numbers of threads of the BLAS libraries in this process."""
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture
def many_threads():
    """BLAS on three threads, whatever the machine: what there is to be found again."""
    controller = ThreadpoolController().select(user_api="blas")
    limiter = controller.limit(limits=3)
    for library in controller.lib_controllers:
        if hasattr(library, "clear_controlling_thread"):  # threadpoolctl 3.8: else no other thread may set the number
            library.clear_controlling_thread(force=True)
    if not any(n > 1 for n in blas_threads()):
        pytest.skip("this BLAS has no threads to take away")
    yield blas_threads()
    limiter.restore_original_limits()


@pytest.mark.parametrize("workers", [1, 2, 3, None])
@pytest.mark.parametrize("n", [0, 1, 2, 500])
def test_map_runs_every_item_once(workers, n):
    workspace, seen, threads = Workspace(workers), [], set()
    assert workspace.workers == (workers or usable_cores())

    def task(item):
        seen.append(item)
        threads.add(threading.get_ident())

    for _ in range(3):  # with the threads that it has by then
        workspace.map(task, iter(range(n)))
        assert sorted(seen) == list(range(n))
        assert len(threads) <= workspace.workers
        seen.clear()
        threads.clear()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_may_map_too(workers):
    workspace, seen = Workspace(workers), []
    with ThreadPoolExecutor(1) as thread:
        outer = thread.submit(workspace.map, lambda i: workspace.map(lambda j: seen.append((i, j)), range(3)), range(4))
        outer.result(PATIENCE)
    assert sorted(seen) == [(i, j) for i in range(4) for j in range(3)]
    workspace.map(seen.append, range(5))  # after which it goes on as before
    assert sorted(seen[12:]) == list(range(5))


def test_map_runs_as_many_items_at_once_as_there_are_workers():
    meeting = threading.Barrier(3, timeout=PATIENCE)
    Workspace(3).map(lambda item: meeting.wait(), range(6))  # a broken barrier raises


def test_one_worker_starts_no_thread():
    workspace, here = Workspace(1), threading.get_ident()
    workspace.map(lambda item: np.testing.assert_equal(threading.get_ident(), here), range(10))
    assert not workspace._threads


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["the calling thread", "another thread"])
def test_an_error_ends_the_work_and_comes_out(error, where):
    workspace, caller, done = Workspace(3), threading.current_thread(), []

    def task(item):
        if (threading.current_thread() is caller) == (where == "the calling thread"):
            raise error("from a task")
        time.sleep(0.01)  # the others are still at the beginning when the error ends the work
        done.append(item)

    with pytest.raises(error, match="from a task"):
        workspace.map(task, range(1000))
    assert len(done) < 500
    workspace.map(done.append, range(1000, 2000))  # as if nothing had been
    assert sorted(item for item in done if item >= 1000) == list(range(1000, 2000))


@pytest.mark.parametrize("workers", [1, 2])
def test_blas_has_one_thread_in_a_task(many_threads, workers):
    inside = []
    Workspace(workers).map(lambda item: inside.append(blas_threads()), range(4))
    assert inside == [[1] * len(many_threads)] * 4
    assert blas_threads() == many_threads


def test_blas_is_restored_after_an_error(many_threads):
    workspace = Workspace(2)

    def fail(item):
        raise ValueError("from a task")

    for _ in range(3):
        with pytest.raises(ValueError, match="from a task"):
            workspace.map(fail, range(5))
        assert blas_threads() == many_threads
    with pytest.raises(KeyboardInterrupt), workspace:
        raise KeyboardInterrupt
    assert blas_threads() == many_threads


def test_blas_keeps_one_thread_between_the_evaluations_of_a_solve(many_threads):
    workspace, one = Workspace(2), [1] * len(many_threads)
    with workspace:
        assert blas_threads() == one
        workspace.map(lambda item: None, range(5))
        assert blas_threads() == one
    assert blas_threads() == many_threads


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_blas_is_restored_by_the_last_of_several_evaluations(many_threads, first_to_end):
    """Whichever ends first, BLAS stays on one thread for the other."""
    begun, may_end = ([threading.Event() for _ in range(2)] for _ in range(2))
    one = [1] * len(many_threads)

    def evaluate(k):
        def task(item):
            begun[k].set()
            assert may_end[k].wait(PATIENCE)

        Workspace(1).map(task, [0])

    with ThreadPoolExecutor(2) as threads:
        try:
            running = [threads.submit(evaluate, k) for k in range(2)]
            assert all(event.wait(PATIENCE) for event in begun)
            assert blas_threads() == one
            may_end[first_to_end].set()
            running[first_to_end].result(PATIENCE)
            assert blas_threads() == one
            may_end[1 - first_to_end].set()
            running[1 - first_to_end].result(PATIENCE)
            assert blas_threads() == many_threads
        finally:
            for event in may_end:
                event.set()


LATE = """
import numpy as np
from threadpoolctl import threadpool_info
import softmax_xp
from softmax_xp.kernels.workspace import Workspace

softmax_xp.softmax_loss(np.zeros((3, 2)), np.ones((4, 3)), np.array([0, 1, 0, 1]), 0.1)
import scipy.linalg
Workspace(1).map(lambda item: print(*(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")), [0])
"""


def test_a_blas_that_is_loaded_after_the_first_evaluation_has_one_thread_too(python):
    """SciPy brings its own, which inverts the preconditioners in tasks."""
    command, environment = python
    environment = {**environment, "OPENBLAS_NUM_THREADS": "3"}
    done = subprocess.run([*command, "-c", LATE], env=environment, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"1"}


def test_blas_has_one_thread_in_every_thread_that_evaluates(many_threads):
    """Also once another has evaluated, which threadpoolctl may take for the only one to set the number."""
    Workspace(1).map(lambda item: None, [0])
    inside = []
    with ThreadPoolExecutor(1) as thread:
        thread.submit(Workspace(1).map, lambda item: inside.append(blas_threads()), [0]).result(PATIENCE)
    assert inside == [[1] * len(many_threads)]
    assert blas_threads() == many_threads


def test_a_fit_calls_blas_on_one_thread_before_its_first_evaluation_too(many_threads, monkeypatch, rng):
    """The threads of OpenBLAS go on spinning after a product, and would take the cores from the evaluations."""
    seen, rank = [], lapack.dpstrf

    def spied(*args, **options):
        seen.append(blas_threads())
        return rank(*args, **options)

    monkeypatch.setattr(lapack, "dpstrf", spied)
    X = rng.normal(size=(900, 100))
    sx.SoftmaxClassifier(device="cpu").fit(X, rng.integers(0, 3, size=900))
    assert seen == [[1] * len(many_threads)]
    assert blas_threads() == many_threads


def test_fits_in_several_threads_are_those_of_one(many_threads, rng):
    X, y = rng.normal(size=(3000, 20)), rng.integers(0, 4, size=3000)
    models = [sx.SoftmaxClassifier(C=C, device="cpu", workers=2) for C in (0.01, 0.1, 1.0, 10.0)]
    alone = [model.fit(X, y).coef_ for model in models]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda model: model.fit(X, y).coef_, models))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)
    assert blas_threads() == many_threads


def test_tasks_see_the_floating_point_errors_that_the_caller_ignores():
    seen = []
    with np.errstate(divide="ignore", over="raise"):
        Workspace(3).map(lambda item: seen.append((np.geterr()["divide"], np.geterr()["over"])), range(50))
    assert set(seen) == {("ignore", "raise")}


def test_buffers_are_reused():
    workspace = Workspace(1)
    first = workspace.buffer("a", (10, 3), np.float64)
    assert (first.shape, first.dtype, first.flags.c_contiguous) == ((10, 3), np.float64, True)
    for shape, dtype in (((10, 3), np.float64), ((3, 4), np.float64), ((60,), np.float32), ((0, 5), np.float32)):
        again = workspace.buffer("a", shape, dtype)
        assert (again.shape, again.dtype) == (shape, dtype)
        assert again.__array_interface__["data"] == first.__array_interface__["data"]
    larger = workspace.buffer("a", (1000,), np.float64)
    assert not np.shares_memory(larger, first)
    assert np.shares_memory(workspace.buffer("a", (10, 3), np.float64), larger)
    assert not np.shares_memory(workspace.buffer("b", (10, 3), np.float64), larger)


@pytest.mark.parametrize("shared", [False, True])
def test_a_buffer_is_that_of_its_thread_unless_it_is_shared(shared):
    workspace, meeting = Workspace(2), threading.Barrier(2, timeout=PATIENCE)
    own, buffers = workspace.buffer("a", (8,), np.float64, shared=shared), []

    def task(item):
        meeting.wait()  # one item for each thread
        buffers.append(workspace.buffer("a", (8,), np.float64, shared=shared))

    workspace.map(task, range(2))
    assert sum(np.shares_memory(own, other) for other in buffers) == (2 if shared else 1)
    assert np.shares_memory(*buffers) == shared


def test_threads_end_with_their_workspace():
    workspace, meeting = Workspace(3), threading.Barrier(3, timeout=PATIENCE)
    threads = []

    def task(item):
        meeting.wait()
        threads.append(threading.current_thread())

    workspace.map(task, range(3))
    others = [thread for thread in threads if thread is not threading.current_thread()]
    assert len(others) == 2
    assert all(thread.name.startswith("softmax_xp") and thread.is_alive() for thread in others)
    del workspace
    gc.collect()
    for thread in others:
        thread.join(PATIENCE)
        assert not thread.is_alive()


# --- Threads that cannot be started, and numbers of threads ---


@pytest.mark.parametrize("started", [0, 1, 2])
def test_the_work_is_done_by_the_threads_that_start(monkeypatch, started):
    start, n_starts = threading.Thread.start, []

    def limited(thread):
        n_starts.append(thread)
        if len(n_starts) > started:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    workspace, meeting = Workspace(8), threading.Barrier(started + 1, timeout=PATIENCE)
    for _ in range(3):
        seen = []

        def task(item, seen=seen):
            if item < started + 1:
                meeting.wait()  # all threads that there are work
            seen.append(item)

        workspace.map(task, range(100))
        assert sorted(seen) == list(range(100))
    assert len(n_starts) == started + 1  # a refusal is not asked for again


def test_a_fit_without_threads_is_that_of_many(monkeypatch, rng):
    X, y = rng.normal(size=(30_000, 20)), rng.integers(0, 4, size=30_000)
    expected = sx.SoftmaxClassifier(device="cpu", workers=2).fit(X, y).coef_

    def refused(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    np.testing.assert_array_equal(sx.SoftmaxClassifier(device="cpu", workers=2).fit(X, y).coef_, expected)


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine of eight cores, and a BLAS that uses them."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    for name in module.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with threadpool_limits(8, user_api="blas"):
        if set(blas_threads()) != {8}:
            pytest.skip("this BLAS has no threads to limit")
        assert usable_cores() == 8
        yield


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"])
@pytest.mark.parametrize(
    ("value", "expected"), [("3", 3), ("1", 1), (" 4,2", 4), ("100", 8), ("0", 8), ("", 8), ("many", 8), ("-1", 8)]
)
def test_variables_limit_the_workers(monkeypatch, eight_cores, name, value, expected):
    monkeypatch.setenv(name, value)
    assert Workspace().workers == expected
    assert Workspace(5).workers == 5  # what is asked for


def test_threadpool_limits_of_the_caller_limit_the_workers(eight_cores):
    with threadpool_limits(2):
        assert Workspace().workers == 2
        with BLAS_ON_ONE_THREAD:  # which is no limit of the caller
            assert Workspace().workers == 2
        assert Workspace(5).workers == 5
    assert Workspace().workers == 8


def test_an_openblas_built_for_few_threads_limits_nothing(monkeypatch, eight_cores):
    monkeypatch.setattr(module, "_openblas_max_threads", lambda library: 2)
    with threadpool_limits(2, user_api="blas"):
        openblas = all(pool["internal_api"] == "openblas" for pool in threadpool_info() if pool["user_api"] == "blas")
        assert Workspace().workers == (8 if openblas else 2)


def test_openblas_tells_for_how_many_threads_it_was_built():
    libraries = ThreadpoolController().select(internal_api="openblas").lib_controllers
    if not libraries:
        pytest.skip("no OpenBLAS")
    assert all(2 <= module._openblas_max_threads(library) <= 4096 for library in libraries)


INNER = """
from joblib import Parallel, delayed, parallel_config

def workers():
    from softmax_xp.kernels.workspace import Workspace
    return Workspace().workers

with parallel_config("loky", inner_max_num_threads=1):
    print(*Parallel(n_jobs=2)(delayed(workers)() for _ in range(2)))
"""


def test_the_inner_limit_of_joblib_limits_the_workers(python):
    command, environment = python
    done = subprocess.run([*command, "-c", INNER], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


# --- Forks ---


def in_a_child(function):
    """Call `function` in a fork of this process; return the status, which is 0 where it returned a true value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(PATIENCE)  # ends a child that hangs
            status = 0 if function() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are POSIX")
# Where JAX is installed and another test has imported it, it warns of every fork.
jax_warns = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@needs_fork
@jax_warns
def test_a_fork_beside_an_evaluation_has_threads_and_blas_of_its_own(many_threads):
    begun, may_end = threading.Event(), threading.Event()
    used = Workspace(3)
    used.map(lambda item: None, range(3))  # its threads are not copied

    def child():
        meeting, inside = threading.Barrier(3, timeout=PATIENCE), []

        def task(item):
            meeting.wait()
            inside.append(blas_threads())

        before = blas_threads()
        used.map(task, range(3))
        return (before, inside, blas_threads()) == (many_threads, [[1] * len(many_threads)] * 3, many_threads)

    def evaluation(item):
        begun.set()
        assert may_end.wait(PATIENCE)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(Workspace(1).map, evaluation, [0])
        try:
            assert begun.wait(PATIENCE)
            assert blas_threads() == [1] * len(many_threads)
            assert in_a_child(child) == 0
            assert blas_threads() == [1] * len(many_threads)  # the parent still evaluates
        finally:
            may_end.set()
        running.result(PATIENCE)
    assert blas_threads() == many_threads


@needs_fork
@jax_warns
def test_a_fork_waits_for_the_lock_of_another_thread(many_threads):
    held = threading.Event()

    def hold():
        with BLAS_ON_ONE_THREAD._lock:
            held.set()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(PATIENCE)
    status = in_a_child(lambda: Workspace(1).map(lambda item: None, [0]) is None and blas_threads() == many_threads)
    thread.join()
    assert status == 0
    with BLAS_ON_ONE_THREAD:  # the parent has the lock again
        assert blas_threads() == [1] * len(many_threads)


@needs_fork
@jax_warns
def test_a_fork_in_an_evaluation_of_its_own_thread_goes_on_with_it(many_threads):
    one = [1] * len(many_threads)

    def child():
        inside = blas_threads()
        workspace.map(lambda item: None, range(3))
        still = blas_threads()
        BLAS_ON_ONE_THREAD.__exit__()
        return (inside, still, blas_threads()) == (one, one, many_threads)

    workspace = Workspace(2)
    with workspace:
        workspace.map(lambda item: None, range(3))
        assert in_a_child(child) == 0
    assert blas_threads() == many_threads
