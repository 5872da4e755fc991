"""The command softmax-xp train."""

from __future__ import annotations

import json
import math
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softmax_xp.cli import data as inputs
from softmax_xp.cli.options import (
    FIT,
    OUTPUT,
    ClassWeight,
    Device,
    DType,
    HasHeader,
    Header,
    Json,
    Labels,
    Loss,
    Precision,
    Solver,
    Target,
)
from softmax_xp.cli.outputs import check_kept, check_writable, drawn_curves, empty_figure
from softmax_xp.cli.progress import fitting, reading
from softmax_xp.cli.signals import Interrupted, interruption
from softmax_xp.cli.terminal import UNREAD, report_line, say
from softmax_xp.files.whole import standard_stream, whole_file

# NumPy, scikit-learn and the package itself are imported where they are used, so that --help answers at once.
if TYPE_CHECKING:
    import numpy as np

    from softmax_xp import SoftmaxClassifier
    from softmax_xp.solvers import State


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
    from softmax_xp.checks import check_real
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
    check_writable(output)
    figure = None if plot is None else empty_figure(plot)
    read = inputs.files_of(data, target) + inputs.files_of(test, None)
    check_kept(output, "--output", read, "a file to be read")
    if standard_stream(output) == 1:
        raise ValueError(f"--output must not be where the report is printed, got {str(output)!r}; name a file")
    if plot is not None:
        check_kept(plot, "--plot", read, "a file to be read")
        check_kept(plot, "--plot", [output], "that of --output")

    # Standardised features have another range than those of the file.
    options = {"header": header.value, "dtype": "float64" if standardize else dtype.value}
    with reading(as_json) as show:
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
    drawing = None if plot is None else drawn_curves(figure, curve, plot)

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
        lines = [report_line("data", f"{table.source}: {size}")]
        lines.append(report_line("device", model.device_))
        of_loss = "" if loss is Loss.CROSS_ENTROPY else f" ({loss.value})"
        lines.append(report_line("final loss", f"{model.objective_:.6f}{of_loss}"))
        lines.append(report_line("gradient norm", f"{model.gradient_norm_:.1e}"))
        if math.isinf(model.estimated_gap_):
            lines.append(report_line("estimated gap", "unknown"))
        elif not math.isnan(model.estimated_gap_):
            lowest = "the lowest loss" if loss is Loss.CROSS_ENTROPY else "a local minimum"
            lines.append(report_line("estimated gap", f"{model.estimated_gap_:.1e} above {lowest}"))
        lines.append(report_line("iterations", f"{report['n_iter']} in {seconds:.2f} s"))
        lines.append(report_line("train accuracy", f"{report['train_accuracy']:.4f} ({X.shape[0]} rows)"))
        if len(X_test):
            name = "held-out accuracy" if test is None else "test accuracy"
            lines.append(report_line(name, f"{report['test_accuracy']:.4f} ({len(X_test)} rows)"))
    # All that can fail comes before a file is replaced, and the model is written last.
    is_read = say(*lines)
    if plot is not None and drawing is not None:
        with whole_file(plot, "wb") as stream:
            stream.write(drawing)
    model.save(output)
    if not as_json:
        if plot is not None:
            is_read &= say(f"curves written to {plot}")
        is_read &= say(f"model written to {output}{', in place of the old one' if replaces else ''}")
    if model.status_ is Status.INTERRUPTED:
        return interruption.status
    return 0 if is_read else UNREAD


def _fit(model: SoftmaxClassifier, X: np.ndarray, y: np.ndarray, quiet: bool) -> list[State]:
    """Fit, with a progress line on a terminal; return the State after each step."""
    from sklearn.exceptions import ConvergenceWarning

    curve: list[State] = []
    with warnings.catch_warnings(record=True) as caught, fitting(quiet) as show:
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
