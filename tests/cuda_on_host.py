"""The kernels of `cross_entropy.cu`, and the product of cuBLAS that the package calls, on the processor of the host.

`cuda_on_host.h` runs a kernel's threads one after the other. Both take addresses, as those of a GPU do.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from softmax_xp.kernels import cublas, cuda
from softmax_xp.kernels.workspace import usable_cores

COMPILER = shutil.which("g++")
# A pack that is read from where it may not begin ends the process.
FLAGS = ("-std=c++17", "-O0", "-shared", "-fPIC", "-w", "-Werror=return-type")
FLAGS += ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error")
HEADER = Path(__file__).with_suffix(".h")
HALF = """
float widen(Half x) { _Float16 y; memcpy(&y, &x, 2); return y; }
void narrow(float wide, Half& x) { _Float16 y = wide; memcpy(&x, &y, 2); }
"""
C_TYPES = {"f": ctypes.c_float, "d": ctypes.c_double, "i": ctypes.c_int}

_one_at_a_time = threading.Lock()  # a kernel keeps its threads and shared memory in static variables


# --- Kernels ---


class Kernels:
    """Kernels by their names: compiled when they are first asked for, and kept in a folder for other processes too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._functions: dict[str, object] = {}

    def launch(self, name: str, grid: int, block: int, arguments: tuple[np.generic, ...]) -> None:
        """Run a kernel over one-dimensional blocks."""
        if name not in self._functions:
            self.build([name])
        values = [C_TYPES.get(x.dtype.char, ctypes.c_longlong)(x.item()) for x in arguments]
        with _one_at_a_time:
            self._functions[name](ctypes.c_uint(grid), ctypes.c_uint(block), *values)  # type: ignore[operator]

    def build(self, names: list[str]) -> None:
        """Compile kernels, several of them in one library where there are many."""
        parts = [part for i in range(usable_cores()) if (part := names[i :: usable_cores()])]
        with ThreadPoolExecutor(max(1, len(parts))) as pool:
            for functions in pool.map(self._library, parts):
                self._functions.update(functions)

    def _library(self, names: list[str]) -> dict[str, object]:
        source = Path(cuda.__file__).with_name("cross_entropy.cu")
        launchers = [_launcher(number, name) for number, name in enumerate(names)]
        code = "\n".join([f'#include "{HEADER}"', f'#include "{source}"', HALF, *launchers])
        parts = (code, HEADER.read_text(), source.read_text(), *FLAGS)
        path = self.folder / f"{hashlib.sha256(''.join(parts).encode()).hexdigest()[:32]}.so"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                written = Path(folder) / "kernels.cpp"
                written.write_text(code)
                made = written.with_suffix(".so")
                subprocess.run([COMPILER, *FLAGS, str(written), "-o", str(made)], check=True)
                made.replace(path)  # at once: another process may look for it
        library = ctypes.CDLL(str(path))
        return {name: library[f"run_{number}"] for number, name in enumerate(names)}


def _launcher(number: int, name: str) -> str:
    """Return a C function that runs a kernel."""
    if name.startswith("round_to_bfloat16"):
        parameters = "const float* a, BFloat16* b, Index c"
    elif name.startswith("row_sums"):
        stored, computed = parsed(name)[1][:2]
        parameters = f"const {stored}* a, Index b, {computed}* c, Index d, int e, Index f, int g"
    else:
        stored, written, computed = parsed(name)[1][:3]
        parameters = (
            f"const {stored}* a, Index b, const {computed}* c, const void* d, Index e, const {computed}* f, "
            f"{computed} g, {written}* h, Index i, {computed}* j, Index k, int l, int m"
        )
    arguments = ", ".join(x.split()[-1] for x in parameters.split(", "))
    return (
        f'extern "C" void run_{number}(unsigned grid, unsigned block, {parameters}) '
        f"{{ run_kernel(grid, block, [=] {{ {name}({arguments}); }}); }}"
    )


def parsed(kernel: str) -> tuple[str, list[str]]:
    """Return the name of a template, and its arguments."""
    template, _, rest = kernel.partition("<")
    return template, rest.removesuffix(">").split(", ")


# --- cuBLAS ---


def gemm(
    handle: int,
    transposed_a: int,
    transposed_b: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    a: int,
    type_a: int,
    step_a: int,
    b: int,
    type_b: int,
    step_b: int,
    beta: int,
    out: int,
    type_out: int,
    step_out: int,
    compute: int,
    algorithm: int,
) -> int:
    """Do what cublasGemmEx does: out (m, n) = alpha a (m, k) b (k, n) + beta out, with matrices stored by columns."""
    if m == 0 or n == 0:
        return 0
    double = compute == cublas.COMPUTE_TYPES["64F"]
    assert type_a == type_b
    assert double == (type_out == cublas.TYPES["float64"])
    scalar = np.float64 if double else np.float32
    scale, share = (by_columns(x, scalar, 1, 1, 1)[0, 0] for x in (alpha, beta))

    def factor(address: int, code: int, transposed: int, step: int, rows: int, columns: int) -> np.ndarray:
        shape = (columns, rows) if transposed else (rows, columns)
        x = by_columns(address, DTYPES[code], *shape, step)
        x = x.T if transposed else x
        if code == cublas.TYPES["bfloat16"]:
            return (x.astype(np.uint32) << 16).view(np.float32)
        if compute == cublas.COMPUTE_TYPES["32F_FAST_TF32"]:
            bits = np.ascontiguousarray(x).view(np.uint32)
            return ((bits + 0xFFF + (bits >> 13 & 1)) >> 13 << 13).astype(np.uint32).view(np.float32)
        return x.astype(scalar, copy=False)

    product = scale * (factor(a, type_a, transposed_a, step_a, m, k) @ factor(b, type_b, transposed_b, step_b, k, n))
    to = by_columns(out, DTYPES[type_out], m, n, step_out)
    to[...] = product if share == 0 else share * to + product
    return 0


DTYPES = {0: np.float32, 1: np.float64, 2: np.float16, 14: np.uint16}


def by_columns(address: int, dtype: type, n_rows: int, n_columns: int, step: int) -> np.ndarray:
    """Return the matrix at an address: cuBLAS knows where it begins, its shape and its step, and nothing else."""
    assert step >= max(1, n_rows)  # as cuBLAS wants it
    size = np.dtype(dtype).itemsize
    n_bytes = ((n_columns - 1) * step + n_rows) * size if n_rows and n_columns else 0
    memory = (ctypes.c_char * n_bytes).from_address(address)
    return np.ndarray((n_rows, n_columns), dtype, buffer=memory, strides=(size, step * size))
