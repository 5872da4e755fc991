"""Write simulated/names.json, the public names of CuPy and the arguments of its functions: python tests/cupy_names.py

It takes an installed CuPy, and no GPU.
"""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from pathlib import Path

FILE = Path(__file__).parent / "simulated" / "names.json"
MODULES = ("cupy", "cupy.linalg", "cupy.fft")


def names_of(module: object) -> dict[str, str]:
    """Return what each public name stands for: of a function its arguments, as those of a lambda."""
    names = {}
    for name in sorted(dir(module)):
        value = getattr(module, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if inspect.isclass(value):
            names[name] = "type"
        elif inspect.isfunction(value) or inspect.isbuiltin(value):
            names[name] = _arguments(value)
        else:
            names[name] = "ufunc" if callable(value) else "value"
    return names


def _arguments(function: object) -> str:
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "*args, **options"
    bare = [x.replace(annotation=x.empty, default=x.empty if x.default is x.empty else None) for x in parameters]
    return str(inspect.Signature(bare)).removeprefix("(").removesuffix(")")


if __name__ == "__main__":
    found = {name: names_of(import_module(name)) for name in MODULES}
    FILE.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")
