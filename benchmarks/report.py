"""What a command leaves: tables on the terminal, one JSON file, figures."""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.measure import CPU, Device, environment

INSTALL = "not installed: pip install '.[bench]'"
FAILED = "failed"  # how the note of a competitor that raised an error begins
OURS = "softmax_xp"  # how the names of our own rows begin

HEADER_WIDTH = 11  # of a column; its words are put below each other

out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str) -> None:
    """Print a table of numbers whose first column is a name; a row's cell beyond the columns is a note, put below."""
    grid = Table(box=box.SIMPLE_HEAD)
    lines = [[escape(str(cell)) for cell in row] for row in rows]
    for i, column in enumerate(columns):
        header = textwrap.fill(column, HEADER_WIDTH, break_long_words=False)
        grid.add_column(escape(header), justify="right" if i else "left", no_wrap=True)
    for line in lines:
        grid.add_row(*line[: len(columns)], style="bold" if line[0].startswith(OURS) else None)
    out.print(escape(title), highlight=False)
    out.print(grid)
    out.print(escape(caption), highlight=False)
    for line in lines:
        if note := " ".join(line[len(columns) :]).strip():
            out.print(f"{line[0]}: {note}", highlight=False)
    out.print()


def say(text: str) -> None:
    """Print a line."""
    out.print(escape(text))


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show progress, on a terminal only, and yield what to call with the name of each step as it begins."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=-1)
        yield lambda name: bar.update(task, description=name, advance=1)


def failure(error: Exception) -> str:
    """Return what a table says of a competitor that raised an error."""
    return f"{FAILED}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text with so many significant digits; "-" for none."""
    if value is None or not math.isfinite(value):
        return "-"
    if value != 0 and not 1e-3 <= abs(value) < 10**6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value) or 1.0)))}f}"


def save(command: str, output: Path, arguments: Mapping[str, object], device: Device = CPU, **results: object) -> None:
    """Write `results`, the arguments and the environment to <command>.json, or -cuda.json, in the folder `output`."""
    output.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "environment": environment(device), "arguments": dict(arguments), **results}
    path = output / f"{command}{device.suffix}.json"
    text = json.dumps(_plain(content), indent=1, allow_nan=False)
    # Lists of numbers on one line each: a JSON string has no line break, so that this touches none.
    text = re.sub(r"\[\n([^][{}]*?)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path.write_text(text + "\n")
    say(f"wrote {path}")


def figure(path: Path, draw: Callable[[Any], None], size: tuple[float, float]) -> None:
    """Let `draw` fill a matplotlib figure of `size` inches, and write it to `path`."""
    if find_spec("matplotlib") is None:
        say(f"no {path.name}: matplotlib is {INSTALL}")
        return
    from matplotlib.figure import Figure

    canvas = Figure(figsize=size, layout="constrained")
    draw(canvas)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=120)
    say(f"wrote {path}")


def _plain(value: Any) -> Any:
    """Return `value` as JSON has it: no NumPy scalars, no paths, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
