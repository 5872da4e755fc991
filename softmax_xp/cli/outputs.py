"""Files that a command writes: whether they can be written, and the picture of a fit."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from errno import EACCES, EISDIR, ENOENT, ENOTDIR
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softmax_xp.files.whole import standard_stream

if TYPE_CHECKING:
    from softmax_xp.solvers import State


def check_writable(path: Path) -> None:
    """Raise the error that open() would raise on writing to `path`, before the work is done."""
    folder = path.parent
    code = 0
    if standard_stream(path) is not None:
        return
    if path.is_dir():
        code = EISDIR
    elif path.exists() and not path.is_file():  # a device, such as /dev/null
        code = 0 if os.access(path, os.W_OK) else EACCES
    elif not folder.is_dir():
        code, path = (ENOTDIR if folder.exists() else ENOENT), folder
    elif not os.access(folder, os.W_OK | os.X_OK):
        code, path = EACCES, folder
    if code:
        raise OSError(code, os.strerror(code), str(path))


def check_kept(path: Path, option: str, others: Sequence[Path], what: str) -> None:
    """Raise if writing to `path` would overwrite one of the others."""
    if any(_is_same_file(path, other) for other in others):
        raise ValueError(f"{option} must not be {what}, got {str(path)!r}, which would be overwritten; name another")


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist
        return os.path.realpath(path) == os.path.realpath(other)


def empty_figure(path: Path) -> Any:
    """Return a figure that can be written to `path`; raise if it cannot, before the work is done."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        from softmax_xp.trainer import INSTALL_PLOT

        raise ImportError(f"--plot needs matplotlib; install it: {INSTALL_PLOT}") from error
    check_writable(path)
    figure = Figure(figsize=(7, 6), layout="constrained")
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"--plot must end in .png, .pdf, .svg or the like, got {str(path)!r}; for example curves.png")
    return figure


def drawn_curves(figure: Any, curve: list[State], path: Path) -> bytes:
    """Return the picture, in the format that the ending of `path` names."""
    above, below = figure.subplots(2, sharex=True)
    steps = [state.n_iter for state in curve]
    above.plot(steps, [state.objective for state in curve])
    above.set(ylabel="objective")
    below.semilogy(steps, [state.gradient_norm for state in curve], label="gradient norm")
    if curve and not math.isnan(curve[-1].estimated_gap):
        below.semilogy(steps, [state.estimated_gap for state in curve], label="estimated gap to the optimum")
    below.set(xlabel="iteration")
    below.legend()
    stream = BytesIO()
    figure.savefig(stream, format=path.suffix[1:].lower())
    return stream.getvalue()
