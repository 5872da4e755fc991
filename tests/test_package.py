"""What importing and installing the package amounts to."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import softmax_xp as sx
from softmax_xp import backend, readers, trainer

HEAVY = ["cupy", "sklearn", "torch", "dask", "matplotlib", "pandas", "polars", "pyarrow", "scipy", "typer"]


def loaded_after(python, statement):
    command, environment = python
    code = f"import sys; {statement}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([*command, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import softmax_xp",
        "import softmax_xp, numpy; softmax_xp.softmax(numpy.zeros((2, 3)))",
        "import softmax_xp; softmax_xp.Linear(2, 3); softmax_xp.SGD(); softmax_xp.select_backend('cpu')",
    ],
)
def test_import_loads_nothing_heavy(python, statement):
    assert loaded_after(python, statement) == []


def test_every_public_name_is_there():
    for name in sx.__all__:
        assert getattr(sx, name) is not None
        assert name in dir(sx)
    with pytest.raises(AttributeError, match="no attribute 'sofmax'"):
        _ = sx.sofmax


@pytest.mark.parametrize("use", ["", "sx.softmax, sx.SoftmaxClassifier, sx.Trainer"], ids=["fresh", "in use"])
def test_dir_and_tab_completion_show_public_names_alone(python, use):
    command, environment = python
    code = f"""
import rlcompleter, softmax_xp as sx
{use}
complete, names = rlcompleter.Completer(dict(sx=sx)).complete, []
while (name := complete("sx.", len(names))) is not None:
    names.append(name.removeprefix("sx.").rstrip("()"))
print(*dir(sx), sep=",")
print(*names, sep=",")
print(*(name for name in vars(sx) if not name.startswith("_")), sep=",")
"""
    done = subprocess.run([*command, "-c", code], env=environment, capture_output=True, text=True, check=True)
    listed, completed, there = (set(text.split(",")) - {""} for text in done.stdout.split("\n")[:3])
    assert listed == set(sx.__all__)
    assert completed == {name for name in sx.__all__ if not name.startswith("_")}
    modules = {path.stem for path in Path(sx.__file__).parent.iterdir()}
    assert there - modules <= set(sx.__all__)


def test_every_public_object_has_a_docstring():
    for name in sx.__all__:
        if not name.startswith("__"):
            assert getattr(sx, name).__doc__, name


def test_version_is_the_installed_one():
    try:
        assert metadata.version("softmax-xp") == sx.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("softmax-xp is not installed: the tests run from the checkout")


@pytest.mark.parametrize(
    ("extra", "command"),
    [("cuda13", backend.INSTALL_CUPY), ("plot", trainer.INSTALL_PLOT), ("parquet", readers.INSTALL_PARQUET)],
)
def test_an_install_command_names_what_its_extra_holds(extra, command):
    """It works wherever the package came from: no extra of softmax-xp itself, which is on no index."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert command == "pip install " + " ".join(f"'{name}'" for name in project["optional-dependencies"][extra])


def test_installation_holds_every_file_of_the_checkout():
    """The wheel is whole: what lies in softmax_xp/ beside these tests is what was installed."""
    source = Path(__file__).resolve().parent.parent / "softmax_xp"
    installed = Path(sx.__file__).resolve().parent
    if installed == source or not source.is_dir():
        pytest.skip("the package under test is the checkout itself")

    def files(root):
        return {p.relative_to(root) for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts}

    assert files(source) - files(installed) == set()


def test_the_images_pin_every_dependency_to_a_version_that_the_project_allows():
    """What images need directly; docker/check.sh sees to what these need in turn."""
    top = Path(__file__).parents[1]
    if not (top / "docker").is_dir():
        pytest.skip("no docker/ beside the tests")
    lines = (top / "docker" / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, lines[1:])}
    project = tomllib.loads((top / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    groups = [project["project"]["dependencies"], project["build-system"]["requires"]]
    groups += [extras[name] for name in ("cuda13", "plot", "parquet", "test")]
    for wanted in map(Requirement, itertools.chain(*groups)):
        if wanted.name != "softmax-xp":
            (exact,) = pins[canonicalize_name(wanted.name)].specifier
            assert exact.operator == "=="
            assert exact.version in wanted.specifier


def test_the_commands_in_the_readme_run_in_order(python, tmp_path):
    readme = Path(__file__).parents[1] / "README.md"
    bash = shutil.which("bash")
    if not readme.is_file() or bash is None:
        pytest.skip("no README.md beside the tests, or no bash")
    section = readme.read_text(encoding="utf-8").split("## The command line\n")[1]
    commands = section.split("```\n")[1]
    assert all(name in commands for name in ("train ", "evaluate ", "predict ", "devices"))
    command, environment = python
    for name, arguments in {"python": "", "softmax-xp": "-m softmax_xp"}.items():
        (tmp_path / name).write_text(f'#!{bash}\nexec {shlex.join(command)} {arguments} "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment["PATH"] = os.pathsep.join([str(tmp_path), environment["PATH"]])
    done = subprocess.run([bash, "-ec", commands], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "model written to iris.safetensors" in done.stdout
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 151
