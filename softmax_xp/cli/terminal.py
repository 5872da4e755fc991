"""What is printed: lines, tables, warnings, and what becomes of a stream that nobody reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from errno import EIO
from typing import TextIO

import typer

UNREAD = 1  # the exit status of a command whose reader has gone, as in `| head`
NARROWEST_TABLE = 60  # columns of the terminal


def report_line(name: str, value: str) -> str:
    """Return a line of a report: a name, and its value in a column of its own."""
    return f"{name:<17} {value}"


def print_line(name: str, value: str) -> None:
    """Print a line of a report."""
    print(report_line(name, value))


def say(*lines: str) -> bool:
    """Print lines, and return whether they had a reader. Without one, later lines are discarded too."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno != EIO:  # EIO: a terminal that has hung up
            raise
        discard(sys.stdout)
        return False
    return True


def discard(stream: TextIO) -> None:
    """Let all that is still printed to a stream go to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_table(title: str, header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with a title, if that is not empty, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A narrower terminal breaks the lines itself.
    width = max(columns(sys.stdout), NARROWEST_TABLE)
    console = Console(width=width, color_system="auto" if has_color(sys.stdout) else None)
    if title:  # rich would wrap the title of a table at the edge of the table
        console.print(Text(title, style="italic"))
    table = Table()
    for index, name in enumerate(header):
        numbers = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(
            Text(_encodable(name)), justify="right" if numbers else "left", no_wrap=numbers, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(_encodable(cell)) for cell in row))
    console.print(table)


def fits_terminal(header: Sequence[object], rows: Sequence[Sequence[object]]) -> bool:
    """Return whether every row of the table fits into one line of the terminal."""
    from rich.cells import cell_len

    widths = [max(cell_len(_encodable(cell)) for cell in column) for column in zip(header, *rows, strict=True)]
    return sum(widths) + 3 * len(widths) + 1 <= columns(sys.stdout)


def _encodable(cell: object) -> str:
    """Return the text of `cell`, with escapes for the characters that the encoding of stdout does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    return str(cell).encode(encoding, "backslashreplace").decode(encoding)


def columns(stream: TextIO) -> int:
    """Return the width of a terminal in characters; a file or a pipe has no edge at which to break a line."""
    from rich.console import Console

    return Console(file=stream).width if stream.isatty() else 1000


def has_color(stream: TextIO) -> bool:
    """Return whether text may be coloured: on a terminal, unless NO_COLOR (no-color.org) or TERM forbids it."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("dumb", "unknown")


def print_error(message: str, color: str) -> None:
    """Print a message on stderr, in a colour where the terminal has colours."""
    print_to_stderr(typer.style(message, fg=color) if has_color(sys.stderr) else message)


def print_to_stderr(text: str, end: str = "\n") -> None:
    """Print on stderr; if nobody reads it any more, discard what is still printed there."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:  # a terminal that has hung up; the work goes on
        discard(sys.stderr)


def first_line(message: object) -> str:
    """Return the first line of a message."""
    return (str(message).strip().splitlines() or [""])[0]
