"""Timing that can be compared, and where it was taken."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from threadpoolctl import threadpool_info

import softmax_xp

PACKAGES = ("numpy", "scipy", "scikit-learn", "scikit-learn-intelex", "torch", "jax", "jaxlib")
SETTINGS = re.compile(r"(OPENBLAS|OMP|MKL|BLIS|XLA)_")  # variables that choose the threads and kernels of libraries
LOAD_AT_START = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
# The threads of OpenBLAS and OpenMP spin for up to 0.1 s after their work, and would do so on the next one's cores.
PAUSE = 0.2
MIN_SECONDS = 0.25  # that a turn lasts, unless MAX_CALLS fill it
MAX_CALLS = 100


def cores() -> int:
    """Return how many cores this process may use: affinity and container limits are respected."""
    return int(joblib.cpu_count())


def settle() -> None:
    """Wait until the threads of what ran last have gone to sleep."""
    time.sleep(PAUSE)


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, step: Callable[[str], None] = lambda name: None
) -> dict[str, list[float]]:
    """Return the seconds of every call of every case, taken in rounds so that all see the same noise.

    Each case is called once to warm up. In a round each in turn is called once more, which wakes its threads as the
    calls before it do in a solve, and then timed until MIN_SECONDS or MAX_CALLS are full. `step` is told the name of
    each case before its turn.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for call in cases.values():
        call()
    for _ in range(rounds):
        for name, call in cases.items():
            step(name)
            settle()
            call()
            taken: list[float] = []
            while sum(taken) < MIN_SECONDS and len(taken) < MAX_CALLS:
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
            times[name] += taken
    return times


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent p of seconds ~ size^p: the least-squares slope on log-log axes."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def environment() -> dict[str, Any]:
    """Return the machine, the versions, and the thread pools that are loaded now."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": cores(),
        "settings": {name: value for name, value in sorted(os.environ.items()) if SETTINGS.match(name)},
        "system": platform.platform(),
        "load_at_start": LOAD_AT_START,
        "python": platform.python_version(),
        "versions": {"softmax_xp": softmax_xp.__version__, **{name: _version(name) for name in PACKAGES}},
        "thread_pools": [
            {key: pool.get(key) for key in ("internal_api", "prefix", "version", "architecture", "num_threads")}
            for pool in threadpool_info()
        ],
    }


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
