"""The command softmax-xp: train, predict, evaluate, devices. All printing is here."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from enum import StrEnum
from errno import EACCES, EIO, EISDIR, ENOENT, ENOTDIR
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

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
    from softmax_xp.solvers import Iterate

UNREAD = 1  # the exit status of a command whose reader has gone, as in `| head`
CSV_ENDINGS = (".csv", ".txt", "")
MANY_CLASSES = 20  # of more, only the most confused pairs are printed
MOST_CONFUSED = 10
SCORES = ("precision", "recall", "f1")
LONG_READING = 2.0  # seconds, after which a progress bar is shown

Observer: TypeAlias = "Callable[[Iterate], None]"


class Solver(StrEnum):
    """What --solver takes."""

    AUTO = "auto"
    LBFGS = "lbfgs"
    NEWTON_CG = "newton-cg"
    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


class Precision(StrEnum):
    """What --precision takes."""

    FLOAT32 = "float32"
    TF32 = "tf32"
    BFLOAT16 = "bfloat16"


class DType(StrEnum):
    """What --dtype takes."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Labels(StrEnum):
    """What --labels takes."""

    AUTO = "auto"
    TEXT = "text"


class Header(StrEnum):
    """What --header takes."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


class ClassWeight(StrEnum):
    """What --class-weight takes."""

    BALANCED = "balanced"


ModelFile: TypeAlias = Annotated[Path, typer.Argument(help="A file that train wrote.", show_default=False)]
DataFile: TypeAlias = Annotated[Path, typer.Argument(help="Like that of train.", show_default=False)]
Target: TypeAlias = Annotated[
    str | None, typer.Option(help="Column or array with the labels; for .npy and IDX their file.", show_default=False)
]
HasHeader: TypeAlias = Annotated[Header, typer.Option("--header", help="Whether a .csv begins with column names.")]
DEVICE_VARIABLE = "SOFTMAX_XP_DEVICE"  # by which a container says what it is for
Device: TypeAlias = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda or cuda:<index>; softmax-xp devices lists them.", envvar=DEVICE_VARIABLE),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

app = typer.Typer(
    add_completion=False, rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]}
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Softmax regression to the exact optimum, on the CPU or a CUDA GPU.

    softmax-xp train, without any file, is a first try with scikit-learn's digits.
    """
    if version:
        typer.echo(f"softmax-xp {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="A .csv, .tsv, .parquet, .npz, .npy or IDX file, - for standard input; digits if none.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="A file to test on, instead of held-out rows.", show_default=False)
    ] = None,
    target: Target = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="<str>", help="Column to leave out; may be given again.", show_default=False),
    ] = None,
    labels: Annotated[
        Labels,
        typer.Option(help="auto: as the file has them, in a .csv numbers if all are written as numbers are; or text."),
    ] = Labels.AUTO,
    header: HasHeader = Header.AUTO,
    device: Device = "auto",
    solver: Annotated[
        Solver,
        typer.Option(
            help="auto is lbfgs that knows the curvature; the last three take mini-batches, and only come "
            "near the optimum."
        ),
    ] = Solver.AUTO,
    C: Annotated[float, typer.Option("--C", help="Inverse strength of the L2 penalty; inf for none.")] = 1.0,
    tol: Annotated[
        float,
        typer.Option(
            help="Estimated gap to the optimum, relative to the loss, at which to end; "
            "with mini-batches the norm of the gradient."
        ),
    ] = 1e-4,
    max_iter: Annotated[int, typer.Option(min=1, help="Iterations at most; epochs of mini-batches.")] = 1000,
    standardize: Annotated[bool, typer.Option("--standardize", help="Scale features to mean 0, variance 1.")] = False,
    class_weight: Annotated[
        ClassWeight | None, typer.Option(help="Let all classes weigh the same.", show_default=False)
    ] = None,
    holdout: Annotated[float, typer.Option(help="Share of the rows held out for testing; 0 for none.")] = 0.2,
    dtype: Annotated[DType, typer.Option(help="Precision of the arithmetic.")] = DType.FLOAT32,
    precision: Annotated[
        Precision, typer.Option(help="Of products on a GPU: the last two are faster, and end in float32 as well.")
    ] = Precision.FLOAT32,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads on a CPU; all usable cores if not given.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws held-out rows and mini-batches.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model.")] = Path("model.safetensors"),
    plot: Annotated[
        Path | None, typer.Option(help="Draw objective, gradient norm and gap into this image.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> int:
    """Train a classifier, test it on held-out rows, and write it to a file.

    The loss is the mean cross-entropy plus the penalty. With --standardize the
    scaling becomes part of the coefficients, so that the model takes features as
    they are in the file.

    [bold]Examples[/bold]

    softmax-xp train

    softmax-xp train iris.csv --target species --standardize

    softmax-xp train train-images-idx3-ubyte --test t10k-images-idx3-ubyte --device cuda

    softmax-xp train survey.csv --target answer --drop id --drop name

    softmax-xp train X.npy --C 0.01 --plot curves.png --output probe.safetensors
    """
    import numpy as np
    from sklearn.preprocessing import StandardScaler

    from softmax_xp import SoftmaxClassifier, select_backend
    from softmax_xp._arrays import check_real

    # What can be refused is refused before the data are read.
    check_real(C, "--C", low=0.0, include_low=False, remedy="choose a value such as 1.0; inf means no penalty")
    remedy = "choose a value such as 1e-4"
    check_real(tol, "--tol", low=0.0, include_low=False, high=math.inf, include_high=False, remedy=remedy)
    remedy = "choose a share such as 0.2, or 0 for none"
    check_real(holdout, "--holdout", low=0.0, high=1.0, include_high=False, remedy=remedy)
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
        max_iter=max_iter,
        random_state=seed,
        solver=solver.value,
        device=device,
        dtype=dtype.value,
        workers=workers,
        precision=precision.value,
    )
    start = time.perf_counter()
    curve, interrupted = _fit(model, X if scaler is None else scaler.transform(X), y, quiet=as_json)
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
        "estimated_gap": None if math.isnan(model.estimated_gap_) else model.estimated_gap_,
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
        lines.append(_line("final loss", f"{model.objective_:.6f}"))
        lines.append(_line("gradient norm", f"{model.gradient_norm_:.1e}"))
        if not math.isnan(model.estimated_gap_):
            lines.append(_line("estimated gap", f"{model.estimated_gap_:.1e} above the lowest loss"))
        lines.append(_line("iterations", f"{report['n_iter']} in {seconds:.2f} s"))
        lines.append(_line("train accuracy", f"{report['train_accuracy']:.4f} ({X.shape[0]} rows)"))
        if len(X_test):
            name = "held-out accuracy" if test is None else "test accuracy"
            lines.append(_line(name, f"{report['test_accuracy']:.4f} ({len(X_test)} rows)"))
    # What can fail has been done, or is done now, before a file is replaced. The model comes last.
    is_read = _say(*lines)
    if plot is not None and drawing is not None:
        with whole_file(plot, "wb") as stream:
            stream.write(drawing)
    model.save(output)
    if not as_json:
        if plot is not None:
            is_read &= _say(f"curves written to {plot}")
        is_read &= _say(f"model written to {output}{', in place of the old one' if replaces else ''}")
    if interrupted:
        return interruption.status
    return 0 if is_read else UNREAD


@app.command()
def predict(
    model: ModelFile,
    data: DataFile,
    target: Annotated[
        str | None, typer.Option(help="Column with labels, to be left out, where the file has no names.")
    ] = None,
    proba: Annotated[bool, typer.Option("--proba", help="The probability of each class instead of labels.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .csv file, instead of the screen.", show_default=False)
    ] = None,
    header: HasHeader = Header.AUTO,
    device: Device = "auto",
) -> None:
    """Predict the label of each row, as CSV with a header.

    The columns that the model was trained on are found by their names, in any
    order; others are ignored.

    [bold]Examples[/bold]

    softmax-xp predict model.safetensors new.csv

    softmax-xp predict model.safetensors new.csv --proba --output probabilities.csv
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

    Prints accuracy, log-loss (the mean of -log of the probability that the true
    class was given), precision, recall and F1 of each class, and which classes are
    taken for which.

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
        typer.echo(json.dumps(report))
        return
    _print_line("data", f"{table.source}: {report['n_samples']} rows")
    _print_line("device", report["device"])
    _print_line("accuracy", f"{report['accuracy']:.4f}")
    _print_line("log-loss", f"{report['log_loss']:.6f}")
    names = [row["label"] for row in report["classes"]]
    scores = [[row["label"], *(f"{row[k]:.4f}" for k in SCORES), row["support"]] for row in report["classes"]]
    _print_table("Scores of each class", ["class", *SCORES, "support"], scores)
    if len(names) <= MANY_CLASSES:
        counts = {(pair["true"], pair["predicted"]): pair["rows"] for pair in report["confusion"]}
        matrix = [[true, *(counts.get((true, predicted), 0) for predicted in names)] for true in names]
        _print_table("Confusion: true classes down, predicted ones across", ["", *names], matrix)
    else:
        mistakes = [list(pair.values()) for pair in report["confusion"] if pair["true"] != pair["predicted"]]
        mistakes = sorted(mistakes, key=lambda row: -row[2])[:MOST_CONFUSED]
        _print_table(f"The {MOST_CONFUSED} most confused pairs", ["true", "predicted", "rows"], mistakes)


@app.command()
def devices(
    as_json: Json = False,
    require: Annotated[
        str | None,
        typer.Option(help="Fail, with exit code 2, unless this device is usable.", envvar=DEVICE_VARIABLE),
    ] = None,
) -> None:
    """List the devices of this machine and, where one cannot be used, why.

    [bold]Examples[/bold]

    softmax-xp devices

    softmax-xp devices --json

    softmax-xp devices --require cuda
    """
    from softmax_xp import devices, select_backend

    found = devices()
    if as_json:
        typer.echo(json.dumps({"devices": [asdict(device) for device in found]}))
    else:
        _show_devices(found)
    if require is not None:
        select_backend(require)  # raises, with the reason and the remedy


def _show_devices(found: list[DeviceInfo]) -> None:
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
    _print_table("", ["device", "description", "memory", "usable", "reason"], rows)


# --- Fit and scores ---


def _fit(model: SoftmaxClassifier, X: np.ndarray, y: np.ndarray, quiet: bool) -> tuple[list[Iterate], bool]:
    """Fit with a progress line, where someone watches; return all iterates, and whether Ctrl-C ended the fit."""
    from sklearn.exceptions import ConvergenceWarning

    curve: list[Iterate] = []
    with warnings.catch_warnings(record=True) as caught, _progress(quiet or not sys.stderr.isatty()) as show:
        warnings.simplefilter("always", ConvergenceWarning)

        def observe(iterate: Iterate) -> None:
            curve.append(iterate)
            show(iterate)
            if interruption.number is not None:  # where the KeyboardInterrupt was lost, as in a finaliser
                raise Interrupted

        model.fit(X, y, observe=observe)
        interruption.defer()  # a model that is there is written
    for warning in caught:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    return curve, any(": interrupted" in str(warning.message) for warning in caught)


@contextmanager
def _progress(quiet: bool) -> Iterator[Observer]:
    """Yield what shows an iterate on stderr."""
    if quiet:
        yield lambda iterate: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("fitting", total=None)

    def show(iterate: Iterate) -> None:
        text = f"objective {iterate.objective:.6f}  gradient norm {iterate.gradient_norm:.1e}"
        progress.update(task, description=f"iteration {iterate.n_iter}  {text}")

    with suppress(OSError, RuntimeError):  # a terminal that has hung up; "can't start new thread"
        progress.start()
    try:
        yield show
    finally:
        with suppress(OSError):
            progress.stop()


@contextmanager
def _reading(quiet: bool = False) -> Iterator[Callable[[float], object]]:
    """Yield what shows the part of a file that has been read: on a terminal, and only once reading takes long."""
    if quiet or not sys.stderr.isatty():
        yield lambda part: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("reading"), BarColumn(), TimeElapsedColumn()
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("reading", total=None)
    timer = threading.Timer(LONG_READING, progress.start)  # the bar moves by itself until a part is known
    with suppress(RuntimeError):  # where no thread can start, no bar is shown
        timer.start()
    try:
        yield lambda part: progress.update(task, completed=part, total=1.0)
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()
        progress.stop()


def _fold(model: SoftmaxClassifier, mean: np.ndarray, scale: np.ndarray) -> None:
    """Make a model of (X - mean) / scale one of X: in float64, as float32 need not hold the scales and means."""
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
    """Raise before the work is done what open() would raise after it."""
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
    """Raise where writing to `path` would overwrite one of the others."""
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


def _drawing(figure: Any, curve: list[Iterate], path: Path) -> bytes:
    """Return the picture, in the format that the ending of `path` names."""
    above, below = figure.subplots(2, sharex=True)
    steps = [iterate.n_iter for iterate in curve]
    above.plot(steps, [iterate.objective for iterate in curve])
    above.set(ylabel="objective")
    below.semilogy(steps, [iterate.gradient_norm for iterate in curve], label="gradient norm")
    if curve and not math.isnan(curve[-1].estimated_gap):
        below.semilogy(steps, [iterate.estimated_gap for iterate in curve], label="estimated gap to the optimum")
    below.set(xlabel="iteration")
    below.legend()
    stream = BytesIO()
    figure.savefig(stream, format=path.suffix[1:].lower())
    return stream.getvalue()


# --- Text out ---


def _line(name: str, value: str) -> str:
    return f"{name:<17} {value}"


def _print_line(name: str, value: str) -> None:
    typer.echo(_line(name, value))


def _say(*lines: str) -> bool:
    """Print lines, with escapes for what the terminal cannot show; return whether there was still a reader."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        for line in lines:
            typer.echo(line.encode(encoding, "backslashreplace").decode(encoding))
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno != EIO:  # EIO: a terminal that has hung up
            raise
        _print_no_more(sys.stdout)
        return False
    return True


def _print_no_more(stream: Any) -> None:
    """Let what is still printed to a stream go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print_table(title: str, header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A file or a pipe has no edge at which to wrap.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    if title:  # rich would wrap one of its own at the edge of the table
        console.print(Text(title, style="italic"))
    table = Table()
    for index, name in enumerate(header):
        numbers = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(Text(str(name)), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)


def _first_line(message: object) -> str:
    return (str(message).strip().splitlines() or [""])[0]


# --- From exceptions to exit statuses ---


def main(args: Sequence[str] | None = None) -> None:
    """Run the command and exit.

    The status is 0 when all is done, 2 with one line on stderr for a user's error, 130 after Ctrl-C, 143 after SIGTERM,
    129 after SIGHUP, and UNREAD.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    kept: list[object] = []  # warnings: told when the work is done, so that an error is one line
    with warnings.catch_warnings(), interruption.handled():
        warnings.filterwarnings("ignore", "X does not have valid feature names")  # read_table has matched them
        warnings.showwarning = lambda message, *_: kept.append(message)
        try:
            command = typer.main.get_command(app)
            status = command.main(args, prog_name="softmax-xp", standalone_mode=False) or 0
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            status = interruption.status
        except BrokenPipeError:
            _print_no_more(sys.stdout)
            status = UNREAD
        except Exception as error:
            if interruption.was_raised:  # it is what some library made of the KeyboardInterrupt
                status = interruption.status
            else:
                _tell(f"softmax-xp: error: {_error_line(error)}", "red")
                status = 2
        interruption.defer()
        if interruption.number is not None and status != 2:
            status = interruption.status
        if status in (0, interruption.status):
            for message in kept:
                _tell(f"warning: {_first_line(message)}", "yellow")
        if status == interruption.status:
            _tell("softmax-xp: interrupted", "yellow")
    sys.exit(status)


def _tell(text: str, color: str) -> None:
    try:
        typer.secho(text, fg=color, err=True)
    except OSError:  # a terminal that has hung up
        _print_no_more(sys.stderr)


def _error_line(error: Exception) -> str:
    """Return what a user's error says, in one line; raise again what only a fault of this program can be."""
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
