"""Arguments and options that several commands share, and the values of options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer


class Solver(StrEnum):
    """Values of --solver."""

    AUTO = "auto"
    LBFGS = "lbfgs"
    NEWTON_CG = "newton-cg"
    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


class Loss(StrEnum):
    """Values of --loss."""

    CROSS_ENTROPY = "cross_entropy"
    GCE = "gce"
    SCE = "sce"
    FOCAL = "focal"


class Precision(StrEnum):
    """Values of --precision."""

    FLOAT32 = "float32"
    TF32 = "tf32"
    BFLOAT16 = "bfloat16"


class DType(StrEnum):
    """Values of --dtype."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Labels(StrEnum):
    """Values of --labels."""

    AUTO = "auto"
    TEXT = "text"


class Header(StrEnum):
    """Values of --header."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


class ClassWeight(StrEnum):
    """Values of --class-weight."""

    BALANCED = "balanced"


DEVICE_VARIABLE = "SOFTMAX_XP_DEVICE"  # the default of --device; a container image sets it

ModelFile: TypeAlias = Annotated[Path, typer.Argument(help="A model that train wrote.", show_default=False)]
DataFile: TypeAlias = Annotated[
    Path, typer.Argument(help="A file of a kind that train reads, with the same features.", show_default=False)
]
Target: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="<name>",
        help="Column (.csv, .tsv, .parquet) or array (.npz) with the labels; for .npy and IDX the file with them. "
        "Not needed where the name is a usual one, such as target, label or y.",
        show_default=False,
    ),
]
HasHeader: TypeAlias = Annotated[
    Header,
    typer.Option(
        "--header",
        metavar="auto|yes|no",
        help="Whether the first line of a .csv has column names. auto: yes if it has text, or counts from 0.",
    ),
]
Device: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="<device>",
        help="Where to compute: auto (a usable GPU, else the CPU), cpu, cuda or cuda:<index>.",
        envvar=DEVICE_VARIABLE,
        autocompletion=lambda: ["auto", "cpu", "cuda"],
    ),
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", metavar="", help="Print one JSON object, for another program to read.")
]
FIT, OUTPUT = "How to fit", "Output"  # panels of `train --help`
