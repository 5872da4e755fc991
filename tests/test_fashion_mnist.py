"""The command line on real images: Fashion-MNIST as Debian packages it (dataset-fashion-mnist)."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path("/usr/share/datasets/fashion-mnist")
TRAIN, TEST = FOLDER / "train-images-idx3-ubyte.gz", FOLDER / "t10k-images-idx3-ubyte.gz"

pytestmark = pytest.mark.skipif(
    not TRAIN.exists(), reason="Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist"
)


def run(python, *arguments, cwd):
    command, environment = python
    done = subprocess.run(
        [*command, "-m", "softmax_xp", *map(str, arguments)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_train_evaluate_and_predict_agree(python, tmp_path):
    options = ["--max-iter", 150, "--output", "model.safetensors", "--json"]
    trained = json.loads(run(python, "train", TRAIN, "--test", TEST, *options, cwd=tmp_path))
    assert (trained["n_samples"], trained["n_features"], trained["test_rows"]) == (60000, 784, 10000)
    assert trained["test_accuracy"] >= 0.835
    evaluated = json.loads(run(python, "evaluate", "model.safetensors", TEST, "--json", cwd=tmp_path))
    assert evaluated["accuracy"] == trained["test_accuracy"]
    rows = list(csv.reader(run(python, "predict", "model.safetensors", TEST, cwd=tmp_path).splitlines()))
    with gzip.open(FOLDER / "t10k-labels-idx1-ubyte.gz") as stream:
        labels = stream.read()
    true = np.frombuffer(labels, dtype=np.uint8, offset=8)
    assert np.mean(np.array([int(row[0]) for row in rows[1:]]) == true) == trained["test_accuracy"]
