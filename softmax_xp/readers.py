"""Feature matrices and targets from files: .npz, .npy, .csv and .tsv, gzipped or not, .parquet and IDX.

A file comes from anywhere, so nothing in it is trusted. Pickles are never loaded, a header's claim on memory
is checked against the bytes that are there, and whatever is damaged or ambiguous is refused in one line.
"""

import csv
import gzip
import io
import itertools
import math
import os
import re
import reprlib
import stat
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["DataFileError", "Table", "labels_file", "read_table"]

INSTALL_PARQUET = "pip install 'pyarrow>=17'"  # the extra parquet

Array: TypeAlias = NDArray[Any]


class DataFileError(ValueError):
    """A file that cannot be used. One line: the file, the rule, the value found, the remedy."""


@dataclass(frozen=True, eq=False)
class Table:
    """What one file holds, or one file and its partner with the labels.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        The features, float32 or float64, in C order.
    y : ndarray of shape (n_samples,) or None
        The class labels, integers or strings. None where none were found and none were needed.
    feature_names : list of str or None
        The columns of `X`, where the file names them (.csv or .tsv with a header, .parquet).
    source : str
        The path, as it was given.
    """

    X: Array
    y: Array | None
    feature_names: list[str] | None
    source: str


class _Request(NamedTuple):
    """What the caller asks of a file."""

    target: str | None
    features: list[str] | None
    drop: tuple[str, ...]
    need_target: bool


_Parts: TypeAlias = tuple[Array, Array | None, list[str] | None]


def read_table(
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    need_target: bool = True,
) -> Table:
    r"""Read features and targets from a file, by the kind its name says.

    ==================  ============================================  =====================================
    File                Features                                      Target, unless `target` names it
    ==================  ============================================  =====================================
    .csv, .tsv          all other columns                             column target, label, labels, class, y
    .parquet            all other columns                             column target, label, labels, class, y
    .npz                array X, data, x or features                  array y, labels or target
    .npy                the array                                     X.npy -> y.npy, X_train.npy ->
                                                                      y_train.npy, features -> labels,
                                                                      images -> labels
    IDX, plain or gzip  the images, one flattened to a row            train-images-idx3-ubyte ->
                                                                      train-labels-idx1-ubyte
    ==================  ============================================  =====================================

    Bytes in an IDX file are pixels: they are divided by 255, the same at training and at prediction. Bytes
    anywhere else keep their values. A .csv or .tsv may be gzipped (.csv.gz). Its fields are separated by commas,
    semicolons or tabs, whichever divides its first line into the most, and it has a header unless every field
    of its first row is a number, True or False. A column of True and False, in any case, becomes 1 and 0.
    Values that are not finite are left for the estimator to judge.

    Parameters
    ----------
    path : str or path-like
        The file.
    target : str, optional
        The target's column (.csv, .tsv, .parquet; without a header its index from 0), its array (.npz) or the
        path of the file with the labels (.npy, IDX).
    features : sequence of str, optional
        The columns wanted, in this order; others are ignored. No effect on a file that names no columns.
    drop : sequence of str, optional
        Columns to leave out, of a file that names its columns.
    need_target : bool, default=True
        Whether a file without a target is refused. If not, a target that is found is still read.

    Returns
    -------
    Table
        `X` is float32 if the file holds float16, float32 or uint8, else float64. `y` has the file's integer
        or string type; whole floats and booleans become int64.

    Raises
    ------
    DataFileError
        If the file is missing, damaged, of another kind than its name says, holds Python objects, or has no
        matrix of numbers and no labels where they are expected.
    ImportError
        If the file is .parquet and pyarrow is not installed.
    """
    file = _existing_file(path)
    request = _Request(target, None if features is None else list(features), tuple(drop), need_target)
    X, y, names = _reader(file)(file, request)
    if drop and names is None:
        rule = f"the columns to drop must have names, got {_listed(drop)} for a file that names no columns"
        raise _refusal(file, rule, "add a header to a .csv, or leave the columns out of the array")
    if y is not None and len(y) != len(X):
        raise _refusal(file, f"samples and labels must pair up, got {len(X)} and {len(y)}", "align the two")
    return Table(X, y, names, os.fspath(path))


def labels_file(path: str | os.PathLike[str], target: str | None = None) -> Path | None:
    """Return the file that `read_table` takes the labels from, where there is one beside `path`.

    Raises
    ------
    DataFileError
        If there is no file at `path`, or none that can be read.
    """
    file = _existing_file(path)
    if _reader(file) not in (_read_npy, _read_idx):
        return None
    labels = _partner(file) if target is None else Path(target)
    return labels if labels is not None and labels.exists() else None


def _existing_file(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    try:
        status = file.stat()
        if stat.S_ISREG(status.st_mode):
            open(file, "rb").close()
    except FileNotFoundError:
        raise _refusal(file, "no such file", "check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _refusal(file, f"cannot be opened ({error})", "check the path and its permissions") from error
    if not stat.S_ISREG(status.st_mode):
        found = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise _refusal(file, f"must be a regular file, got {found}", "give the path of one data file")
    if status.st_size == 0:
        raise _refusal(file, "the file is empty (0 bytes)", "write it again")
    return file


def _reader(file: Path) -> Callable[[Path, _Request], _Parts]:
    name = file.name.lower()
    for suffixes, reader in (
        ((".npz",), _read_npz),
        ((".npy",), _read_npy),
        ((".csv", ".csv.gz", ".tsv", ".tsv.gz"), _read_csv),
        ((".parquet",), _read_parquet),
    ):
        if name.endswith(suffixes):
            return reader
    if re.search(r"idx\d-ubyte|\.idx(\.gz)?$", name) or _has_idx_magic(file):
        return _read_idx
    readable = ".npz, .npy, .csv, .tsv, .csv.gz, .tsv.gz, .parquet and IDX files can be read"
    raise _refusal(file, f"{readable}, and this is none by name or content", "convert or rename it")


# --- NumPy's own files ---


def _read_npz(file: Path, request: _Request) -> _Parts:
    with _reading(file, "a .npz archive"), zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

        def array(name: str) -> Array:
            with archive.open(members[name]) as stream:
                return _npy_array(stream, members[name].file_size, file, f"array {name!r}")

        data = next((name for name in ("X", "data", "x", "features") if name in members), None)
        if data is None:
            rule = f"the features must be array 'X', 'data', 'x' or 'features', got {_listed(members)}"
            raise _refusal(file, rule, "save them as 'X'")
        target = request.target
        if target is None:
            target = next((name for name in ("y", "labels", "target") if name in members), None)
        if target not in members and (target is not None or request.need_target):
            wanted = "'y', 'labels' or 'target'" if target is None else repr(target)
            rule = f"the target must be array {wanted}, got {_listed(members)}"
            raise _refusal(file, rule, "name one with --target (`target=`)")
        X = _feature_matrix(array(data), file, f"array {data!r}")
        y = None if target is None else _class_labels(array(target), file, f"array {target!r}")
    return X, y, None


def _read_npy(file: Path, request: _Request) -> _Parts:
    X = _feature_matrix(_npy_file(file), file, "the array")
    return X, _partner_labels(file, request), None


def _npy_file(file: Path) -> Array:
    with _reading(file, "a .npy file"), open(file, "rb") as stream:
        return _npy_array(stream, file.stat().st_size, file, "the array")


def _npy_array(stream: IO[bytes], size: int, file: Path, what: str) -> Array:
    """Read the one array of `stream`, which is `size` bytes long, without pickle."""
    version = np.lib.format.read_magic(stream)
    # Format 3.0 differs from 2.0 only for the field names of records, which are no features.
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise _refusal(file, f"{what} must be in .npy format 1.0 or 2.0, got {version}", "save plain numbers")
    shape, _, dtype = headers[version](stream)
    if dtype.hasobject:
        rule = f"{what} must hold numbers or text, got Python objects (dtype {dtype}), which are never loaded"
        raise _refusal(file, rule, "save it with astype(float), astype(int) or astype(str)")
    # NumPy allocates what the header claims before it reads, so the claim is checked first.
    _check_size(math.prod(shape) * dtype.itemsize, size - stream.tell(), shape, file, what)
    stream.seek(0)
    array: Array = np.lib.format.read_array(stream, allow_pickle=False)
    return array


# --- IDX ---

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20  # bytes: large enough to be fast, small enough to allocate on a header's word


def _read_idx(file: Path, request: _Request) -> _Parts:
    array = _idx_file(file)
    if array.ndim == 1:
        rule = f"the data must be images, rank 2 or more, got rank 1, {len(array)} labels"
        images = re.sub(r"labels([.-])idx1(?=-ubyte)", r"images\1idx3", file.name)
        raise _refusal(file, rule, "give the images file" + (f", {images}" if images != file.name else ""))
    rows = array.reshape(len(array), math.prod(array.shape[1:]))  # (n, height * width)
    X = _feature_matrix(rows, file, "the images")
    if array.dtype == np.uint8:
        X /= np.float32(255)
    return X, _partner_labels(file, request), None


def _idx_file(file: Path) -> Array:
    with _reading(file, "an IDX file"), _unzipped(file) as stream:
        magic = stream.read(4)
        if not _is_idx_magic(magic):
            rule = f"an IDX file starts with 0, 0, a type and a rank, got bytes {magic.hex(' ')}"
            raise _refusal(file, rule, "check what the file is")
        shape = struct.unpack(f">{magic[3]}I", stream.read(4 * magic[3]))
        dtype = np.dtype(_IDX_TYPES[magic[2]])
        expected = math.prod(shape) * dtype.itemsize
        payload = bytearray()
        # Asks for one byte more than expected: that reaches the end, or shows that it is not there.
        while chunk := stream.read(min(_CHUNK, expected + 1 - len(payload))):
            payload += chunk
        _check_size(expected, len(payload), shape, file, "the array")
        return np.frombuffer(payload, dtype).reshape(shape)


def _has_idx_magic(file: Path) -> bool:
    try:
        with _unzipped(file) as stream:
            return _is_idx_magic(stream.read(4))
    except Exception:  # gzip that does not unpack holds no IDX file
        return False


def _is_idx_magic(magic: bytes) -> bool:
    return len(magic) == 4 and magic[:2] == b"\0\0" and magic[2] in _IDX_TYPES and magic[3] > 0


def _unzipped(file: Path) -> io.BufferedIOBase:
    """Open `file`, through gzip if it starts as gzip does: downloads lose and gain .gz on their way."""
    with open(file, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(file) if packed else open(file, "rb")


# --- Labels in a file of their own ---


def _partner(file: Path) -> Path | None:
    """Return the path that the name of `file` suggests for its labels."""
    partners = {"X": "y", "x": "y", "features": "labels", "images": "labels"}
    word = rf"(?<![A-Za-z])({'|'.join(partners)})(?![A-Za-z])"
    name = re.sub(word, lambda match: partners[match[0]], file.name)
    name = re.sub(r"idx\d(?=-ubyte)", "idx1", name)
    return None if name == file.name else file.with_name(name)


def _partner_labels(file: Path, request: _Request) -> Array | None:
    if request.target is not None:
        if not os.path.exists(request.target):
            rule = f"the target must be the path of the labels file, got {request.target!r}: no such file"
            raise _refusal(file, rule, "check --target (`target=`)")
        labels = _existing_file(request.target)
    else:
        partner = _partner(file)
        if partner is None or not partner.exists():
            if not request.need_target:
                return None
            looked = "the name suggests none" if partner is None else f"{partner} does not exist"
            rule = f"the labels must be in a file of their own, and {looked}"
            raise _refusal(file, rule, "name it with --target (`target=`)")
        labels = _existing_file(partner)
    reader = _reader(labels)
    if reader not in (_read_npy, _read_idx):
        raise _refusal(labels, f"the labels of {file.name} must be .npy or IDX", "convert the labels")
    array = _npy_file(labels) if reader is _read_npy else _idx_file(labels)
    return _class_labels(array, labels, "the labels")


# --- Files with columns ---


def _read_csv(file: Path, request: _Request) -> _Parts:
    with _reading(file, "UTF-8 text in columns"), _text(file) as stream:
        delimiter = _delimiter(next((line for line in stream if line.strip()), ""))
        stream.seek(0)
        rows = csv.reader(stream, delimiter=delimiter)
        first = next((row for row in rows if row), [])
        has_header = not all(_is_number(cell) or _is_boolean(cell) for cell in first)
        n_header_lines = rows.line_num if has_header else 0
        sample = next((row for row in rows if row), first) if has_header else first
        stream.seek(0)
        lines = itertools.islice(stream, n_header_lines, None)
        top = next((line for line in lines if line.strip(" \r\n")), None)
        if top is None:
            raise _refusal(file, "must hold at least one sample, got no rows", "check how it was written")

        if has_header:
            names = [name.strip() for name in first]
        else:
            names = [str(index) for index in range(len(first))]
            request = request._replace(features=None, drop=())
        columns, target = _chosen_columns(file, names, request)
        position = {name: index for index, name in enumerate(names)}
        kinds = dict.fromkeys(columns, "numbers")
        kinds |= {
            name: "True and False"
            for name, cell in zip(names, sample, strict=False)
            if name in kinds and _is_boolean(cell)
        }
        if target is not None:
            kinds[target] = "labels"

        # Every column goes through the parser, so that it sees a row that is too short or too long. The
        # target becomes codes, the order in which its values appear; a column not wanted becomes zeros.
        codes: dict[str, int] = {}
        parsers: dict[str, Callable[[str], float]] = {
            "True and False": _boolean,
            "labels": lambda text: codes.setdefault(text.strip(), len(codes)),
            "": lambda text: 0.0,
        }
        converters: dict[int | str, Callable[[str], float]] = {
            index: parsers[kind] for index, name in enumerate(names) if (kind := kinds.get(name, "")) != "numbers"
        }
        try:
            table = np.loadtxt(
                itertools.chain([top], lines),
                delimiter=delimiter,
                quotechar='"',
                comments=None,
                converters=converters,
                ndmin=2,
            )
        except ValueError as error:
            rule = _bad_cell(file, delimiter, names, kinds, has_header) or str(error)
            remedy = "correct the row, or leave out the column with train --drop (`drop=`)"
            raise _refusal(file, rule, remedy if request.features is None else "correct the row") from error
        if "" in codes or table.shape[1] != len(names):
            rule = f"every row must have {len(names)} fields and a label, got another"
            rule = _bad_cell(file, delimiter, names, kinds, has_header) or rule
            raise _refusal(file, rule, "correct the row")

    broken = next((text for text in codes if "\n" in text), None)
    if broken is not None:  # a quote that nobody closed has swallowed the rows after it
        raise _refusal(file, f"a label must fit in one line, got {reprlib.repr(broken)}", "close its quote")
    X = _feature_matrix(np.take(table, [position[name] for name in columns], axis=1), file, "the table")
    y = None
    if target is not None:
        labels = _parsed_labels(list(codes))[table[:, position[target]].astype(np.intp)]
        y = _class_labels(labels, file, f"column {target!r}")
    return X, y, columns if has_header else None


def _text(file: Path) -> IO[str]:
    # utf-8-sig is UTF-8 with or without the byte order mark that spreadsheets write.
    if file.name.lower().endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig")
    return open(file, encoding="utf-8-sig")


def _delimiter(line: str) -> str:
    """Return the comma, semicolon or tab: that which divides `line` into the most fields, the comma of equals."""
    return max(",;\t", key=lambda mark: len(next(csv.reader([line], delimiter=mark), [])))


def _is_boolean(text: str) -> bool:
    return text.strip().lower() in ("true", "false")


def _boolean(text: str) -> float:
    if not _is_boolean(text):
        raise ValueError(f"must be True or False, got {reprlib.repr(text)}")
    return float(text.strip().lower() == "true")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python's digit grouping: a number in source code, a name in a file


def _bad_cell(file: Path, delimiter: str, names: list[str], kinds: dict[str, str], has_header: bool) -> str:
    """Say which row or cell the fast parser stumbled over; slow, and run only to word a refusal.

    `kinds` has for each column that is read what it holds: numbers, True and False, or labels.
    """
    with _text(file) as stream:
        rows = csv.reader(stream, delimiter=delimiter)
        for row in itertools.islice(filter(None, rows), int(has_header), None):
            line = f"line {rows.line_num}"
            if len(row) != len(names):
                return f"every row must have {len(names)} fields as the first, got {len(row)} in {line}"
            for name, cell in zip(names, row, strict=True):
                kind = kinds.get(name)
                found = f"{reprlib.repr(cell)} in {line}, column {name!r}"
                if kind and not cell.strip():
                    return f"no cell may be empty, got one in {line}, column {name!r}"
                if kind == "numbers" and not _is_number(cell):
                    point = " with a decimal point" if "," in cell else ""
                    return f"features must be numbers{point}, got {found}"
                if kind == "True and False" and not _is_boolean(cell):
                    return f"a column that begins with True or False must hold nothing else, got {found}"
    return ""


def _parsed_labels(texts: list[str]) -> Array:
    if all(re.fullmatch(r"[+-]?[0-9]+", text) for text in texts):
        try:
            return np.array([int(text) for text in texts], dtype=np.int64)
        except (ValueError, OverflowError):  # longer than 64 bits: an identifier, kept as text
            return np.array(texts, dtype=str)
    if all(map(_is_number, texts)):
        return np.array([float(text) for text in texts])
    return np.array(texts, dtype=str)


def _read_parquet(file: Path, request: _Request) -> _Parts:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{file}: reading .parquet needs pyarrow; install it: {INSTALL_PARQUET}") from error
    with _reading(file, "a .parquet file"), pq.ParquetFile(file) as parquet:
        # pandas stores an index without a name as such a column; a row number is no feature.
        names = [name for name in parquet.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)]
        columns, target = _chosen_columns(file, names, request)
        for name in columns:
            kind = parquet.schema_arrow.field(name).type
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
                rule = f"features must be numbers, got {reprlib.repr(str(kind))} in column {name!r}"
                remedy = "encode it as numbers, or leave it out with train --drop (`drop=`)"
                raise _refusal(file, rule, remedy if request.features is None else "encode it as numbers")
        table = parquet.read(columns=columns if target is None else [*columns, target])

        def values(name: str) -> Any:
            column = table.column(name)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if column.null_count:
                rule = f"no value may be null, got {column.null_count} in column {name!r}"
                raise _refusal(file, rule, "fill them in, or leave out their rows")
            text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
            if any(is_text(column.type) for is_text in text):
                return np.array(column.to_pylist(), dtype=str)
            return column.to_numpy()

        dtypes = [_floating(table.schema.field(name).type.to_pandas_dtype()) for name in columns]
        X = np.empty((table.num_rows, len(columns)), np.result_type(np.float32, *dtypes))
        for index, name in enumerate(columns):  # one at a time: the table is never there twice
            X[:, index] = values(name)
        y = None if target is None else _class_labels(values(target), file, f"column {target!r}")
    return _feature_matrix(X, file, "the table"), y, columns


def _chosen_columns(file: Path, names: list[str], request: _Request) -> tuple[list[str], str | None]:
    """Pick the feature columns and the target's among `names`."""
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if repeated:
        raise _refusal(file, f"column names must differ, got {_listed(repeated)} twice", "rename one")
    wanted, target, drop = request.features, request.target, set(request.drop)
    if drop - set(names):
        rule = f"the columns to drop must be among {_listed(names)}, got {_listed(sorted(drop - set(names)))}"
        raise _refusal(file, rule, "correct --drop (`drop=`)")
    if target in drop:
        raise _refusal(file, f"the target must not be dropped, got {target!r} as both", "name another column")
    kept = [name for name in names if name not in drop]
    if target is None:
        usual = ("target", "label", "labels", "class", "y")
        found = [name for name in kept if name.lower() in usual and name not in (wanted or ())]
        if len(found) == 1:
            target = found[0]
        elif request.need_target:
            rule = f"one column must be called {', '.join(usual[:-1])} or y, got {_listed(found or names)}"
            raise _refusal(file, rule, "name the target with --target (`target=`)")
    elif target not in names:
        rule = f"the target must be one of the columns {_listed(names)}, got {target!r}"
        raise _refusal(file, rule, "name another with --target (`target=`)")
    if wanted is None:
        wanted = [name for name in kept if name != target]
    known = set(kept)
    missing = [name for name in wanted if name not in known]
    if missing:
        rule = f"the columns must include the features {_listed(missing)}, got {_listed(names)}"
        raise _refusal(file, rule, "add them")
    if target in wanted:
        raise _refusal(file, f"the target must not be a feature, got {target!r} as both", "name another column")
    if "" in wanted:
        rule = f"every feature must have a name, got none for column {names.index('')}"
        raise _refusal(file, rule, "name it, or leave it out (pandas: to_csv(..., index=False))")
    return wanted, target


# --- What every format owes ---


def _feature_matrix(array: Array, file: Path, what: str) -> Array:
    if array.ndim != 2:
        rule = f"{what} must have shape (n_samples, n_features), got {array.shape}"
        raise _refusal(file, rule, "reshape(len(X), -1) flattens a stack, reshape(-1, 1) makes one feature")
    if array.dtype.kind not in "biuf":
        raise _refusal(file, f"{what} must hold real numbers, got {array.dtype}", "convert it to float")
    if 0 in array.shape:
        rule = f"{what} must have at least one sample and one feature, got shape {array.shape}"
        raise _refusal(file, rule, "check how it was written")
    return np.ascontiguousarray(array, dtype=_floating(array.dtype))


def _floating(dtype: Any) -> np.dtype[Any]:
    small = np.dtype(dtype).newbyteorder("=") in (np.float16, np.float32, np.uint8)
    return np.dtype(np.float32 if small else np.float64)


def _class_labels(array: Array, file: Path, what: str) -> Array:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        rule = f"{what} must have shape (n_samples,), got {array.shape}"
        raise _refusal(file, rule, "give one class label for each sample")
    if array.dtype.kind == "f":
        # Above 2**53 neighbouring integers are one float, so classes might have merged.
        bad = np.flatnonzero(~((np.trunc(array) == array) & (np.abs(array) <= 2**53)))
        if bad.size:
            rule = f"{what} must be classes, integers or text, got {array[bad[0]]} at row {bad[0]}"
            raise _refusal(file, rule, "encode the classes as integers")
        return array.astype(np.int64)
    if array.dtype.kind == "b":
        return array.astype(np.int64)
    if array.dtype.kind == "S":
        with _reading(file, "labels in UTF-8"):
            return np.char.decode(array, "utf-8")
    if array.dtype.kind not in "iuU":
        rule = f"{what} must be classes, integers or text, got {array.dtype}"
        raise _refusal(file, rule, "encode the classes as integers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_size(expected: int, found: int, shape: tuple[int, ...], file: Path, what: str) -> None:
    if found != expected:
        more = "fewer" if found < expected else "more"
        rule = f"{what} of shape {shape} must take {expected} bytes, got {more}"
        raise _refusal(file, rule, "the file is truncated or damaged, fetch or write it again")


def _listed(names: Collection[str]) -> str:
    shown = [reprlib.repr(str(name)) for name in itertools.islice(names, 8)]
    return (", ".join(shown) or "none") + (f", ... ({len(names)} in all)" if len(names) > len(shown) else "")


def _refusal(file: Path, rule: str, remedy: str) -> DataFileError:
    return DataFileError(" ".join(f"{file}: {rule}; {remedy}".splitlines()))


@contextmanager
def _reading(file: Path, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises on bytes it does not understand into a refusal."""
    try:
        yield
    except DataFileError:
        raise
    except Exception as error:  # a dozen types: zlib's, struct's, zipfile's, Arrow's, tokenize's
        found = f"{type(error).__name__}: {error}"
        found = found if len(found) <= 160 else found[:157] + "..."
        rule = f"must be {kind}, got bytes that are not ({found})"
        raise _refusal(file, rule, "the file is truncated, damaged or of another kind") from error
