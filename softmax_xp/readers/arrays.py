"""Files that hold arrays: .npz and .npy of NumPy, and IDX. No pickle is loaded."""

import math
import re
import struct
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from softmax_xp.readers.checks import (
    Array,
    Parts,
    Request,
    check_features,
    check_size,
    class_labels,
    feature_matrix,
    listed,
    reading,
    refusal,
    unzipped,
)

# --- NumPy's own files ---


def read_npz(file: Path, request: Request) -> Parts:
    """Return features and labels of an archive of arrays."""
    with reading(file, "a .npz archive"), zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

        def array(name: str) -> Array:
            with archive.open(members[name]) as stream:
                return _npy_array(stream, members[name].file_size, file, f"array {name!r}")

        data = next((name for name in ("X", "data", "x", "features") if name in members), None)
        if data is None:
            rule = f"the features must be array 'X', 'data', 'x' or 'features', got {listed(members)}"
            raise refusal(file, rule, "save them as 'X'")
        target = request.target
        if target is None:
            target = next((name for name in ("y", "labels", "target") if name in members), None)
        if target not in members and (target is not None or request.need_target):
            wanted = "'y', 'labels' or 'target'" if target is None else repr(target)
            rule = f"the target must be array {wanted}, got {listed(members)}"
            raise refusal(file, rule, "name one with --target (`target=`)")
        X = feature_matrix(array(data), file, f"array {data!r}")
        check_features(X, file, request, lambda row, column: f"row {row}, column {column} of array {data!r}")
        y = None if target is None else class_labels(array(target), file, f"array {target!r}", request)
    return X, y, None


def npy_features(file: Path, request: Request) -> Array:
    """Return the matrix in a .npy file."""
    X = feature_matrix(npy_array(file), file, "the array")
    check_features(X, file, request, lambda row, column: f"row {row}, column {column}")
    return X


def npy_array(file: Path) -> Array:
    """Return the array in a .npy file, without pickle."""
    with reading(file, "a .npy file"), open(file, "rb") as stream:
        return _npy_array(stream, file.stat().st_size, file, "the array")


def _npy_array(stream: IO[bytes], size: int, file: Path, what: str) -> Array:
    """Read the one array of `stream`, which is `size` bytes long, without pickle."""
    version = np.lib.format.read_magic(stream)
    # Format 3.0 differs from 2.0 only for the field names of records, which are no features.
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise refusal(file, f"{what} must be in .npy format 1.0 or 2.0, got {version}", "save plain numbers")
    shape, _, dtype = headers[version](stream)
    if dtype.hasobject:
        rule = f"{what} must hold numbers or text, got Python objects (dtype {dtype}), which are never loaded"
        raise refusal(file, rule, "save it with astype(float), astype(int) or astype(str)")
    # NumPy allocates what the header claims before it reads, so the claim is checked first.
    check_size(math.prod(shape) * dtype.itemsize, size - stream.tell(), shape, file, what)
    stream.seek(0)
    array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array


# --- IDX ---

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20  # bytes: large enough to be fast, small enough to allocate on a header's word


def idx_features(file: Path, request: Request) -> Array:
    """Return the images in an IDX file, one flattened to a row; bytes are divided by 255."""
    array = idx_array(file)
    if array.ndim == 1:
        rule = f"the data must be images, rank 2 or more, got rank 1, {len(array)} labels"
        images = re.sub(r"labels([.-])idx1(?=-ubyte)", r"images\1idx3", file.name)
        raise refusal(file, rule, "give the images file" + (f", {images}" if images != file.name else ""))
    rows = array.reshape(len(array), math.prod(array.shape[1:]))  # (n, height * width)
    X = feature_matrix(rows, file, "the images")
    if array.dtype == np.uint8:
        X /= np.float32(255)
    check_features(X, file, request, lambda row, column: f"image {row}, pixel {column}")
    return X


def idx_array(file: Path) -> Array:
    """Return the array in an IDX file, gzipped or not."""
    with reading(file, "an IDX file"), unzipped(file) as stream:
        magic = stream.read(4)
        if not _is_idx_magic(magic):
            rule = f"an IDX file starts with 0, 0, a type and a rank, got bytes {magic.hex(' ')}"
            raise refusal(file, rule, "check what the file is")
        shape = struct.unpack(f">{magic[3]}I", stream.read(4 * magic[3]))
        dtype = np.dtype(_IDX_TYPES[magic[2]])
        expected = math.prod(shape) * dtype.itemsize
        payload = bytearray()
        # Asks for one byte more than expected: that reaches the end, or shows that it is not there.
        while chunk := stream.read(min(_CHUNK, expected + 1 - len(payload))):
            payload += chunk
        check_size(expected, len(payload), shape, file, "the array")
        return np.frombuffer(payload, dtype).reshape(shape)


def has_idx_magic(file: Path) -> bool:
    """Return whether a file begins as an IDX file does."""
    try:
        with unzipped(file) as stream:
            return _is_idx_magic(stream.read(4))
    except Exception:  # gzip that does not unpack holds no IDX file
        return False


def _is_idx_magic(magic: bytes) -> bool:
    return len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in _IDX_TYPES and magic[3] > 0
