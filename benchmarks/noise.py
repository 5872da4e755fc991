"""Command noise: accuracy on clean test rows after training with wrong labels, by loss and C."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from benchmarks import report
from benchmarks.data import DataMissingError, Dataset, Name, load, train_and_test
from softmax_xp import SoftmaxClassifier

LOSSES = {
    "cross_entropy": "cross-entropy",
    "gce": "generalised cross-entropy, q = 0.7",
    "sce": "symmetric cross-entropy",
    "focal": "focal, gamma = 2",
}
VALUES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
SEEDS = 5
ROWS = 10_000  # of Fashion-MNIST to train on
DIGITS_TEST = 0.3  # share of the rows of digits
BASE = "cross_entropy"


def main(share: float, seeds: int, quick: bool, fashion: Path, output: Path) -> None:
    """Run the command."""
    sets = [(Name.DIGITS, None)] if quick else [(Name.DIGITS, None), (Name.FASHION, ROWS)]
    values = (0.1, 1.0) if quick else VALUES
    tables = []
    for name, n_rows in sets:
        try:
            tables.append(_measured(name, n_rows, share, 1 if quick else seeds, values, fashion))
        except DataMissingError as error:
            report.say(f"{name}: {error}.")
    for table in tables:
        _show(table, share)
    report.save("noise", output, {"share": share, "quick": quick, "C": list(values)}, tables=tables)
    (output / "noise.md").write_text(_markdown(tables, share))
    report.say(f"wrote {output / 'noise.md'}")


def _measured(
    name: Name, n_rows: int | None, share: float, seeds: int, values: tuple[float, ...], fashion: Path
) -> dict[str, Any]:
    """Return the accuracy by loss, C and seed, and how many of the fits converged."""
    accuracy = np.zeros((len(LOSSES), len(values), seeds))
    unconverged = dict.fromkeys(LOSSES, 0)
    with report.progress(accuracy.size) as step:
        for seed in range(seeds):
            train, test = _split(name, n_rows, seed, fashion)
            labels = _mislabelled(train, share, seed)
            for i, loss in enumerate(LOSSES):
                for j, C in enumerate(values):
                    step(f"{name}, seed {seed}: {loss}, C = {C:g}")
                    model = SoftmaxClassifier(C=C, loss=loss, device="cpu")
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", ConvergenceWarning)
                        model.fit(train.X, labels)
                    unconverged[loss] += not model.converged_
                    accuracy[i, j, seed] = model.score(test.X, test.y)
    size = {"data": name.value, "train": len(train.X), "test": len(test.X), "seeds": seeds}
    mean = accuracy.mean(axis=2)
    best = mean.argmax(axis=1)
    rows = [
        {
            "loss": loss,
            "best_C": values[best[i]],
            "accuracy": float(mean[i, best[i]]),
            "by_seed": accuracy[i, best[i]].tolist(),
            "by_C": mean[i].tolist(),
            "unconverged": unconverged[loss],
        }
        for i, loss in enumerate(LOSSES)
    ]
    return size | {"rows": rows}


def _split(name: Name, n_rows: int | None, seed: int, fashion: Path) -> tuple[Dataset, Dataset]:
    """Return training and test rows: for digits other ones with each seed, for Fashion-MNIST always the same."""
    if name is Name.FASHION:
        return train_and_test(name, "float32", n_rows or ROWS, fashion)
    data = load(name, "float32")
    order = np.random.default_rng(seed).permutation(len(data.X))
    n_test = int(DIGITS_TEST * len(order))
    X = data.X / 16.0
    return Dataset(name, X[order[n_test:]], data.y[order[n_test:]]), Dataset(
        name, X[order[:n_test]], data.y[order[:n_test]]
    )


def _mislabelled(train: Dataset, share: float, seed: int) -> np.ndarray:
    """Return the labels, of which a share is drawn anew, evenly from all classes."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, train.n_classes, len(train.y))
    return np.where(rng.random(len(train.y)) < share, drawn, train.y)


def _cells(table: dict[str, Any]) -> list[tuple[str, ...]]:
    base = next(row["accuracy"] for row in table["rows"] if row["loss"] == BASE)
    return [
        (
            LOSSES[row["loss"]],
            f"{row['best_C']:g}",
            f"{row['accuracy']:.4f}",
            f"{100 * (row['accuracy'] - base):+.2f}",
            f"{np.std(row['by_seed']):.4f}",
            str(row["unconverged"]),
        )
        for row in table["rows"]
    ]


COLUMNS = ("loss", "best C", "accuracy", "points above", "its deviation", "fits not converged")


def _title(table: dict[str, Any], share: float) -> str:
    return (
        f"{table['data']}: {table['train']} rows, {100 * share:g} % of the labels drawn at random; accuracy on "
        f"{table['test']} clean rows, mean of {table['seeds']} seeds"
    )


def _show(table: dict[str, Any], share: float) -> None:
    report.table(_title(table, share), COLUMNS, _cells(table), "each loss at its best C, by the mean over the seeds")


def _markdown(tables: list[dict[str, Any]], share: float) -> str:
    lines = ["# Losses under label noise", "", "`python -m benchmarks noise`. Each loss at its best C.", ""]
    for table in tables:
        lines += [f"{_title(table, share)}:", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(cells)} |" for cells in _cells(table)]
        lines.append("")
    return "\n".join(lines)
