"""The command softmax-xp: train, predict, evaluate, devices. All that the command prints is printed here."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from enum import StrEnum
from errno import EACCES, EIO, EISDIR, ENOENT, ENOTDIR
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeAlias

import typer

from softmax_xp import __version__, inputs
from softmax_xp._files import standard_stream, whole_file
from softmax_xp._signals import Interrupted, interruption

# NumPy, scikit-learn and rich are imported where they are used, so that --help answers at once.
if TYPE_CHECKING:
    import numpy as np

    from softmax_xp import SoftmaxClassifier
    from softmax_xp.backend import DeviceInfo
    from softmax_xp.readers import Table
    from softmax_xp.solvers import State

UNREAD = 1  # the exit status of a command whose reader has gone, as in `| head`
CSV_ENDINGS = (".csv", ".txt", "")
MANY_CLASSES = 20  # with more, the most confused pairs are printed instead of the confusion matrix
MOST_CONFUSED = 10
NARROWEST_TABLE = 60  # columns of the terminal
PROGRESS_SECONDS = 0.1  # between two changes of the progress line
SCORES = ("precision", "recall", "f1")
LONG_READING = 2.0  # seconds, after which the progress of reading is shown

ShowState: TypeAlias = "Callable[[State], None]"


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
DEVICE_VARIABLE = "SOFTMAX_XP_DEVICE"  # the default of --device; a container image sets it
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

app = typer.Typer(rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]})


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


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Rows to train on: a .csv, .tsv, .parquet, .npz, .npy or IDX file, or - for standard input. "
            "Without one: digits.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Test on this file, and hold no rows out.", show_default=False)
    ] = None,
    target: Target = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="<name>", help="Leave out this column. Repeat the option for more.", show_default=False),
    ] = None,
    labels: Annotated[
        Labels,
        typer.Option(
            metavar="auto|text",
            help="text makes text of all labels. auto keeps them as the file has them; those of a .csv are numbers if "
            "Python would write each in the same way, so 01 is text.",
        ),
    ] = Labels.AUTO,
    header: HasHeader = Header.AUTO,
    device: Device = "auto",
    solver: Annotated[
        Solver,
        typer.Option(
            metavar="<name>",
            help="auto, lbfgs and newton-cg reach the optimum; auto is the fastest on most data. sgd, adam and adamw "
            "take mini-batches and only come near it.",
            rich_help_panel=FIT,
        ),
    ] = Solver.AUTO,
    C: Annotated[
        float,
        typer.Option(
            "--C",
            metavar="<number>",
            help="Inverse strength of the L2 penalty: the smaller, the stronger. inf is no penalty.",
            rich_help_panel=FIT,
        ),
    ] = 1.0,
    tol: Annotated[
        float,
        typer.Option(
            metavar="<number>",
            help="Stop when the loss is this near its minimum: 0.0001 is 0.01 %. With sgd, adam and adamw, stop when "
            "the norm of the gradient is this small.",
            rich_help_panel=FIT,
        ),
    ] = 1e-4,
    max_iter: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="<number>",
            help="Stop after this many iterations; with sgd, adam and adamw, epochs.",
            rich_help_panel=FIT,
        ),
    ] = 1000,
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize",
            metavar="",
            help="Scale each feature to mean 0 and variance 1 before the fit.",
            rich_help_panel=FIT,
        ),
    ] = False,
    class_weight: Annotated[
        ClassWeight | None,
        typer.Option(
            help="Give each class the same weight, however many rows it has.",
            show_default=False,
            rich_help_panel=FIT,
        ),
    ] = None,
    loss: Annotated[
        Loss,
        typer.Option(
            metavar="<name>",
            help="What a row costs: cross_entropy; gce or sce, where labels may be wrong; focal. Fits of the last "
            "three end at a local minimum.",
            rich_help_panel=FIT,
        ),
    ] = Loss.CROSS_ENTROPY,
    label_smoothing: Annotated[
        float,
        typer.Option(
            metavar="<fraction>",
            help="Fraction of each label that is spread evenly over the classes.",
            rich_help_panel=FIT,
        ),
    ] = 0.0,
    holdout: Annotated[
        float,
        typer.Option(
            metavar="<fraction>", help="Fraction of the rows to hold out and test on. 0 is none.", rich_help_panel=FIT
        ),
    ] = 0.2,
    dtype: Annotated[
        DType, typer.Option(help="Floating-point numbers to compute with.", rich_help_panel=FIT)
    ] = DType.FLOAT32,
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="<name>",
            help="Matrix products on a GPU: float32, or tf32 or bfloat16, which are faster. The fit ends in float32 "
            "with all three.",
            rich_help_panel=FIT,
        ),
    ] = Precision.FLOAT32,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="<number>",
            help="Threads on the CPU. Without it, as many as there are usable cores.",
            show_default=False,
            rich_help_panel=FIT,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**32 - 1,
            metavar="<number>",
            help="Random seed. It chooses the held-out rows and the mini-batches.",
            rich_help_panel=FIT,
        ),
    ] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Write the model to this file.", rich_help_panel=OUTPUT)
    ] = Path("model.safetensors"),
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw loss, gradient norm and estimated gap of each iteration into this image (.png, .svg, .pdf).",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Train a classifier, test it on held-out rows, and write it to a file.

    The loss that is printed is the mean over the rows plus the penalty. The model
    takes features as they are in the file, also after --standardize.

    [bold]Examples[/bold]

    softmax-xp train

    softmax-xp train iris.csv --target species --standardize

    softmax-xp train train-images-idx3-ubyte --test t10k-images-idx3-ubyte

    softmax-xp train survey.csv --target answer --drop id --drop name

    softmax-xp train X.npy --C 0.01 --plot curves.png --output probe.safetensors
    """
    import numpy as np
    from sklearn.preprocessing import StandardScaler

    from softmax_xp import SoftmaxClassifier, select_backend
    from softmax_xp._arrays import check_real
    from softmax_xp.solvers import Status

    # Check all that can be checked before the data are read.
    check_real(C, "--C", low=0.0, include_low=False, remedy="choose a value such as 1.0; inf means no penalty")
    remedy = "choose a value such as 1e-4"
    check_real(tol, "--tol", low=0.0, include_low=False, high=math.inf, include_high=False, remedy=remedy)
    remedy = "choose a share such as 0.2, or 0 for none"
    check_real(holdout, "--holdout", low=0.0, high=1.0, include_high=False, remedy=remedy)
    remedy = "choose a share such as 0.1, or 0 for none"
    check_real(label_smoothing, "--label-smoothing", low=0.0, high=1.0, remedy=remedy)
    select_backend(device)
    _check_writable(output)
    figure = None if plot is None else _figure(plot)
    read = inputs.files_of(data, target) + inputs.files_of(test, None)
    _check_kept(output, "--output", read, "a file to be read")
    if standard_stream(output) == 1:
        raise ValueError(f"--output must not be where the report is printed, got {str(output)!r}; name a file")
    if plot is not None:
        _check_kept(plot, "--plot", read, "a file to be read")
        _check_kept(plot, "--plot", [output], "that of --output")

    # Standardised features have another range than those of the file.
    options = {"header": header.value, "dtype": "float64" if standardize else dtype.value}
    with _reading(as_json) as show:
        table = inputs.training_table(data, target, drop or [], labels=labels.value, progress=show, **options)
        if test is None:
            X, y, X_test, y_test = inputs.split(table, holdout, seed)
        else:
            X, y = table.X, np.asarray(table.y)
            X_test, y_test = inputs.test_rows(test, target, table, progress=show, **options)
    scaler = StandardScaler().fit(X) if standardize else None
    model = SoftmaxClassifier(
        C=C,
        tol=tol,
        class_weight=None if class_weight is None else class_weight.value,
        loss=loss.value,
        label_smoothing=label_smoothing,
        max_iter=max_iter,
        random_state=seed,
        solver=solver.value,
        device=device,
        dtype=dtype.value,
        workers=workers,
        precision=precision.value,
    )
    start = time.perf_counter()
    curve = _fit(model, X if scaler is None else scaler.transform(X), y, quiet=as_json)
    seconds = time.perf_counter() - start
    if scaler is not None:
        _fold(model, scaler.mean_, scaler.scale_)
    _name_features(model, table.feature_names)
    drawing = None if plot is None else _drawing(figure, curve, plot)

    replaces = output.is_file()
    report = {
        "device": model.device_,
        "n_samples": X.shape[0],
        "n_features": X.shape[1],
        "classes": model.classes_.tolist(),
        "objective": model.objective_,
        "gradient_norm": model.gradient_norm_,
        "estimated_gap": model.estimated_gap_ if math.isfinite(model.estimated_gap_) else None,
        "n_iter": int(model.n_iter_[0]),
        "converged": model.converged_,
        "seconds": seconds,
        "train_accuracy": model.score(X, y),
        "test_accuracy": model.score(X_test, y_test) if len(X_test) else None,
        "test_rows": len(X_test),
        "output": str(output),
    } | ({"replaced": True} if replaces else {})
    if as_json:
        lines = [json.dumps(report)]
    else:
        size = f"{X.shape[0]} rows, {X.shape[1]} features, {len(model.classes_)} classes"
        lines = [_line("data", f"{table.source}: {size}")]
        lines.append(_line("device", model.device_))
        of_loss = "" if loss is Loss.CROSS_ENTROPY else f" ({loss.value})"
        lines.append(_line("final loss", f"{model.objective_:.6f}{of_loss}"))
        lines.append(_line("gradient norm", f"{model.gradient_norm_:.1e}"))
        if math.isinf(model.estimated_gap_):
            lines.append(_line("estimated gap", "unknown"))
        elif not math.isnan(model.estimated_gap_):
            lowest = "the lowest loss" if loss is Loss.CROSS_ENTROPY else "a local minimum"
            lines.append(_line("estimated gap", f"{model.estimated_gap_:.1e} above {lowest}"))
        lines.append(_line("iterations", f"{report['n_iter']} in {seconds:.2f} s"))
        lines.append(_line("train accuracy", f"{report['train_accuracy']:.4f} ({X.shape[0]} rows)"))
        if len(X_test):
            name = "held-out accuracy" if test is None else "test accuracy"
            lines.append(_line(name, f"{report['test_accuracy']:.4f} ({len(X_test)} rows)"))
    # All that can fail comes before a file is replaced, and the model is written last.
    is_read = _say(*lines)
    if plot is not None and drawing is not None:
        with whole_file(plot, "wb") as stream:
            stream.write(drawing)
    model.save(output)
    if not as_json:
        if plot is not None:
            is_read &= _say(f"curves written to {plot}")
        is_read &= _say(f"model written to {output}{', in place of the old one' if replaces else ''}")
    if model.status_ is Status.INTERRUPTED:
        return interruption.status
    return 0 if is_read else UNREAD


@app.command()
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
        _check_writable(output)
        if output.suffix.lower() not in CSV_ENDINGS and (output.is_file() or not output.exists()):
            example = output.with_suffix(".csv")
            raise ValueError(f"--output must end in .csv (CSV is written), got {str(output)!r}; name it {example}")
        _check_kept(output, "--output", [model, *inputs.files_of(data, target)], "a file to be read")
    with _reading() as show:
        classifier, table = inputs.model_and_table(
            model, data, device, target=target, need_target=False, header=header.value, progress=show
        )
    values = classifier.predict_proba(table.X) if proba else classifier.predict(table.X).reshape(-1, 1)
    with whole_file(output, encoding="utf-8", newline="") if output else nullcontext(sys.stdout) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(classifier.classes_ if proba else ["label"])
        writer.writerows(values)


@app.command()
def evaluate(
    model: ModelFile,
    data: DataFile,
    target: Target = None,
    header: HasHeader = Header.AUTO,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare a model's predictions with the labels in a file.

    Prints the accuracy, the log-loss, the precision, recall and F1 of each class,
    and how many rows of each class were predicted as which. The log-loss is the
    mean of -log p, where p is the predicted probability of the true class.

    [bold]Examples[/bold]

    softmax-xp evaluate model.safetensors test.csv --target species

    softmax-xp evaluate model.safetensors t10k-images-idx3-ubyte --json
    """
    with _reading(as_json) as show:
        classifier, table = inputs.model_and_table(
            model, data, device, target=target, header=header.value, progress=show
        )
    report: dict[str, Any] = {"device": classifier.device_, "n_samples": len(table.X)} | _scores(classifier, table)
    if as_json:
        print(json.dumps(report))
        return
    _print_line("data", f"{table.source}: {report['n_samples']} rows")
    _print_line("device", report["device"])
    _print_line("accuracy", f"{report['accuracy']:.4f}")
    _print_line("log-loss", f"{report['log_loss']:.6f}")
    _print_scores(report)


@app.command()
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
        _show_devices(found)
    if require is not None:
        select_backend(require)  # raises, with the reason and the remedy


def _print_scores(report: dict[str, Any]) -> None:
    names = [row["label"] for row in report["classes"]]
    scores = [[row["label"], *(f"{row[k]:.4f}" for k in SCORES), row["support"]] for row in report["classes"]]
    _print_table("Scores of each class", ["class", *SCORES, "support"], scores)
    counts = {(pair["true"], pair["predicted"]): pair["rows"] for pair in report["confusion"]}
    matrix = [[true, *(counts.get((true, predicted), 0) for predicted in names)] for true in names[:MANY_CLASSES]]
    if len(names) <= MANY_CLASSES and _fits(["", *names], matrix):
        _print_table("Confusion: true classes down, predicted ones across", ["", *names], matrix)
    else:
        mistakes = [list(pair.values()) for pair in report["confusion"] if pair["true"] != pair["predicted"]]
        mistakes = sorted(mistakes, key=lambda row: -row[2])[:MOST_CONFUSED]
        _print_table(f"The {MOST_CONFUSED} most confused pairs", ["true", "predicted", "rows"], mistakes)


def _show_devices(found: list[DeviceInfo]) -> None:
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
    if _fits(header, rows):
        _print_table("", header, rows)
        return
    # The terminal breaks a long line where it ends, so that a command in a reason can be copied as one line.
    _print_table("", header[:-1], [row[:-1] for row in rows])
    for device in found:
        if not device.usable:
            print(f"{device.name}: {device.reason}")


# --- Fit and scores ---


def _fit(model: SoftmaxClassifier, X: np.ndarray, y: np.ndarray, quiet: bool) -> list[State]:
    """Fit, with a progress line on a terminal; return the State after each step."""
    from sklearn.exceptions import ConvergenceWarning

    curve: list[State] = []
    with warnings.catch_warnings(record=True) as caught, _fitting(quiet) as show:
        warnings.simplefilter("always", ConvergenceWarning)

        def record(state: State) -> None:
            curve.append(replace(state, params=None, memory={}))  # the arrays of each step would fill the memory
            show(state)
            if interruption.number is not None:  # Python drops a KeyboardInterrupt that a finaliser raises
                raise Interrupted

        model.set_params(callbacks=[record]).fit(X, y)
        interruption.defer()  # a model that is there is written
    for warning in caught:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    return curve


@contextmanager
def _fitting(quiet: bool) -> Iterator[ShowState]:
    """Yield a function that shows a State on the progress line."""
    start = time.perf_counter()
    with _progress(quiet) as show:
        show(lambda width: "fitting")
        yield lambda state: show(lambda width: _progress_line(state, time.perf_counter() - start, width))


@contextmanager
def _reading(quiet: bool = False) -> Iterator[Callable[[float], None]]:
    """Yield a function that shows the fraction of a file that has been read, once reading takes LONG_READING."""
    start = time.perf_counter()
    with _progress(quiet) as show:

        def show_fraction(fraction: float) -> None:
            if time.perf_counter() - start >= LONG_READING:
                show(lambda width: f"reading {fraction:.0%}"[:width])

        yield show_fraction


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Callable[[int], str]], None]]:
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
            line = text(_columns(sys.stderr) - 1)
            # A carriage return and blanks overwrite a line on every terminal, without escape codes.
            _print_to_stderr(f"\r{line:<{length}}", end="")
            shown_at, length = now, len(line)

    try:
        yield show
    finally:
        if length:
            _print_to_stderr(f"\r{'':<{length}}\r", end="")


def _progress_line(state: State, seconds: float, width: int) -> str:
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


def _fold(model: SoftmaxClassifier, mean: np.ndarray, scale: np.ndarray) -> None:
    """Change a model of (X - mean) / scale into a model of X, in float64: float32 rounds large means too much."""
    import numpy as np

    model.coef_ = model.coef_.astype(np.float64) / scale  # (K, D)
    model.intercept_ = model.intercept_.astype(np.float64) - model.coef_ @ mean
    model.dtype = "float64"


def _name_features(model: SoftmaxClassifier, names: list[str] | None) -> None:
    import numpy as np

    if names is not None:
        model.feature_names_in_ = np.array(names, dtype=object)


def _scores(classifier: SoftmaxClassifier, table: Table) -> dict[str, Any]:
    import numpy as np
    from sklearn.metrics import precision_recall_fscore_support

    from softmax_xp._arrays import row_blocks

    classes = classifier.classes_
    true = inputs.class_indices(table, classes)  # (n,)
    predicted = np.searchsorted(classes, classifier.predict(table.X))  # (n,)
    loss = 0.0
    for rows in row_blocks(len(true), len(classes) * 8):
        log_proba = classifier.predict_log_proba(table.X[rows])  # (m, K)
        loss -= float(np.sum(log_proba[np.arange(len(log_proba)), true[rows]], dtype=np.float64))
    scores = precision_recall_fscore_support(true, predicted, labels=np.arange(len(classes)), zero_division=0.0)
    pairs, counts = np.unique(np.stack([true, predicted]), axis=1, return_counts=True)
    labels = classes.tolist()
    return {
        "accuracy": float(np.mean(true == predicted)),
        "log_loss": loss / len(true),
        "classes": [
            dict(zip(("label", *SCORES, "support"), row, strict=True))
            for row in zip(labels, *(score.tolist() for score in scores), strict=True)
        ],
        "confusion": [
            {"true": labels[i], "predicted": labels[j], "rows": n}
            for i, j, n in zip(*pairs.tolist(), counts.tolist(), strict=True)
        ],
    }


# --- Files out ---


def _check_writable(path: Path) -> None:
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


def _check_kept(path: Path, option: str, others: Sequence[Path], what: str) -> None:
    """Raise if writing to `path` would overwrite one of the others."""
    if any(_is_same_file(path, other) for other in others):
        raise ValueError(f"{option} must not be {what}, got {str(path)!r}, which would be overwritten; name another")


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist
        return os.path.realpath(path) == os.path.realpath(other)


def _figure(path: Path) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        from softmax_xp.trainer import INSTALL_PLOT

        raise ImportError(f"--plot needs matplotlib; install it: {INSTALL_PLOT}") from error
    _check_writable(path)
    figure = Figure(figsize=(7, 6), layout="constrained")
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"--plot must end in .png, .pdf, .svg or the like, got {str(path)!r}; for example curves.png")
    return figure


def _drawing(figure: Any, curve: list[State], path: Path) -> bytes:
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


# --- Text out ---


def _line(name: str, value: str) -> str:
    return f"{name:<17} {value}"


def _print_line(name: str, value: str) -> None:
    print(_line(name, value))


def _say(*lines: str) -> bool:
    """Print lines, and return whether they had a reader. Without one, later lines are discarded too."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno != EIO:  # EIO: a terminal that has hung up
            raise
        _discard(sys.stdout)
        return False
    return True


def _discard(stream: TextIO) -> None:
    """Let all that is still printed to a stream go to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print_table(title: str, header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A narrower terminal breaks the lines itself.
    width = max(_columns(sys.stdout), NARROWEST_TABLE)
    console = Console(width=width, color_system="auto" if _has_color(sys.stdout) else None)
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


def _fits(header: Sequence[object], rows: Sequence[Sequence[object]]) -> bool:
    """Return whether every row of the table fits into one line of the terminal."""
    from rich.cells import cell_len

    widths = [max(cell_len(_encodable(cell)) for cell in column) for column in zip(header, *rows, strict=True)]
    return sum(widths) + 3 * len(widths) + 1 <= _columns(sys.stdout)


def _encodable(cell: object) -> str:
    """Return the text of `cell`, with escapes for the characters that the encoding of stdout does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    return str(cell).encode(encoding, "backslashreplace").decode(encoding)


def _columns(stream: TextIO) -> int:
    """Return the width of a terminal in characters; a file or a pipe has no edge at which to break a line."""
    from rich.console import Console

    return Console(file=stream).width if stream.isatty() else 1000


def _has_color(stream: TextIO) -> bool:
    """Return whether text may be coloured: on a terminal, unless NO_COLOR (no-color.org) or TERM forbids it."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _print_error(message: str, color: str) -> None:
    _print_to_stderr(typer.style(message, fg=color) if _has_color(sys.stderr) else message)


def _print_to_stderr(text: str, end: str = "\n") -> None:
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:  # a terminal that has hung up; the work goes on
        _discard(sys.stderr)


def _first_line(message: object) -> str:
    return (str(message).strip().splitlines() or [""])[0]


# --- From exceptions to exit statuses ---


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
            _discard(sys.stdout)
            status = UNREAD
        except Exception as error:
            if interruption.was_raised:  # a library has made this error of the KeyboardInterrupt
                status = interruption.status
            else:
                _print_error(f"softmax-xp: error: {_error_line(error)}", "red")
                status = 2
        interruption.defer()
        if interruption.number is not None and status != 2:
            status = interruption.status
        if status in (0, interruption.status):
            for message in kept:
                _print_error(f"warning: {_first_line(message)}", "yellow")
        if status == interruption.status:
            _print_error("softmax-xp: interrupted", "yellow")
    sys.exit(status)


def _error_line(error: Exception) -> str:
    """Return the message of a user's error, in one line; raise other exceptions again, because they are bugs."""
    from softmax_xp import DeviceUnavailableError

    if hasattr(error, "format_message"):  # typer's own, whose classes are private
        return _first_line(error.format_message())
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory; {_first_line(error) or 'use fewer rows or features'}"
    if isinstance(error, OSError | ValueError | TypeError | ImportError | DeviceUnavailableError):
        return _first_line(error)
    raise error
