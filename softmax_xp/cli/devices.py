"""The command softmax-xp devices."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from softmax_xp.cli.options import DEVICE_VARIABLE, Json
from softmax_xp.cli.terminal import fits_terminal, print_table

if TYPE_CHECKING:
    from softmax_xp.backend import DeviceInfo


def devices(
    as_json: Json = False,
    require: Annotated[
        str | None,
        typer.Option(
            metavar="<device>",
            help="Exit with status 2 unless this device can be used.",
            show_default=False,
            envvar=DEVICE_VARIABLE,
        ),
    ] = None,
) -> None:
    """List the devices of this machine, and say why one cannot be used.

    [bold]Examples[/bold]

    softmax-xp devices

    softmax-xp devices --json

    softmax-xp devices --require cuda
    """
    from softmax_xp import devices, select_backend

    found = devices()
    if as_json:
        print(json.dumps({"devices": [asdict(device) for device in found]}))
    else:
        show_devices(found)
    if require is not None:
        select_backend(require)  # raises, with the reason and the remedy


def show_devices(found: list[DeviceInfo]) -> None:
    """Print a table of devices; if it is wider than the terminal, the reasons below it."""
    header = ["device", "description", "memory", "usable", "reason"]
    rows = [
        [
            device.name,
            device.description,
            "" if device.memory is None else f"{device.memory / 2**30:.1f} GiB",
            "yes" if device.usable else "no",
            device.reason,
        ]
        for device in found
    ]
    if fits_terminal(header, rows):
        print_table("", header, rows)
        return
    # The terminal breaks a long line where it ends, so that a command in a reason can be copied as one line.
    print_table("", header[:-1], [row[:-1] for row in rows])
    for device in found:
        if not device.usable:
            print(f"{device.name}: {device.reason}")
