"""Files that hold named columns: .csv and .tsv, gzipped or not, and .parquet."""

import csv
import gzip
import itertools
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from softmax_xp.readers.checks import (
    Array,
    Parts,
    Request,
    class_labels,
    feature_matrix,
    floating,
    listed,
    reading,
    refusal,
)

INSTALL_PARQUET = "pip install 'pyarrow>=17'"  # the extra parquet


def read_csv(file: Path, request: Request) -> Parts:
    """Return features and labels of text in columns."""
    with reading(file, "UTF-8 text in columns"), _text(file) as stream:
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
            raise refusal(file, "must hold at least one sample, got no rows", "check how it was written")

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
            raise refusal(file, rule, remedy if request.features is None else "correct the row") from error
        if "" in codes or table.shape[1] != len(names):
            rule = f"every row must have {len(names)} fields and a label, got another"
            rule = _bad_cell(file, delimiter, names, kinds, has_header) or rule
            raise refusal(file, rule, "correct the row")

    broken = next((text for text in codes if "\n" in text), None)
    if broken is not None:  # a quote that nobody closed has swallowed the rows after it
        raise refusal(file, f"a label must fit in one line, got {reprlib.repr(broken)}", "close its quote")
    X = feature_matrix(np.take(table, [position[name] for name in columns], axis=1), file, "the table")
    y = None
    if target is not None:
        labels = _parsed_labels(list(codes))[table[:, position[target]].astype(np.intp)]
        y = class_labels(labels, file, f"column {target!r}")
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


def read_parquet(file: Path, request: Request) -> Parts:
    """Return features and labels of a .parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{file}: reading .parquet needs pyarrow; install it: {INSTALL_PARQUET}") from error
    with reading(file, "a .parquet file"), pq.ParquetFile(file) as parquet:
        # pandas stores an index without a name as such a column; a row number is no feature.
        names = [name for name in parquet.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)]
        columns, target = _chosen_columns(file, names, request)
        for name in columns:
            kind = parquet.schema_arrow.field(name).type
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
                rule = f"features must be numbers, got {reprlib.repr(str(kind))} in column {name!r}"
                remedy = "encode it as numbers, or leave it out with train --drop (`drop=`)"
                raise refusal(file, rule, remedy if request.features is None else "encode it as numbers")
        table = parquet.read(columns=columns if target is None else [*columns, target])

        def values(name: str) -> Any:
            column = table.column(name)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if column.null_count:
                rule = f"no value may be null, got {column.null_count} in column {name!r}"
                raise refusal(file, rule, "fill them in, or leave out their rows")
            text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
            if any(is_text(column.type) for is_text in text):
                return np.array(column.to_pylist(), dtype=str)
            return column.to_numpy()

        dtypes = [floating(table.schema.field(name).type.to_pandas_dtype()) for name in columns]
        X = np.empty((table.num_rows, len(columns)), np.result_type(np.float32, *dtypes))
        for index, name in enumerate(columns):  # one at a time: the table is never there twice
            X[:, index] = values(name)
        y = None if target is None else class_labels(values(target), file, f"column {target!r}")
    return feature_matrix(X, file, "the table"), y, columns


def _chosen_columns(file: Path, names: list[str], request: Request) -> tuple[list[str], str | None]:
    """Pick the feature columns and the target's among `names`."""
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if repeated:
        raise refusal(file, f"column names must differ, got {listed(repeated)} twice", "rename one")
    wanted, target, drop = request.features, request.target, set(request.drop)
    if drop - set(names):
        rule = f"the columns to drop must be among {listed(names)}, got {listed(sorted(drop - set(names)))}"
        raise refusal(file, rule, "correct --drop (`drop=`)")
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
            raise refusal(file, rule, "name the target with --target (`target=`)")
    elif target not in names:
        rule = f"the target must be one of the columns {listed(names)}, got {target!r}"
        raise refusal(file, rule, "name another with --target (`target=`)")
    if wanted is None:
        wanted = [name for name in kept if name != target]
    known = set(kept)
    missing = [name for name in wanted if name not in known]
    if missing:
        rule = f"the columns must include the features {listed(missing)}, got {listed(names)}"
        raise refusal(file, rule, "add them")
    if target in wanted:
        raise refusal(file, f"the target must not be a feature, got {target!r} as both", "name another column")
    if "" in wanted:
        rule = f"every feature must have a name, got none for column {names.index('')}"
        raise refusal(file, rule, "name it, or leave it out (pandas: to_csv(..., index=False))")
    return wanted, target
