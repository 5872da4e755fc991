"""Timing that can be compared, and where it was taken."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from threadpoolctl import threadpool_info

import softmax_xp
from softmax_xp.backend import Backend, DeviceUnavailableError, select_backend

PACKAGES = (
    *("numpy", "scipy", "scikit-learn", "scikit-learn-intelex", "torch", "jax", "jaxlib"),
    *("cupy-cuda12x", "cupy-cuda13x", "ml-dtypes", "triton"),
)
# Variables that choose the threads, kernels and arrays of libraries.
SETTINGS = re.compile(r"(OPENBLAS|OMP|MKL|BLIS|XLA)_|CUPY_TF32|CUPY_ACCELERATORS|NVIDIA_TF32_OVERRIDE|SCIPY_ARRAY_API")
LOAD_AT_START = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
# The threads of OpenBLAS and OpenMP spin for up to 0.1 s after their work, and would do so on the next one's cores.
PAUSE = 0.2
MIN_SECONDS = 0.25  # that a turn lasts, unless MAX_CALLS fill it
MAX_CALLS = 100


@dataclass(frozen=True)
class Device:
    """Where a benchmark runs, and all that timing has to know of it: this one returns when its work is done.

    Attributes
    ----------
    name : "cpu" or "cuda"
    """

    name: str = "cpu"

    @cached_property
    def backend(self) -> Backend:
        """Its library; ends the command, with the reason, where it cannot be used."""
        try:
            return select_backend(self.name)
        except DeviceUnavailableError as error:
            raise SystemExit(str(error)) from None

    @property
    def suffix(self) -> str:
        """What the names of its results end with."""
        return "" if self.name == "cpu" else "-cuda"

    def synchronize(self) -> None:
        """Wait until all that was queued here, by any library, is done."""

    def settle(self) -> None:
        """Leave nothing behind of what ran last: wait until its threads have gone to sleep."""
        time.sleep(PAUSE)

    def seconds(self, call: Callable[[], object]) -> float:
        """Return how long a call takes until its work is done."""
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - start

    def seconds_of_work(self, call: Callable[[], object]) -> float:
        """Return how long the device itself is busy with a call."""
        return self.seconds(call)

    def memory(self) -> tuple[int, int] | None:
        """Return free and total bytes; None where caches and other programs blur them."""
        return None

    def describe(self) -> dict[str, Any] | None:
        """Return what the device is; the CPU is described with the machine."""
        return None


class Cuda(Device):
    """A GPU. CuPy and torch queue their work on one stream of it, the default one."""

    @cached_property
    def _cupy(self) -> Any:
        return import_module("cupy")

    def synchronize(self) -> None:  # noqa: D102
        self.backend.device.synchronize()

    def settle(self) -> None:
        """Leave nothing behind of what ran last: hand memory back that CuPy and torch keep for themselves."""
        self.synchronize()
        self._cupy.get_default_memory_pool().free_all_blocks()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()

    def seconds_of_work(self, call: Callable[[], object]) -> float:
        """Return how long the GPU is busy with a call, by its own clock.

        The call is queued behind another one, so that it never waits for Python.
        """
        start, stop = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        call()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(start, stop)) * 1e-3

    def memory(self) -> tuple[int, int]:  # noqa: D102
        free, total = self.backend.device.mem_info
        return int(free), int(total)

    def describe(self) -> dict[str, Any]:
        """Return model, memory, and the versions of driver, runtime and libraries that CuPy and torch have loaded."""
        runtime = self._cupy.cuda.runtime
        properties = runtime.getDeviceProperties(self.backend.device.id)
        torch = sys.modules.get("torch")
        return {
            "name": properties["name"].decode(),
            "compute_capability": self.backend.device.compute_capability,
            "memory_bytes": self.memory()[1],
            "l2_bytes": properties["l2CacheSize"],
            "multiprocessors": properties["multiProcessorCount"],
            "driver": _driver(),
            "cuda_of_driver": runtime.driverGetVersion(),
            "cuda_runtime": self._cupy.cuda.get_local_runtime_version(),
            "torch_cuda": torch.version.cuda if torch else None,
        }


CPU = Device()


def device_named(name: str) -> Device:
    """Return the device "cpu" or "cuda"; end the command, with the reason, where it cannot be used."""
    device = Device(name) if name == "cpu" else Cuda(name)
    _ = device.backend
    return device


def cores() -> int:
    """Return how many cores this process may use: affinity and container limits are respected."""
    return int(joblib.cpu_count())


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    step: Callable[[str], None] = lambda name: None,
    device: Device = CPU,
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
            device.settle()
            call()
            taken: list[float] = []
            while sum(taken) < MIN_SECONDS and len(taken) < MAX_CALLS:
                taken.append(device.seconds(call))
            times[name] += taken
    return times


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent p of seconds ~ size^p: the least-squares slope on log-log axes."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def environment(device: Device = CPU) -> dict[str, Any]:
    """Return the machine, the versions, and the thread pools that are loaded now."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": cores(),
        "gpu": device.describe(),
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


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, where its own tool tells it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()  # noqa: S603
    return lines[0] if lines else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
