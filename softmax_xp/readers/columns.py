"""Files that hold named columns: .csv and .tsv, gzipped or not, and .parquet."""

import csv
import io
import itertools
import os
import re
import reprlib
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from softmax_xp.labels import label_array, labels_from_text
from softmax_xp.readers.checks import (
    MISSING,
    TEXT,
    Array,
    BadColumn,
    Parts,
    Request,
    all_finite,
    bad_columns,
    check_features,
    class_labels,
    feature_matrix,
    floating,
    listed,
    not_classes,
    not_finite,
    reading,
    refusal,
    unzipped,
)

INSTALL_PARQUET = "pip install 'pyarrow>=17'"  # the extra parquet

LINES_A_REPORT = 4096  # of progress
BYTE_ORDER_MARKS = {  # the longest first
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
NOT_AVAILABLE = ("na", "n/a", "#n/a", "nan", "null", "none", "?")  # marks of missing values


class Layout(NamedTuple):
    """How a text in columns is read; `kinds` has for each column that is read what it holds."""

    delimiter: str
    names: list[str]
    kinds: dict[str, str]  # numbers, True and False, or labels
    has_header: bool


def read_csv(file: Path, request: Request) -> Parts:
    """Return features and labels of text in columns."""
    with reading(file, "text in columns"), _text(file) as stream:
        delimiter = _delimiter(next((line for line in stream if line.strip()), ""))
        stream.seek(0)
        rows = csv.reader(stream, delimiter=delimiter)
        first = next((row for row in rows if row), [])
        n_first_lines = rows.line_num
        second = next((row for row in rows if row), [])
        has_header = _has_header(file, [cell.strip() for cell in first], second, request)
        stream.seek(0)
        lines: Iterator[str] = itertools.islice(stream, n_first_lines if has_header else 0, None)
        top = next((line for line in lines if line.strip(" \r\n")), None)
        if top is None:
            raise refusal(file, "must hold at least one sample, got no rows", "check how it was written")

        if has_header:
            names = [name.strip() for name in first]
            hint = "; the first line was taken as the header: if it is a row, say --header no (`header=`)"
            request = _without_index(file, names, request)
        else:
            names = [str(index) for index in range(len(first))]
            hint = "; the first line was taken as a row: if it is the header, say --header yes (`header=`)"
            request = request._replace(features=None, drop=())
        columns, target = _chosen_columns(file, names, request, hint)
        position = {name: index for index, name in enumerate(names)}
        kinds = dict.fromkeys(columns, "numbers")
        kinds |= {
            name: "True and False"
            for name, cell in zip(names, second if has_header else first, strict=False)
            if name in kinds and _is_boolean(cell)
        }
        if target is not None:
            kinds[target] = "labels"

        # Every column goes through the parser, so that it sees a row that is too short or too long. The
        # target becomes codes, the order in which its values appear; a column not wanted becomes zeros.
        codes: dict[str, int] = {}
        parsers: dict[str, Callable[[str], float]] = {
            "True and False": _boolean,
            "labels": lambda text: codes.setdefault(text, len(codes)),
            "": lambda text: 0.0,
        }
        converters: dict[int | str, Callable[[str], float]] = {
            index: parsers[kind] for index, name in enumerate(names) if (kind := kinds.get(name, "")) != "numbers"
        }
        layout = Layout(delimiter, names, kinds, has_header)
        lines = itertools.chain([top], lines)
        try:
            table = np.loadtxt(
                lines if request.progress is None else _watched(lines, stream, request.progress),
                delimiter=delimiter,
                quotechar='"',
                comments=None,
                converters=converters,
                ndmin=2,
            )
        except UnicodeError:
            raise
        except ValueError as error:
            _check_cells(file, layout, request)
            raise refusal(file, str(error), "correct the row") from error
        if not all(map(str.strip, codes)) or table.shape[1] != len(names):
            _check_cells(file, layout, request)
            raise refusal(file, f"every row must have {len(names)} fields and a label, got another", "correct the row")

    broken = next((text for text in codes if "\n" in text), None)
    if broken is not None:  # a quote that nobody closed has swallowed the rows after it
        raise refusal(file, f"a label must fit in one line, got {reprlib.repr(broken)}", "close its quote")
    X = feature_matrix(np.take(table, [position[name] for name in columns], axis=1), file, "the table")
    if request.dtype is not None and not all_finite(X, request.dtype):
        _check_cells(file, layout, request)
    y = None
    if target is not None:
        texts = list(codes)
        # Where the file puts a space after each separator, that is no part of the label.
        spaced = any(
            all(cell[:1] == " " for cell in row[1:]) and (row is first or len(row) > 2) for row in (first, second)
        )
        if spaced and target != names[0] and all(text[:1] == " " for text in texts):
            texts = [text[1:] for text in texts]
        y = _csv_labels(texts, table[:, position[target]].astype(np.intp), file, f"column {target!r}", request)
    return X, y, columns if has_header else None


@contextmanager
def _text(file: Path) -> Iterator[TextIO]:
    """Open text in UTF-8, with or without the mark that spreadsheets write, or in UTF-16 or UTF-32 with its mark."""
    with unzipped(file) as binary:
        head = binary.read(4)
        binary.seek(0)
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf-8-sig")
        try:
            if b"\0" in head[:2] and encoding == "utf-8-sig":
                raise UnicodeError("null bytes, as UTF-16 has them")
            with io.TextIOWrapper(binary, encoding=encoding) as stream:
                yield stream
        except UnicodeError as error:
            encoding, found = "UTF-16LE", str(error)
            if isinstance(error, UnicodeDecodeError):
                encoding, found = "windows-1252", f"byte 0x{error.object[error.start]:02x}"
            read = f"gzip -dc {shlex.quote(str(file))} | iconv" if file.suffix == ".gz" else "iconv"
            name = "" if file.suffix == ".gz" else f" {shlex.quote(str(file))}"
            remedy = f"convert it, for example: {read} -f {encoding} -t UTF-8{name} > utf8.csv"
            raise refusal(file, f"must be text in UTF-8, got {found}", remedy) from error


def _watched(lines: Iterable[str], stream: TextIO, show: Callable[[float], object]) -> Iterator[str]:
    """Yield the lines of `stream`, and show now and then which part of the file has been read."""
    size = os.fstat(stream.fileno()).st_size
    for number, line in enumerate(lines):
        if number % LINES_A_REPORT == 0:
            show(os.lseek(stream.fileno(), 0, os.SEEK_CUR) / size)
        yield line


def _has_header(file: Path, first: list[str], second: list[str], request: Request) -> bool:
    """Return whether the first row is a header: it has text, or names that are known, or counts the columns from 0.

    Counting alone can be data too. It is taken for a header of three or more columns, if the second row is not all
    integers, or of ten or more, if the second row does not go on counting; otherwise the caller has to say.
    """
    if request.header != "auto" or not first:
        return request.header == "yes"
    if not all(_is_number(cell) or _is_boolean(cell) for cell in first):
        return True
    if request.features is not None:
        return set(request.features) <= set(first)
    n = len(first)
    if n < 2 or not all(map(_is_count, first)) or not all(int(a) < int(b) for a, b in itertools.pairwise(first)):
        return False
    is_counting = int(first[-1]) == n - 1
    is_integers = all(re.fullmatch("[+-]?[0-9]+", cell.strip()) for cell in second)
    goes_on = [cell.strip() for cell in second] == [str(n + column) for column in range(n)]
    if is_counting and n > 2 and (not is_integers or (n >= 10 and bool(second) and not goes_on)):
        return True
    if is_counting or not is_integers:
        rule = f"the first line may be a header or a row, got {','.join(first[:8])}{',...' if n > 8 else ''}"
        raise refusal(file, rule, "say which it is: --header yes or --header no (`header=`)")
    return False


def _is_count(text: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]{0,17}", text) is not None


def _without_index(file: Path, names: list[str], request: Request) -> Request:
    """Return a request that leaves out the first column if that is an index, and warn.

    pandas and R write row labels under an empty name, which pandas reads as "Unnamed: 0".
    """
    name = names[0] if names else None
    if request.features is not None or name not in ("", "Unnamed: 0") or name in (*request.drop, request.target):
        return request
    what = f"is called {name!r}" if name else "has no name"
    warnings.warn(
        f"{file.name}: the first column {what} and is left out, as an index of pandas or R; rename it to keep it",
        stacklevel=4,
    )
    return request._replace(drop=(*request.drop, name))


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


def _check_cells(file: Path, layout: Layout, request: Request) -> None:
    """Refuse a file by its first row of another length, or by all columns that have bad cells. Slow."""
    groups: dict[str, dict[str, BadColumn]] = {}
    with _text(file) as stream:
        rows = csv.reader(stream, delimiter=layout.delimiter)
        for row in itertools.islice(filter(None, rows), int(layout.has_header), None):
            if len(row) != len(layout.names):
                rule = f"every row must have {len(layout.names)} fields as the first, got {len(row)}"
                raise refusal(file, f"{rule} in line {rows.line_num}", "correct the row")
            for name, cell in zip(layout.names, row, strict=True):
                fault = _fault(cell, layout.kinds.get(name, ""), request)
                if fault is not None:
                    rule, found = fault
                    columns = groups.setdefault(rule, {})
                    bad = columns.get(name) or BadColumn(name, f"{found} in line {rows.line_num}, column {name!r}", 0)
                    columns[name] = bad._replace(n_rows=bad.n_rows + 1)
    if groups:
        droppable = [name for name, kind in layout.kinds.items() if kind != "labels" and layout.has_header]
        raise bad_columns(file, request, {rule: list(group.values()) for rule, group in groups.items()}, droppable)


def _fault(cell: str, kind: str, request: Request) -> tuple[str, str] | None:
    """Return the rule that a cell of a column of some kind breaks, and how a message has it; None if it is right."""
    text, shown = cell.strip(), reprlib.repr(cell)
    if not kind or (kind == "labels" and text):
        return None
    if not text:
        return "no label may be missing" if kind == "labels" else MISSING, "an empty cell"
    if kind == "True and False":
        other = "a column that begins with True or False must hold nothing else"
        return None if _is_boolean(text) else (MISSING if text.lower() in NOT_AVAILABLE else other, shown)
    if not _is_number(text):
        if text.lower() in NOT_AVAILABLE:
            return MISSING, shown
        return f"{TEXT} with a decimal point" if _is_number(text.replace(",", ".")) else TEXT, shown
    value = float(text)
    if request.dtype is not None and not abs(value) <= float(np.finfo(request.dtype).max):
        with np.errstate(over="ignore"):
            rounded = np.float64(value).astype(request.dtype)
        return None if np.isfinite(rounded) else not_finite(value, shown, request)
    return None


def _csv_labels(texts: list[str], codes: Array, file: Path, what: str, request: Request) -> Array:
    """Return the label of each row, whose text is the one at its code."""
    if request.labels != "auto":
        return label_array(texts, what)[codes]
    if all(map(_is_number, texts)):
        fraction = next((code for code, text in enumerate(texts) if float(text) % 1.0 > 0.0), None)  # no NaN is
        if fraction is not None:
            raise not_classes(file, what, texts[fraction], f"row {np.argmax(codes == fraction)}")
    return labels_from_text(texts)[codes]


def read_parquet(file: Path, request: Request) -> Parts:
    """Return features and labels of a .parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{file}: reading .parquet needs pyarrow; install it: {INSTALL_PARQUET}") from error
    with reading(file, "a .parquet file"), pq.ParquetFile(file) as parquet:
        names = _without_stored_index(file, parquet.schema_arrow, request)
        columns, target = _chosen_columns(file, names, request)
        kinds = {name: parquet.schema_arrow.field(name).type for name in columns}
        is_number = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
        text = {name: kind for name, kind in kinds.items() if not any(is_kind(kind) for is_kind in is_number)}
        numbers = [name for name in columns if name not in text]
        table = parquet.read(columns=numbers if target is None else [*numbers, target])

        def nulls(names: Sequence[str]) -> list[BadColumn]:
            found = []
            for name in names:
                column = table.column(name)
                if column.null_count:
                    row = column.is_null().index(True).as_py()
                    found.append(BadColumn(name, f"null at row {row}, column {name!r}", column.null_count))
            return found

        groups = {
            TEXT: [BadColumn(name, f"{kind} in column {name!r}", table.num_rows) for name, kind in text.items()],
            MISSING: nulls(numbers),
            "no label may be missing": [] if target is None else nulls([target]),
        }
        groups = {rule: bad for rule, bad in groups.items() if bad}
        if groups:
            raise bad_columns(file, request, groups, columns)

        X = np.empty((table.num_rows, len(columns)), np.result_type(np.float32, *map(_feature_dtype, kinds.values())))
        for index, name in enumerate(columns):  # one at a time: the table is never there twice
            X[:, index] = table.column(name).to_numpy()
        X = feature_matrix(X, file, "the table")
        check_features(X, file, request, lambda row, column: f"row {row}, column {columns[column]!r}", columns)
        y = None
        if target is not None:
            column = table.column(target)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if pa.types.is_fixed_size_binary(column.type):
                column = column.cast(pa.binary())
            if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
                with reading(file, "labels in UTF-8"):
                    column = column.cast(pa.large_string())
            y = class_labels(column.to_numpy(), file, f"column {target!r}", request)
    return X, y, columns


def _feature_dtype(kind: Any) -> Any:
    return floating(kind.to_pandas_dtype())


def _without_stored_index(file: Path, schema: Any, request: Request) -> list[str]:
    """Return the names of the columns without the index of pandas, of which a named one is warned of.

    What the request names stays.
    """
    stored = (schema.pandas_metadata or {}).get("index_columns", [])
    kept = {*(request.features or ()), *request.drop, request.target}
    index = {name for name in stored if isinstance(name, str)}  # others describe a range, which is not stored
    index |= {name for name in schema.names if re.fullmatch(r"__index_level_\d+__", name)}
    index -= kept
    named = [name for name in schema.names if name in index and not name.startswith("__index_level_")]
    if named and request.features is None:
        warnings.warn(f"{file.name}: {listed(named)} is the index of pandas and is left out as a feature", stacklevel=4)
    return [name for name in schema.names if name not in index]


def _chosen_columns(file: Path, names: list[str], request: Request, hint: str = "") -> tuple[list[str], str | None]:
    """Return the feature columns and the target's among `names`; refusals end with `hint`."""
    repeated = {name: count for name, count in Counter(names).items() if count > 1}
    if repeated:
        times = ", ".join(f"{name!r} {'twice' if n == 2 else f'{n} times'}" for name, n in repeated.items())
        raise refusal(file, f"column names must differ, got {times}", f"rename all but one{hint}")
    wanted, target, drop = request.features, request.target, set(request.drop)
    if drop - set(names):
        rule = f"the columns to drop must be among {listed(names)}, got {listed(sorted(drop - set(names)))}"
        raise refusal(file, rule, f"correct --drop (`drop=`){hint}")
    if target in drop:
        raise refusal(file, f"the target must not be dropped, got {target!r} as both", "name another column")
    kept = [name for name in names if name not in drop]
    if target is None:
        usual = ("target", "label", "labels", "class", "y")
        found = [name for name in kept if name.lower() in usual and name not in (wanted or ())]
        if len(found) == 1:
            target = found[0]
        elif request.need_target:
            rule = f"one column must be called {', '.join(usual[:-1])} or y, got {listed(found or names)}"
            raise refusal(file, rule, f"name the target with --target (`target=`){hint}")
    elif target not in names:
        rule = f"the target must be one of the columns {listed(names)}, got {target!r}"
        raise refusal(file, rule, f"name another with --target (`target=`){hint}")
    if wanted is None:
        wanted = [name for name in kept if name != target]
    known = set(kept)
    missing = [name for name in wanted if name not in known]
    if missing:
        rule = f"the columns must include the features {listed(missing)}, got {listed(names)}"
        raise refusal(file, rule, f"add them{hint}")
    if target in wanted:
        raise refusal(file, f"the target must not be a feature, got {target!r} as both", "name another column")
    if "" in wanted:
        rule = f"every feature must have a name, got none for column {names.index('')}"
        raise refusal(file, rule, "name it, or leave it out: --drop '' (`drop=`)")
    return wanted, target
