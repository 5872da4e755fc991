"""Arrays of any library: their namespace, their conversion, and the checks on arguments.

Every message of a check names the argument, the rule, the value found and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from numbers import Integral, Real
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


def check_rank(x: Array, name: str, rank: int, shape: str) -> None:
    """Raise ValueError unless `x` has `rank` axes, none of them empty; `shape` is its form in words."""
    if x.ndim != rank:
        remedy = {
            1: f"flatten it with {name}.reshape(-1)",
            2: f"reshape it, for example {name}.reshape(len({name}), -1)",
        }.get(rank, "reshape it")
        raise ValueError(f"`{name}` must have shape {shape}, got {x.ndim}-d of shape {tuple(x.shape)}; {remedy}.")
    if 0 in x.shape:
        raise ValueError(
            f"`{name}` must have shape {shape} with no empty axis, got shape {tuple(x.shape)}; "
            f"pass at least one row and one column."
        )


def check_floating(xp: Namespace, x: Array, name: str) -> None:
    """Raise TypeError unless `x` has a real floating dtype."""
    if not is_floating(xp, x.dtype):
        raise TypeError(
            f"`{name}` must have a real floating dtype, got {dtype_name(x.dtype)}; "
            f"convert it first, for example to float32."
        )


def check_length(x: Array, name: str, n: int, of: str) -> None:
    """Raise ValueError unless the first axis of `x` has length `n`, the number of rows of argument `of`."""
    if x.shape[0] != n:
        raise ValueError(
            f"`{name}` must have one entry per row of `{of}` ({n}), got {x.shape[0]}; select the same rows from both."
        )


def _where_it_lies(check: F) -> F:
    """Run a check on the device of the array that it looks at, which need not be the one that is computed on."""

    @wraps(check)
    def on_its_device(xp: Namespace, x: Array, *args: Any, **kwargs: Any) -> Any:
        with device_context(device_of(x)):
            return check(xp, x, *args, **kwargs)

    return cast("F", on_its_device)


@_where_it_lies
def all_finite(xp: Namespace, x: Array) -> bool:
    """Return whether `x` holds neither a NaN nor an infinity."""
    # A finite sum proves every term finite, in one pass that allocates nothing. Where it overflows, look closer.
    x = detached(x)
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(xp.sum(x))) or bool(xp.all(xp.isfinite(x)))


@_where_it_lies
def check_finite(xp: Namespace, x: Array, name: str, weight: Array | None = None) -> bool:
    """Return whether all of `x` (2-D) is finite.

    Raise ValueError where a row of another `weight` (n,) than 0 holds a NaN or an infinity, naming the first one's
    place. The weights may be of another library.
    """
    if all_finite(xp, x):
        return True
    bad = xp.logical_not(xp.isfinite(x))
    bad_rows = to_numpy(xp.any(bad, axis=1))
    if weight is not None:
        bad_rows = bad_rows & (to_numpy(weight) != 0)
    if not bad_rows.any():
        return False
    row = int(np.argmax(bad_rows))
    column = int(xp.argmax(xp.astype(bad[row, :], xp.int32)))
    value = float(x[row, column])
    raise ValueError(
        f"`{name}` must be finite, got {'NaN' if math.isnan(value) else value} at row {row}, column {column}; "
        f"drop or impute such rows."
    )


@_where_it_lies
def check_labels(xp: Namespace, labels: Array, n_classes: int, name: str = "labels") -> Array:
    """Return `labels` as int64; raise unless they are integers (TypeError) in [0, n_classes) (ValueError)."""
    if not is_integral(xp, labels.dtype):
        raise TypeError(
            f"`{name}` must be integer class indices, got dtype {dtype_name(labels.dtype)}; "
            f"encode them first, for example numpy.unique({name}, return_inverse=True)[1], "
            f"or pass probabilities of shape (n_samples, n_classes)."
        )
    labels = xp.astype(labels, xp.int64, copy=False)  # not every library computes with every integer dtype
    if int(xp.min(labels)) < 0 or int(xp.max(labels)) >= n_classes:
        row = int(xp.argmax(xp.astype(xp.logical_or(labels < 0, labels >= n_classes), xp.int32)))
        raise ValueError(
            f"`{name}` must lie in [0, {n_classes}), got {int(labels[row])} at row {row}; encode them first, "
            f"for example numpy.unique({name}, return_inverse=True)[1]."
        )
    return labels


def are_probabilities(xp: Namespace, targets: Array, n_classes: int, name: str = "labels") -> bool:
    """Return whether targets are probabilities, and not labels; raise unless their rank and dtype are those of one."""
    if targets.ndim == 2 and (targets.shape[1] == n_classes or is_floating(xp, targets.dtype)):
        check_floating(xp, targets, name)
        return True
    check_rank(targets, name, 1, "(n_samples,)")
    return False


@_where_it_lies
def check_probabilities(xp: Namespace, targets: Array, n_classes: int, name: str = "labels") -> None:
    """Raise ValueError unless `targets` (n, n_classes) are finite, non-negative rows that sum to one."""
    targets = detached(targets)
    if targets.ndim != 2 or targets.shape[1] != n_classes:
        raise ValueError(
            f"`{name}` as probabilities must have shape (n_samples, {n_classes}), got {tuple(targets.shape)}; "
            f"give one column per class."
        )
    check_finite(xp, targets, name)
    if float(xp.min(targets)) < 0:
        raise ValueError(
            f"`{name}` as probabilities must not be negative, got {float(xp.min(targets))}; "
            f"normalise each row to probabilities."
        )
    wide = working_dtype(xp, targets.dtype)
    excess = xp.abs(xp.sum(xp.astype(targets, wide), axis=1) - 1.0)
    # Probabilities in float64 have often been float32 before.
    own = 2.0**-7 if dtype_name(targets.dtype) == "bfloat16" else float(xp.finfo(targets.dtype).eps)
    eps = max(own, float(xp.finfo(xp.float32).eps))
    if float(xp.max(excess)) > 8 * n_classes**0.5 * eps:
        row = int(xp.argmax(excess))
        raise ValueError(
            f"`{name}` as probabilities must sum to 1 in each row, got "
            f"{float(xp.sum(xp.astype(targets[row, :], wide)))} at row {row}; divide each row by its sum."
        )


@_where_it_lies
def check_weights(xp: Namespace, weights: Array, n: int, name: str = "sample_weight", of: str = "X") -> None:
    """Raise unless `weights` (n,) are finite, none negative, and not all zero."""
    check_rank(weights, name, 1, "(n_samples,)")
    check_length(weights, name, n, of)
    check_floating(xp, weights, name)
    weights = detached(weights)
    # Nothing is added: finite weights may have a sum that is not.
    least, greatest = float(xp.min(weights)), float(xp.max(weights))
    if not (math.isfinite(least) and math.isfinite(greatest)):
        row = int(np.argmax(to_numpy(xp.logical_not(xp.isfinite(weights)))))
        raise ValueError(f"`{name}` must be finite, got {float(weights[row])}; drop or repair rows like row {row}.")
    if least < 0:
        raise ValueError(
            f"`{name}` must not be negative, got {least} at row {int(xp.argmin(weights))}; use 0 to leave a row out."
        )
    if greatest == 0:
        raise ValueError(f"`{name}` must not be all zero, got {n} zeros; give at least one row a positive weight.")


@_where_it_lies
def scaled_weights(xp: Namespace, weights: Array) -> tuple[Array, int]:
    """Return `weights`, not all zero, as ratios to a power of two, and its exponent.

    The ratios are in the widest floating dtype of the device and the largest lies in [1, 2), so that sums of them
    neither overflow nor underflow. Dividing by a power of two is exact.
    """
    exponent = math.frexp(float(xp.max(detached(weights))))[1] - 1
    weights = xp.astype(weights, accumulation_dtype(xp, device_of(weights)), copy=False)
    half = exponent // 2  # in two steps, as the inverse of a power of two may overflow
    return weights * 2.0**-half * 2.0 ** (half - exponent), exponent


def check_real(
    value: Any,
    name: str,
    *,
    remedy: str,
    low: float = -math.inf,
    high: float = math.inf,
    include_low: bool = True,
    include_high: bool = True,
) -> float:
    """Return `value` as a float; raise unless it is one real number (TypeError) in the interval (ValueError).

    A 0-d real array of any library counts as a number. `remedy` ends the message, for example "choose a value such
    as 1.0".
    """
    check_dense(value, name)
    if is_array(value) and value.ndim == 0:
        value = to_numpy(value).item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a real number, got {describe(value)}; pass a float; {remedy}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number) and value not in (math.inf, -math.inf):
        raise ValueError(f"`{name}` must be a number that float64 can hold, got {describe(value)}; {remedy}.")
    above = number >= low if include_low else number > low
    below = number <= high if include_high else number < high
    if not (above and below):
        left, right = "[" if include_low else "(", "]" if include_high else ")"
        raise ValueError(f"`{name}` must lie in {left}{low:g}, {high:g}{right}, got {number}; {remedy}.")
    return number


def check_integer(value: Any, name: str, *, low: int, remedy: str, high: int = 2**63 - 1) -> int:
    """Return `value` as an int; raise unless it is an integer (TypeError) from `low` to `high` (ValueError).

    `remedy` ends the message, for example "choose a value such as 100".
    """
    check_dense(value, name)
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {describe(value)}; pass an int; {remedy}.")
    number = int(value)
    if not low <= number <= high:
        rule = f"at least {low}" if number < low else f"at most {high}"
        raise ValueError(f"`{name}` must be {rule}, got {describe(number)}; {remedy}.")
    return number


def check_bool(value: Any, name: str) -> bool:
    """Return `value` as a bool; raise TypeError unless it is one, of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {describe(value)}; pass a bool.")
    return bool(value)


def check_random_state(value: Any, name: str = "random_state") -> np.random.Generator:
    """Return the generator that a seed stands for, or that `value` is; raise, naming the argument, if it is neither."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError("a bool is no seed")
        return np.random.default_rng(value)
    except (TypeError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"`{name}` must be None, a non-negative integer or a numpy.random.Generator, got {describe(value)}; "
            f"choose a seed such as 0."
        ) from error


def check_held(xp: Namespace, value: float, name: str, dtype: DType) -> None:
    """Raise ValueError unless a number that is not negative is 0, or one that `dtype` holds to its full precision."""
    least, greatest = range_of(xp, dtype)
    if value and not least <= value <= greatest:
        raise ValueError(
            f"`{name}` must be 0 or lie in [{least:.3g}, {greatest:.3g}], which {dtype_name(dtype)} can hold, "
            f"got {value}; choose a value in between, or pass wider arrays."
        )


def check_option(value: Any, name: str, options: Sequence[str]) -> str:
    """Return `value`; raise ValueError unless it is one of `options`."""
    if not isinstance(value, str) or value not in options:
        known = ", ".join(repr(option) for option in options)
        raise ValueError(f"`{name}` must be one of {known}, got {describe(value)}; choose one of them.")
    return value
