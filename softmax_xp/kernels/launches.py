"""Which variant of the kernels in `cross_entropy.cu` serves which shape: chosen without asking a device."""

from __future__ import annotations

import math
from typing import NamedTuple

# Number as it lies in memory -> number that is computed with, as C++ spells them.
TYPES = {
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "float16": ("Half", "float"),
    "bfloat16": ("BFloat16", "float"),
    "uint16": ("BFloat16", "float"),  # its bits, for which CuPy has no dtype of its own
}
PACK_BYTES = 16  # the widest access that a thread has
# Of one row a thread holds so much in registers: alone or among the threads of a warp, and in a block of its own, whose
# threads have 64 registers each, so that a processor can have 1024 of them. Twice as much spills.
HELD_BYTES, HELD_BYTES_IN_BLOCK = 128, 64
HELD_PACKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # what is compiled for: the next above what is needed
GROUPS = (4, 8, 16, 32, 128, 256, 512, 1024)  # threads a row
WARP = 32
BLOCK = 128  # threads, where rows share a block: beyond a warp they do not
MAX_BLOCK = 1024
STATIC_BYTES = 2048  # of shared memory that a block takes anyway
# Of the logits of BLOCK rows, where a thread has a row: up to 64 classes. With more, threads that share one need about
# as few instructions for an entry, by what is compiled for compute capability 9.0. Not measured on a GPU.
FEW_BYTES = 32768
SLICES = 8  # warps that share 32 rows of class-major logits
MIN_SLICE = 32  # classes: with fewer to share, one warp does


class Launch(NamedTuple):
    """One launch: the instance of a kernel as C++ spells it, blocks, and threads a block.

    `kept` is the number of packs that a thread has in shared memory, of which a block takes `shared` bytes.
    """

    kernel: str
    grid: int
    block: int
    kept: int = 0
    shared: int = 0


def launch_of(
    n_rows: int,
    n_classes: int,
    dtype: str,
    row_pass: str,
    targets: str = "NONE",
    *,
    class_major: bool = False,
    aligned: bool = False,
    dense: bool = False,
    written: str | None = None,
    shared_bytes: int = 0,
) -> Launch:
    """Return the launch that serves a shape.

    Dense rows of few classes have a thread each. Others share a warp, then have one, then a block: the fewest threads
    that can hold the row, and in the largest block as much of it as fits. Larger blocks have more shared memory, in
    proportion, so that it does not keep others from being on the same processor: while one reads, another reduces or
    writes.

    Parameters
    ----------
    n_rows, n_classes : int
    dtype : str
        Of the logits: a key of TYPES.
    row_pass : {"SOFTMAX", "LOG_SOFTMAX", "LOSS", "GRADIENT", "HESSIAN"}
    targets : {"NONE", "LABELS", "PROBABILITIES"}
    class_major : bool
        Whether rows, instead of classes, lie side by side.
    aligned : bool
        Whether each row of each matrix starts where a pack may, and rows of logits are so many whole packs.
    dense : bool
        Whether logits and output start at a multiple of PACK_BYTES and have nothing between their rows.
    written : str, optional
        The dtype of the output: a key of TYPES that is no larger; that of the logits by default.
    shared_bytes : int
        Of shared memory that a block may take on the device.
    """
    computed = TYPES[dtype][1]
    kinds = kinds_of(dtype, row_pass, targets, written)
    if class_major:
        slices = SLICES if n_classes >= SLICES * MIN_SLICE else 1
        return Launch(f"class_major<{kinds}, {slices}>", -(-n_rows // WARP), WARP * slices)
    few = BLOCK * n_classes * itemsize(computed)
    if dense and few <= min(FEW_BYTES, shared_bytes) and targets != "PROBABILITIES":
        pack = math.gcd(n_classes, 4)
        return Launch(f"few_classes<{kinds}, {pack}, {BLOCK}>", -(-n_rows // BLOCK), BLOCK, shared=few)
    widest = max(itemsize(dtype), itemsize(computed) if targets == "PROBABILITIES" else 0)  # numbers read in packs
    pack = PACK_BYTES // widest if aligned else 1
    for group in GROUPS:
        needed, in_registers, in_shared = -(-n_classes // (pack * group)), *room(group, pack, dtype, shared_bytes)
        if needed <= in_registers + in_shared:
            break
    held = next(held for held in HELD_PACKS if held >= min(needed, in_registers))
    return row_launch(n_rows, n_classes, dtype, kinds, pack, group, held, in_shared)


def kinds_of(dtype: str, row_pass: str, targets: str, written: str | None = None) -> str:
    """Return the arguments of a kernel's template that say what it does, as C++ spells them."""
    stored, computed = TYPES[dtype]
    return f"{stored}, {TYPES[written or dtype][0]}, {computed}, {row_pass}, {targets}"


def row_launch(
    n_rows: int, n_classes: int, dtype: str, kinds: str, pack: int, group: int, held: int, in_shared: int = 0
) -> Launch:
    """Return the launch of `row_major` with so many numbers a pack, threads a row, and packs a thread in registers.

    In shared memory a thread has `in_shared` packs, or as many as it needs.
    """
    beyond = -(-n_classes // (pack * group)) - held
    kept = max(0, min(beyond, in_shared))
    block = BLOCK if group <= WARP else group
    return Launch(
        f"row_major<{kinds}, {pack}, {group}, {held}, {'true' if beyond > 0 else 'false'}>",
        -(-n_rows // (block // group)),
        block,
        kept,
        kept * block * pack * itemsize(dtype),
    )


def room(group: int, pack: int, dtype: str, shared_bytes: int) -> tuple[int, int]:
    """Return how many packs of a row each of `group` threads can hold in registers, and in shared memory."""
    in_block = group > WARP
    in_registers = (HELD_BYTES_IN_BLOCK if in_block else HELD_BYTES) // (itemsize(TYPES[dtype][1]) * pack)
    share = shared_bytes * group // MAX_BLOCK - STATIC_BYTES if in_block else 0
    return in_registers, max(0, share // (group * pack * itemsize(dtype)))


def itemsize(dtype: str) -> int:
    """Return the bytes of a number: of an array's dtype, or of a type as C++ spells it."""
    return {"float64": 8, "double": 8, "float32": 4, "float": 4}.get(dtype, 2)
