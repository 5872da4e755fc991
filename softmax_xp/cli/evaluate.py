"""The command softmax-xp evaluate."""

from __future__ import annotations

import json
from typing import Any

from softmax_xp.cli import data as inputs
from softmax_xp.cli.options import DataFile, Device, HasHeader, Header, Json, ModelFile, Target
from softmax_xp.cli.progress import reading
from softmax_xp.cli.terminal import fits_terminal, print_line, print_table

MANY_CLASSES = 20  # with more, the most confused pairs are printed instead of the confusion matrix
MOST_CONFUSED = 10


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
    from softmax_xp.evaluation import scores

    with reading(as_json) as show:
        classifier, table = inputs.model_and_table(
            model, data, device, target=target, header=header.value, progress=show
        )
    report: dict[str, Any] = {"device": classifier.device_, "n_samples": len(table.X)} | scores(
        classifier, table.X, inputs.class_indices(table, classifier.classes_)
    )
    if as_json:
        print(json.dumps(report))
        return
    print_line("data", f"{table.source}: {report['n_samples']} rows")
    print_line("device", report["device"])
    print_line("accuracy", f"{report['accuracy']:.4f}")
    print_line("log-loss", f"{report['log_loss']:.6f}")
    print_scores(report)


def print_scores(report: dict[str, Any]) -> None:
    """Print the scores of each class, and the confusion matrix or the most confused pairs."""
    from softmax_xp.evaluation import SCORES

    names = [row["label"] for row in report["classes"]]
    scores = [[row["label"], *(f"{row[k]:.4f}" for k in SCORES), row["support"]] for row in report["classes"]]
    print_table("Scores of each class", ["class", *SCORES, "support"], scores)
    counts = {(pair["true"], pair["predicted"]): pair["rows"] for pair in report["confusion"]}
    matrix = [[true, *(counts.get((true, predicted), 0) for predicted in names)] for true in names[:MANY_CLASSES]]
    if len(names) <= MANY_CLASSES and fits_terminal(["", *names], matrix):
        print_table("Confusion: true classes down, predicted ones across", ["", *names], matrix)
    else:
        mistakes = [list(pair.values()) for pair in report["confusion"] if pair["true"] != pair["predicted"]]
        mistakes = sorted(mistakes, key=lambda row: -row[2])[:MOST_CONFUSED]
        print_table(f"The {MOST_CONFUSED} most confused pairs", ["true", "predicted", "rows"], mistakes)
