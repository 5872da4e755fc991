"""The progress line: one line on stderr, if that is a terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from softmax_xp.cli.terminal import columns, print_to_stderr

if TYPE_CHECKING:
    from softmax_xp.solvers import State

PROGRESS_SECONDS = 0.1  # between two changes of the progress line
LONG_READING = 2.0  # seconds, after which the progress of reading is shown

ShowState: TypeAlias = "Callable[[State], None]"


@contextmanager
def fitting(quiet: bool) -> Iterator[ShowState]:
    """Yield a function that shows a State on the progress line."""
    start = time.perf_counter()
    with progress(quiet) as show:
        show(lambda width: "fitting")
        yield lambda state: show(lambda width: progress_line(state, time.perf_counter() - start, width))


@contextmanager
def reading(quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """Yield a function that shows the fraction of a file that has been read, once reading takes LONG_READING."""
    start = time.perf_counter()
    with progress(quiet) as show:

        def show_fraction(fraction: float) -> None:
            if time.perf_counter() - start >= LONG_READING:
                show(lambda width: f"reading {fraction:.0%}"[:width])

        yield show_fraction


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[Callable[[int], str]], None]]:
    """Yield a function that shows on stderr, if that is a terminal, the text that its argument returns for a width.

    The text overwrites the one before, at most once in PROGRESS_SECONDS, and is erased at the end.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    shown_at, length = -math.inf, 0

    def show(text: Callable[[int], str]) -> None:
        nonlocal shown_at, length
        now = time.perf_counter()
        if now - shown_at >= PROGRESS_SECONDS:
            line = text(columns(sys.stderr) - 1)
            # A carriage return and blanks overwrite a line on every terminal, without escape codes.
            print_to_stderr(f"\r{line:<{length}}", end="")
            shown_at, length = now, len(line)

    try:
        yield show
    finally:
        if length:
            print_to_stderr(f"\r{'':<{length}}\r", end="")


def progress_line(state: State, seconds: float, width: int) -> str:
    """Return the parts of the progress line that fit into `width` characters, the most important first."""
    minutes, seconds = divmod(int(seconds), 60)
    parts = [
        f"iteration {state.n_iter}",
        f"objective {state.objective:.6f}",
        f"gradient norm {state.gradient_norm:.1e}",
        f"{minutes}:{seconds:02d}",
    ]
    while len(parts) > 1 and len("  ".join(parts)) > width:
        del parts[-1]
    return "  ".join(parts)
