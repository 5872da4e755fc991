"""Devices, streams, graphs, pools and events, by their names in CuPy."""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any

from cupy._device import (
    MEMORY,
    N_DEVICES,
    Device as Device,
    Graph as Graph,
    MemoryPointer as MemoryPointer,
    MemoryPool as MemoryPool,
    Stream as Stream,
    get_current_stream as get_current_stream,
    using_allocator as using_allocator,
)

HANDLE = 4242  # of cuBLAS


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass


def get_elapsed_time(start: Event, stop: Event) -> float:
    return 1e3 * (stop.at - start.at)


def get_local_runtime_version() -> int:
    return 13000


def is_available() -> bool:
    return True


def _properties(device: int) -> dict[str, Any]:
    sizes = {"totalGlobalMem": MEMORY, "l2CacheSize": 60 << 20, "multiProcessorCount": 132}
    return {"name": b"a GPU simulated by NumPy", **sizes}


def _module(name: str, **names: Any) -> ModuleType:
    module = ModuleType(f"{__name__}.{name}")
    vars(module).update(names)
    sys.modules[module.__name__] = module
    return module


runtime = _module(
    "runtime",
    CUDARuntimeError=RuntimeError,
    getDeviceCount=lambda: N_DEVICES,
    getDeviceProperties=_properties,
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
)
device = _module("device", Device=Device, get_cublas_handle=lambda: HANDLE)
