"""Arrays of any library: their namespace, device and dtype, their conversion, and blocks of their rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeAlias, TypeVar, cast

import array_api_compat
import numpy as np

Array: TypeAlias = Any
Namespace: TypeAlias = Any
DType: TypeAlias = Any
Device: TypeAlias = Any
F = TypeVar("F", bound=Callable[..., Any])


# What is computed for each row and class exists for a block of rows at a time, of at most this many bytes, so that
# memory does not grow with the number of rows.
BLOCK_BYTES = 8 << 20
# A block on a GPU should stay in its second-level cache between a product and a kernel, which is 50 MB or more on
# current ones, and should take longer to compute than to launch. Not measured: `benchmarks/gpu.sh` does.
GPU_BLOCK_BYTES = 64 << 20


def row_blocks(n_rows: int, row_bytes: int, block_bytes: int | None = None) -> Iterator[slice]:
    """Yield the slices of rows, in order, that fill at most `block_bytes` (BLOCK_BYTES) each, but one row at least."""
    step = max(1, (BLOCK_BYTES if block_bytes is None else block_bytes) // row_bytes)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


# A sum over rows is divided into at most MAX_SUMS parts. One thread computes each part, of at least MIN_SUM_WORK
# multiplications. The parts depend on the shapes alone, and so does every bit of the sum.
MAX_SUMS, MIN_SUM_WORK = 8, 1 << 22


def sum_parts(n_rows: int, row_work: int) -> list[slice]:
    """Return the parts of the rows over which threads sum; `row_work` is the number of multiplications for a row."""
    return list(row_blocks(n_rows, 1, max(-(-n_rows // MAX_SUMS), MIN_SUM_WORK // row_work)))


def is_gpu(device: Device) -> bool:
    """Return whether `device` is one that has to be made the current one: a GPU, as CuPy names it."""
    return hasattr(device, "use")


def block_bytes(device: Device) -> int:
    """Return how large the blocks of rows should be that are computed on `device`."""
    return GPU_BLOCK_BYTES if is_gpu(device) else BLOCK_BYTES


def is_array(x: object) -> bool:
    """Return whether `x` is an array of a library that follows the array API standard."""
    return not isinstance(x, type) and bool(array_api_compat.is_array_api_obj(x))


def is_numpy(x: object) -> bool:
    """Return whether `x` is a NumPy array (or scalar), the one kind that every machine can hold."""
    return isinstance(x, np.ndarray | np.generic)


def check_dense(x: Any, name: str) -> None:
    """Raise TypeError where `x` is an array of another kind than a dense block of numbers in memory.

    Such are masked, sparse, lazy and quantised arrays, and numpy.matrix, whose products mean something else. A list
    must not hold masked arrays. What is no array at all passes.
    """
    if isinstance(x, list | tuple):
        x = next((row for row in x if isinstance(row, np.ma.MaskedArray)), None)
    kind, library = type(x).__name__, type(x).__module__.partition(".")[0]
    if isinstance(x, np.ma.MaskedArray):
        kind, remedy = "a masked array", f"leave out what is masked, or fill it first, for example {name}.filled(0)"
    elif isinstance(x, np.matrix):
        kind, remedy = "a numpy.matrix", f"convert it first, for example numpy.asarray({name})"
    elif hasattr(x, "nnz") and hasattr(x, "toarray"):
        kind, remedy = f"a sparse {kind}", f"convert it first, for example {name}.toarray()"
    elif library == "sparse":
        kind, remedy = f"a sparse {kind}", f"convert it first, for example {name}.todense()"
    elif library in ("dask", "dask_expr"):
        kind, remedy = f"a dask {kind}", f"compute it first, for example {name}.compute()"
    elif array_api_compat.is_jax_array(x):
        kind, remedy = f"a JAX {kind}", f"convert it first, for example numpy.asarray({name})"
    elif not array_api_compat.is_torch_array(x):
        return
    elif x.is_nested:
        kind, remedy = "a nested tensor", f"pad it first, for example torch.nested.to_padded_tensor({name}, 0.0)"
    elif x.is_meta:
        kind, remedy = "a meta tensor, which has no data", "make it on the device 'cpu' or 'cuda'"
    elif x.is_quantized:
        kind, remedy = "a quantised tensor", f"convert it first, for example {name}.dequantize()"
    elif "strided" not in str(x.layout):
        kind, remedy = "a sparse tensor", f"convert it first, for example {name}.to_dense()"
    else:
        return
    raise TypeError(f"`{name}` must be a dense array of numbers in memory, got {kind}; {remedy}.")


def native(x: Array) -> Array:
    """Return a NumPy array as numpy.ndarray itself in the byte order of this machine, any other as it is."""
    if not isinstance(x, np.ndarray):
        return x
    x = np.asarray(x)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def checked_arrays(*, optional: Sequence[str] = (), **arrays: Array) -> tuple[Any, ...]:
    """Return the namespace of arguments given by name, and each of them as `native` returns it.

    Those named in `optional` may be None. TypeError unless the others are dense arrays of one library.
    """
    present = {name: x for name, x in arrays.items() if x is not None or name not in optional}
    for name, x in present.items():
        check_dense(x, name)
    return (namespace(**present), *map(native, arrays.values()))


def namespace(**arrays: Array) -> Namespace:
    """Return the one array API namespace that all of `arrays` (given by argument name) belong to.

    TypeError when one is not an array, or when two libraries meet.
    """
    for name, x in arrays.items():
        if not is_array(x):
            raise TypeError(
                f"`{name}` must be an array (NumPy, CuPy, torch or another array API library), "
                f"got {type(x).__name__}; convert it first, for example numpy.asarray({name})."
            )
    try:
        return array_api_compat.array_namespace(*arrays.values())
    except TypeError:
        kinds = ", ".join(f"`{name}`: {type(x).__module__}.{type(x).__name__}" for name, x in arrays.items())
        raise TypeError(
            f"all arrays must come from one library, got {kinds}; convert them to the library of the first."
        ) from None


def device_of(x: Array) -> Device:
    """Return the device of `x` as its library names it."""
    return array_api_compat.device(x)


def device_context(device: Device) -> AbstractContextManager[Any]:
    """Return a context in which new arrays are made on `device`.

    A CUDA library needs it: its kernels run on the current device, not on that of their arguments.
    """
    return device if is_gpu(device) else nullcontext()


def detached(x: Array) -> Array:
    """Return `x` without the autograd graph of its library, which would grow with every step of a solver."""
    return x.detach() if hasattr(x, "detach") else x


def to_numpy(x: Array) -> np.ndarray:
    """Return `x` as a `native` NumPy array on the host; the memory is shared where the library allows it."""
    if is_numpy(x) or not is_array(x):
        return cast("np.ndarray", native(np.asarray(x)))
    xp = array_api_compat.array_namespace(x)
    if dtype_name(x.dtype) == "bfloat16":  # NumPy has no such type; float32 holds each of its values
        x = xp.astype(x, xp.float32)
    try:
        x = array_api_compat.to_device(detached(x), "cpu")
    except (ValueError, TypeError):  # a library whose host is not called "cpu" exports it by DLPack
        return np.from_dlpack(x)
    return x if is_numpy(x) else np.from_dlpack(x)


def dtype_name(dtype: DType) -> str:
    """Return the bare name of a dtype of any library, of any byte order: "float32", "bfloat16", "int64"."""
    if isinstance(dtype, np.dtype):
        return dtype.name
    return dtype.__name__ if isinstance(dtype, type) else str(dtype).rsplit(".", 1)[-1]


def is_floating(xp: Namespace, dtype: DType) -> bool:
    """Return whether `dtype` is a real floating one, the bfloat16 of ml_dtypes included."""
    if isinstance(dtype, np.dtype):  # NumPy's isdtype raises for records
        return dtype.kind == "f" or dtype.name == "bfloat16"
    return bool(xp.isdtype(dtype, "real floating"))


def is_integral(xp: Namespace, dtype: DType) -> bool:
    """Return whether `dtype` is a signed or unsigned integer."""
    return dtype.kind in "iu" if isinstance(dtype, np.dtype) else bool(xp.isdtype(dtype, "integral"))


def working_dtype(xp: Namespace, dtype: DType) -> DType:
    """Return the dtype in which arithmetic on `dtype` is done: itself, but float32 for 16-bit floats."""
    return xp.float32 if bytes_of(xp, dtype) < 4 else dtype


def accumulation_dtype(xp: Namespace, device: Device) -> DType:
    """Return the widest real floating dtype of `device`: float64, or float32 where that is missing."""
    real = xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
    return real.get("float64", xp.float32)


def bytes_of(xp: Namespace, dtype: DType) -> int:
    """Return the size of one number of a real floating dtype."""
    return 2 if dtype_name(dtype) == "bfloat16" else int(xp.finfo(dtype).bits) // 8


def range_of(xp: Namespace, dtype: DType) -> tuple[float, float]:
    """Return the smallest normal and the largest number of a real floating dtype."""
    info = xp.finfo(xp.float32 if dtype_name(dtype) == "bfloat16" else dtype)  # nearly the same exponents
    return float(info.smallest_normal), float(info.max)


def describe(x: object) -> str:
    """Return a short account of a value, in one line, for an error message."""
    if is_array(x) and not isinstance(x, np.generic):
        return f"an array of shape {tuple(x.shape)} and dtype {dtype_name(x.dtype)}"  # type: ignore[attr-defined]
    if isinstance(x, int) and x.bit_length() > 200:  # Python writes no integer of thousands of digits
        return f"an integer of {x.bit_length()} bits"
    text = " ".join(repr(x).split())
    return text if len(text) <= 60 else text[:57] + "..."


def on_its_device(function: F) -> F:
    """Run a function of an array on the device of that array, which need not be the one that is computed on."""

    @wraps(function)
    def wrapped(xp: Namespace, x: Array, *args: Any, **kwargs: Any) -> Any:
        with device_context(device_of(x)):
            return function(xp, x, *args, **kwargs)

    return cast("F", wrapped)


@on_its_device
def all_finite(xp: Namespace, x: Array) -> bool:
    """Return whether `x` holds neither a NaN nor an infinity."""
    # A finite sum proves every term finite, in one pass that allocates nothing. Where it overflows, look closer.
    x = detached(x)
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(xp.sum(x))) or bool(xp.all(xp.isfinite(x)))
