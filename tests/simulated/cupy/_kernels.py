"""Kernels and products by their addresses: built for the host, launched and recorded as those of a GPU."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cuda_on_host import Kernels, by_columns, gemm

from cupy._device import SHARED_BYTES, UNSAID_SHARED_BYTES, get_current_stream, launch, usage

kernels: Kernels | None = None  # the tests set it; else it keeps them where CuPy would


def _kernels() -> Kernels:
    global kernels
    if kernels is None:
        folder = Path(os.environ.get("CUPY_CACHE_DIR") or tempfile.mkdtemp())
        folder.mkdir(parents=True, exist_ok=True)
        kernels = Kernels(folder)
    return kernels


class RawModule:
    def __init__(self, *, code: str, options: tuple[str, ...] = (), name_expressions: Any = None) -> None:
        assert isinstance(options, tuple)
        self._names = tuple(name_expressions)

    def get_function(self, name: str) -> RawKernel:
        assert name in self._names
        return RawKernel(name)


class RawKernel:
    def __init__(self, name: str) -> None:
        self.name, self.max_dynamic_shared_size_bytes = name, UNSAID_SHARED_BYTES

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        assert self.max_dynamic_shared_size_bytes <= SHARED_BYTES
        assert shared_mem <= self.max_dynamic_shared_size_bytes, self.name
        assert 1 <= grid[0] < 2**31
        assert 1 <= block[0] <= 1024
        assert all(isinstance(x, np.generic) for x in args)  # of another type, CuPy would guess the size
        usage.kernels += 1
        launch(lambda: _kernels().launch(self.name, grid[0], block[0], args))


def cublas_functions() -> tuple[Any, Any, Any]:
    """Return what stands for cublasSetStream, cublasSetWorkspace and cublasGemmEx."""
    workspace: list[int] = []

    def set_stream(handle: int, stream: int) -> int:
        workspace.clear()
        return 0

    def set_workspace(handle: int, address: int, size: int) -> int:
        assert address % 256 == 0
        workspace.append(size)
        return 0

    def recorded_gemm(*arguments: Any) -> int:
        usage.products += 1
        usage.allocating += get_current_stream().recorded is not None and not workspace
        # cuBLAS reads the factors of the product, which are on the host, when it is called.
        alpha, beta = arguments[6], arguments[13]
        kept = [np.array(_number(x, arguments[-2])) for x in (alpha, beta)]
        fixed = (*arguments[:6], kept[0].ctypes.data, *arguments[7:13], kept[1].ctypes.data, *arguments[14:])
        launch(lambda kept=kept: gemm(*fixed))
        return 0

    return set_stream, set_workspace, recorded_gemm


def _number(address: int, compute: int) -> Any:
    return by_columns(address, np.float64 if compute == 70 else np.float32, 1, 1, 1)[0, 0]
