"""Feature matrices and targets from files: .npz, .npy, .csv and .tsv, gzipped or not, .parquet and IDX.

A file comes from anywhere, so nothing in it is trusted. Pickles are never loaded, a header's claim on memory
is checked against the bytes that are there, and whatever is damaged or ambiguous is refused in one line.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from softmax_xp.readers.arrays import has_idx_magic, idx_array, idx_features, npy_array, npy_features, read_npz
from softmax_xp.readers.checks import (
    Array,
    DataFileError,
    Parts,
    Request,
    class_labels,
    existing_file,
    listed,
    refusal,
)
from softmax_xp.readers.columns import INSTALL_PARQUET, read_csv, read_parquet

__all__ = ["INSTALL_PARQUET", "DataFileError", "Table", "labels_file", "read_table"]

STANDARD_INPUT = "-"


@dataclass(frozen=True, eq=False)
class Table:
    """What one file holds, or one file and its partner with the labels.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        The features, float32 or float64, in C order.
    y : ndarray of shape (n_samples,) or None
        The class labels: integers, booleans, whole floats or text. None where none were found and none were needed.
    feature_names : list of str or None
        The columns of `X`, where the file names them (.csv or .tsv with a header, .parquet).
    source : str
        The path, as it was given, or "standard input".
    """

    X: Array
    y: Array | None
    feature_names: list[str] | None
    source: str


def read_table(
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    need_target: bool = True,
    header: str = "auto",
    labels: str = "auto",
    dtype: str | None = None,
    progress: Callable[[float], object] | None = None,
) -> Table:
    r"""Read features and targets from a file, by the kind its name says, or from standard input.

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
    anywhere else keep their values.

    A .csv or .tsv is text in UTF-8, or in UTF-16 with a byte order mark, and may be gzipped. Its fields are separated
    by commas, semicolons or tabs, whichever divides its first line into the most. A column of True and False, in any
    case, becomes 1 and 0. A first column without a name is an index of pandas or R: it is left out, with a warning. So
    is a named index that pandas has stored in a .parquet.

    Labels have the dtype that the file has; bytes are text in UTF-8. Those of a .csv are integers, or floats, only if
    each is written exactly as Python writes that number: 01, 1e2, +1 and 1.50 are text, and so are the other labels of
    such a column. Two labels with different spelling are never one.

    Parameters
    ----------
    path : str or path-like
        The file; "-" for standard input, whose kind is known by its first bytes (.csv, gzipped or not, if no other).
    target : str, optional
        The target's column (.csv, .tsv, .parquet; without a header its index from 0), its array (.npz) or the
        path of the file with the labels (.npy, IDX).
    features : sequence of str, optional
        The columns wanted, in this order; others are ignored. No effect on a file that names no columns.
    drop : sequence of str, optional
        Columns to leave out, of a file that names its columns.
    need_target : bool, default=True
        Whether a file without a target is refused. If not, a target that is found is still read.
    header : {"auto", "yes", "no"}, default "auto"
        Whether the first line of a .csv is a header. "auto" takes it for one if it has text other than True and False,
        or the names `features`, or if it counts the columns from 0 where the second line shows that this is no data.
        A file that leaves it open is refused.
    labels : {"auto", "text", "written"}, default "auto"
        "text" makes text of all labels, each as Python writes it. "written" is for labels that are matched with those
        of a model: a .csv has text, and other files what they hold, fractions too.
    dtype : {"float32", "float64"}, optional
        The precision in which all features have to be finite. By default they are not checked.
    progress : callable, optional
        Called now and then with the part of a .csv, from 0 to 1, that has been read.

    Returns
    -------
    Table
        `X` is float32 if the file holds float16, float32 or uint8, else float64.

    Raises
    ------
    DataFileError
        If the file is missing, damaged, of another kind than its name says, holds Python objects, or has no
        matrix of numbers and no labels where they are expected.
    ImportError
        If the file is .parquet and pyarrow is not installed.
    """
    wanted = None if features is None else list(features)
    request = Request(target, wanted, tuple(drop), need_target, header, labels, dtype, progress)
    if os.fspath(path) == STANDARD_INPUT:
        with _standard_input() as file:
            return _table(file, request, "standard input")
    return _table(path, request, os.fspath(path))


def _table(path: str | os.PathLike[str], request: Request, source: str) -> Table:
    file = existing_file(path)
    X, y, names = _reader(file)(file, request)
    if request.drop and names is None:
        rule = f"the columns to drop must have names, got {listed(request.drop)} for a file that names no columns"
        raise refusal(file, rule, "add a header to a .csv, or leave the columns out of the array")
    if y is not None and len(y) != len(X):
        raise refusal(file, f"samples and labels must pair up, got {len(X)} and {len(y)}", "align the two")
    return Table(X, y, names, source)


def labels_file(path: str | os.PathLike[str], target: str | None = None) -> Path | None:
    """Return the file that `read_table` takes the labels from, where there is one beside `path`.

    Raises
    ------
    DataFileError
        If there is no file at `path`, or none that can be read.
    """
    if os.fspath(path) == STANDARD_INPUT:
        return None if target is None or not os.path.exists(target) else Path(target)
    file = existing_file(path)
    if _reader(file) not in (_read_npy, _read_idx):
        return None
    labels = _partner(file) if target is None else Path(target)
    return labels if labels is not None and labels.exists() else None


@contextmanager
def _standard_input() -> Iterator[Path]:
    """Yield a file with what standard input has, which messages call so."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "standard_input"
        with open(file, "wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        with open(file, "rb") as stream:
            head = stream.read(6)
        kinds = {b"PAR1": ".parquet", b"PK": ".npz", b"\x93NUMPY": ".npy"}
        suffix = next((suffix for magic, suffix in kinds.items() if head.startswith(magic)), ".csv")
        file = file.rename(file.with_suffix(".idx" if has_idx_magic(file) else suffix))
        try:
            yield file
        except (DataFileError, ImportError) as error:
            raise type(error)(str(error).replace(f"{file}:", "standard input:").replace(str(file), "-")) from None


def _reader(file: Path) -> Callable[[Path, Request], Parts]:
    name = file.name.lower()
    for suffixes, reader in (
        ((".npz",), read_npz),
        ((".npy",), _read_npy),
        ((".csv", ".csv.gz", ".tsv", ".tsv.gz"), read_csv),
        ((".parquet",), read_parquet),
    ):
        if name.endswith(suffixes):
            return reader
    if re.search(r"idx\d-ubyte|\.idx(\.gz)?$", name) or has_idx_magic(file):
        return _read_idx
    readable = ".npz, .npy, .csv, .tsv, .csv.gz, .tsv.gz, .parquet and IDX files can be read"
    raise refusal(file, f"{readable}, and this is none by name or content", "convert or rename it")


def _read_npy(file: Path, request: Request) -> Parts:
    return npy_features(file, request), _partner_labels(file, request), None


def _read_idx(file: Path, request: Request) -> Parts:
    return idx_features(file, request), _partner_labels(file, request), None


def _partner(file: Path) -> Path | None:
    """Return the path that the name of `file` suggests for its labels."""
    partners = {"X": "y", "x": "y", "features": "labels", "images": "labels"}
    word = rf"(?<![A-Za-z])({'|'.join(partners)})(?![A-Za-z])"
    name = re.sub(word, lambda match: partners[match[0]], file.name)
    name = re.sub(r"idx\d(?=-ubyte)", "idx1", name)
    return None if name == file.name else file.with_name(name)


def _partner_labels(file: Path, request: Request) -> Array | None:
    if request.target is not None:
        if not os.path.exists(request.target):
            rule = f"the target must be the path of the labels file, got {request.target!r}: no such file"
            raise refusal(file, rule, "check --target (`target=`)")
        labels = existing_file(request.target)
    else:
        partner = _partner(file)
        if partner is None or not partner.exists():
            if not request.need_target:
                return None
            looked = "the name suggests none" if partner is None else f"{partner} does not exist"
            rule = f"the labels must be in a file of their own, and {looked}"
            raise refusal(file, rule, "name it with --target (`target=`)")
        labels = existing_file(partner)
    reader = _reader(labels)
    if reader not in (_read_npy, _read_idx):
        raise refusal(labels, f"the labels of {file.name} must be .npy or IDX", "convert the labels")
    array = npy_array(labels) if reader is _read_npy else idx_array(labels)
    return class_labels(array, labels, "the labels", request)
