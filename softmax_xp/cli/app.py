"""The command softmax-xp: its subcommands, and how an exception becomes one line and an exit status."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from softmax_xp import __version__
from softmax_xp.cli.devices import devices
from softmax_xp.cli.evaluate import evaluate
from softmax_xp.cli.predict import predict
from softmax_xp.cli.signals import interruption
from softmax_xp.cli.terminal import UNREAD, discard, first_line, print_error
from softmax_xp.cli.train import train

app = typer.Typer(rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]})
for command in (train, predict, evaluate, devices):
    app.command()(command)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", metavar="", help="Print the version and exit.")] = False,
) -> None:
    """Train and use softmax regression (multinomial logistic regression), on the CPU or a CUDA GPU.

    [bold]Examples[/bold]

    softmax-xp train                      a first try, with scikit-learn's digits

    softmax-xp train --help               every option of a command, with examples
    """
    if version:
        print(f"softmax-xp {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(args: Sequence[str] | None = None) -> None:
    """Run the command and exit.

    The status is 0 when all is done, 2 with one line on stderr for a user's error, 130 after Ctrl-C, 143 after SIGTERM,
    129 after SIGHUP, and UNREAD.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):  # a label or a file name that cannot be encoded is shown with escapes
            stream.reconfigure(errors="backslashreplace")
    kept: list[object] = []  # warnings, printed when the work is done, so that an error is one line
    with warnings.catch_warnings(), interruption.handled():
        warnings.filterwarnings("ignore", "X does not have valid feature names")  # read_table matches them
        warnings.showwarning = lambda message, *_: kept.append(message)
        try:
            command = typer.main.get_command(app)
            status = command.main(args, prog_name="softmax-xp", standalone_mode=False) or 0
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            status = interruption.status
        except BrokenPipeError:
            discard(sys.stdout)
            status = UNREAD
        except Exception as error:
            if interruption.was_raised:  # a library has made this error of the KeyboardInterrupt
                status = interruption.status
            else:
                print_error(f"softmax-xp: error: {_error_line(error)}", "red")
                status = 2
        interruption.defer()
        if interruption.number is not None and status != 2:
            status = interruption.status
        if status in (0, interruption.status):
            for message in kept:
                print_error(f"warning: {first_line(message)}", "yellow")
        if status == interruption.status:
            print_error("softmax-xp: interrupted", "yellow")
    sys.exit(status)


def _error_line(error: Exception) -> str:
    """Return the message of a user's error, in one line; raise other exceptions again, because they are bugs."""
    from softmax_xp import DeviceUnavailableError

    if hasattr(error, "format_message"):  # typer's own, whose classes are private
        return first_line(error.format_message())
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory; {first_line(error) or 'use fewer rows or features'}"
    if isinstance(error, OSError | ValueError | TypeError | ImportError | DeviceUnavailableError):
        return first_line(error)
    raise error
