"""Choose the variant of a kernel in `cross_entropy.cu` for a shape. This needs no device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

# dtype of an array -> (C++ type in memory, C++ type for the arithmetic)
TYPES = {
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "float16": ("Half", "float"),
    "bfloat16": ("BFloat16", "float"),
    "uint16": ("BFloat16", "float"),  # the bits of bfloat16, for which CuPy has no dtype of its own
}
PACK_BYTES = 16  # the widest load or store of one thread
MOST_NUMBERS = 8  # in it: of 16 bits
# Bytes of a row that a thread holds in registers: if a row has at most one warp, and if it has a block. Threads of a
# block have 64 registers each, so that a multiprocessor can run 1024 of them. Twice as many bytes spill.
HELD_BYTES, HELD_BYTES_IN_BLOCK = 128, 64
HELD_PACKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # packs in registers that kernels are compiled for
GROUPS = (4, 8, 16, 32, 128, 256, 512, 1024)  # threads per row
WARP = 32
BLOCK = 128  # threads of a block that several rows share; a row with more than a warp has its own block
MAX_BLOCK = 1024
STATIC_BYTES = 2048  # of shared memory in every block
# Largest size of the logits of BLOCK rows for which each row has one thread: 64 classes in float32. With more classes,
# threads that share a row need about as few instructions per entry (counted in code for compute capability 9.0; not
# measured on a GPU).
FEW_BYTES = 32768
SLICES = 8  # warps that share 32 rows of class-major logits
MIN_SLICE = 32  # classes per warp; with fewer, one warp does all
SUMS_BLOCK = 256  # threads of a block that sums rows
ROWS_PER_THREAD = 32  # of them, that it adds one after the other


class Launch(NamedTuple):
    """One launch: the kernel's C++ template instance, the number of blocks, and the threads per block.

    `kept` is the number of packs of each thread in shared memory; `shared` is the bytes of shared memory per block.
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
    pack: int = 1,
    dense: bool = False,
    written: str | None = None,
    shared_bytes: int = 0,
) -> Launch:
    """Return the launch for a shape.

    Dense rows of few classes have one thread each. Other rows have a part of a warp, a warp or a block: the fewest
    threads that can hold the whole row. The largest block holds as much of a longer row as fits. The shared memory of a
    block is in proportion to its threads, so that several blocks can be resident on a multiprocessor: while one reads,
    another reduces or writes.

    Parameters
    ----------
    n_rows, n_classes : int
    dtype : str
        Of the logits: a key of TYPES.
    row_pass : {"SOFTMAX", "LOG_SOFTMAX", "LOSS", "GRADIENT", "HESSIAN"}
    targets : {"NONE", "LABELS", "PROBABILITIES"}
    class_major : bool
        Whether neighbours in memory are rows, not classes.
    pack : int
        The most numbers of each matrix that one thread may read or write at once: see `widest_pack`.
    dense : bool
        Whether logits and output start at a multiple of PACK_BYTES and have no gap between their rows.
    written : str, optional
        The dtype of the output, a key of TYPES of at most the logits' size; by default that of the logits.
    shared_bytes : int
        Shared memory that a block may use on the device.
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
    pack = min(pack, PACK_BYTES // widest)
    for group in GROUPS:
        needed, in_registers, in_shared = -(-n_classes // (pack * group)), *room(group, pack, dtype, shared_bytes)
        if needed <= in_registers + in_shared:
            break
    held = next(held for held in HELD_PACKS if held >= min(needed, in_registers))
    return row_launch(n_rows, n_classes, dtype, kinds, pack, group, held, in_shared)


def sums_launch(n_rows: int, n_columns: int, dtype: str, pack: int) -> tuple[Launch, int]:
    """Return the launch that sums the rows of a matrix in parts, and the rows of each part.

    `dtype` and `pack` are as for `launch_of`. The parts are many enough for all processors; few enough for one more
    launch to sum them.
    """
    computed = TYPES[dtype][1]
    pack = min(pack, PACK_BYTES // itemsize(computed))
    threads = min(WARP, 1 << (-(-n_columns // pack) - 1).bit_length())  # that read a row side by side
    of_part = ROWS_PER_THREAD * SUMS_BLOCK // threads
    tiles = -(-n_columns // (threads * pack))
    kernel = f"row_sums<{TYPES[dtype][0]}, {computed}, {pack}, {threads}>"
    return Launch(kernel, tiles * -(-n_rows // of_part), SUMS_BLOCK), of_part


def widest_pack(n_columns: int, matrices: Iterable[tuple[int, int, int]]) -> int:
    """Return how many numbers one thread may read at once: a power of two that divides every row into whole packs.

    Parameters
    ----------
    n_columns : int
    matrices : address of the first number, bytes from one row to the next, and bytes of a number, of each matrix
        A pack of PACK_BYTES or more starts at a multiple of PACK_BYTES, a smaller one at a multiple of its size.
    """
    pack = MOST_NUMBERS
    for address, step, size in matrices:
        while pack > 1 and (n_columns % pack or address % (whole := min(pack * size, PACK_BYTES)) or step % whole):
            pack //= 2
    return pack


def kinds_of(dtype: str, row_pass: str, targets: str, written: str | None = None) -> str:
    """Return the C++ template arguments for types, row pass and kind of targets."""
    stored, computed = TYPES[dtype]
    return f"{stored}, {TYPES[written or dtype][0]}, {computed}, {row_pass}, {targets}"


def row_launch(
    n_rows: int, n_classes: int, dtype: str, kinds: str, pack: int, group: int, held: int, in_shared: int = 0
) -> Launch:
    """Return the launch of `row_major`: `pack` numbers per pack, `group` threads per row, `held` packs in registers.

    Each thread keeps at most `in_shared` further packs in shared memory.
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
    """Return the packs of a row that each of `group` threads can hold in registers, and in shared memory."""
    in_block = group > WARP
    in_registers = (HELD_BYTES_IN_BLOCK if in_block else HELD_BYTES) // (itemsize(TYPES[dtype][1]) * pack)
    share = shared_bytes * group // MAX_BLOCK - STATIC_BYTES if in_block else 0
    return in_registers, max(0, share // (group * pack * itemsize(dtype)))


def itemsize(dtype: str) -> int:
    """Return the bytes of a number of an array's dtype or of a C++ type."""
    return {"float64": 8, "double": 8, "float32": 4, "float": 4}.get(dtype, 2)
