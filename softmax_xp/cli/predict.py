"""The command softmax-xp predict."""

from __future__ import annotations

import csv
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from softmax_xp.cli import data as inputs
from softmax_xp.cli.options import DataFile, Device, HasHeader, Header, ModelFile
from softmax_xp.cli.outputs import check_kept, check_writable
from softmax_xp.cli.progress import reading
from softmax_xp.files.whole import whole_file

CSV_ENDINGS = (".csv", ".txt", "")


def predict(
    model: ModelFile,
    data: DataFile,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="<name>",
            help="Column with labels, which is left out. Needed only where the file does not name its columns.",
            show_default=False,
        ),
    ] = None,
    proba: Annotated[
        bool, typer.Option("--proba", metavar="", help="Write the probability of each class, not the label.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this .csv file.", show_default=False)
    ] = None,
    header: HasHeader = Header.AUTO,
    device: Device = "auto",
) -> None:
    """Predict the label of each row, and print them as CSV with a header.

    Columns are found by the names that they had in training. Their order does not
    matter, and other columns are ignored.

    [bold]Examples[/bold]

    softmax-xp predict model.safetensors new.csv

    softmax-xp predict model.safetensors new.csv --proba -o probabilities.csv
    """
    if output is not None:
        check_writable(output)
        if output.suffix.lower() not in CSV_ENDINGS and (output.is_file() or not output.exists()):
            example = output.with_suffix(".csv")
            raise ValueError(f"--output must end in .csv (CSV is written), got {str(output)!r}; name it {example}")
        check_kept(output, "--output", [model, *inputs.files_of(data, target)], "a file to be read")
    with reading() as show:
        classifier, table = inputs.model_and_table(
            model, data, device, target=target, need_target=False, header=header.value, progress=show
        )
    values = classifier.predict_proba(table.X) if proba else classifier.predict(table.X).reshape(-1, 1)
    with whole_file(output, encoding="utf-8", newline="") if output else nullcontext(sys.stdout) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(classifier.classes_ if proba else ["label"])
        writer.writerows(values)
