"""The table of tuning methods, read from their source code without importing them (they import torch).

A method is a module with `Params` and `tune`: a file in this folder, or a user's own module next to params.yaml or
installed, named in `run.extensions`. At its top level it may also set, as plain literals,

    NEEDS = ("diffuser",)   # stages it reads beyond the trajectories and the PLM
    ONLINE = True           # it runs episodes in the target's environment
    DEMONSTRATIONS = False  # it gets no trajectory of the target: its `tune` takes an `Unseen` instead of a `Target`

and it defines `load(directory, plm)` if it returns an Adaptation other than `Prompted`.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pd_pipeline.config import PARAMS_FILE, RunParams
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.foreign import module_file

ALWAYS = ("target_data", "plm")
READABLE = ("diffuser", "hyper_network", "prompts", "trajectories")
"""Stages that a method may name in NEEDS."""

FLAGS = {"ONLINE": False, "DEMONSTRATIONS": True}
"""What a method may set, and what holds if it does not."""

DIFFUSER_MODULE = "pd_pipeline.models.saved_diffuser"
"""Imported by name when a diffuser is loaded, so that nothing else depends on its code."""

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Method:
    """One method."""

    name: str
    module: str
    source: Path
    needs: tuple[str, ...]
    """Stages that it reads."""
    online: bool
    """Whether it runs episodes in the target's environment."""
    demonstrations: bool
    """Whether it gets trajectories of the target."""


def known(run: RunParams, root: Path) -> dict[str, Method]:
    """Name -> method, for this package and the extensions of the project at `root`. Raises PipelineError."""
    found = dict(built_in())
    for name, module in run.extensions.items():
        where = f"{PARAMS_FILE}: run.extensions.{name}"
        if name in found:
            raise PipelineError(f"{where}: '{name}' is a built-in method: choose another name")
        method = _read(name, module, _source(module, root, where))
        if method is None:
            raise PipelineError(f"{where}: {_source(module, root, where)} defines no function `tune`")
        found[name] = method
    return found


def chosen(run: RunParams, methods: Mapping[str, Method]) -> dict[str, Method]:
    """Name of a method or variant to run -> its method. Raises PipelineError for an unknown name."""
    names = {name: run.method_of(name) for name in run.methods}
    for name, method in (names | run.variants).items():
        if method not in methods:
            hint = suggestion(method, methods)
            where = f"run.variants.{name}" if name in run.variants else "run.methods"
            raise PipelineError(f"{PARAMS_FILE}: {where}: '{method}' is not a method: {hint}")
    if hidden := sorted(set(run.variants) & set(methods)):
        raise PipelineError(f"{PARAMS_FILE}: run.variants: {hidden} are names of methods: choose other names")
    for part in ("variants", "extensions"):
        if bad := [name for name in getattr(run, part) if not re.fullmatch(r"[a-z]\w*", name, re.ASCII)]:
            raise PipelineError(
                f"{PARAMS_FILE}: run.{part}: {bad}: use only lower-case letters, digits and '_', starting with a letter"
            )
    return {name: methods[method] for name, method in names.items()}


@lru_cache(maxsize=1)
def built_in() -> dict[str, Method]:
    """The methods in this folder, by name."""
    found = (_read(file.stem, f"pd_pipeline.tuning.{file.stem}", file) for file in sorted(FOLDER.glob("*.py")))
    return {method.name: method for method in found if method is not None}


def _source(module: str, root: Path, where: str) -> Path:
    file = module_file(module, root)
    if file is None or file.suffix != ".py":
        raise PipelineError(f"{where}: no module '{module}' next to {PARAMS_FILE} or installed")
    return file


def _read(name: str, module: str, source: Path) -> Method | None:
    """The method that a file defines, or None. Raises PipelineError if the file is invalid."""
    try:
        tree = ast.parse(source.read_bytes(), str(source))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise PipelineError(f"{source}: not valid Python: {error}") from None
    if not any(isinstance(node, ast.FunctionDef) and node.name == "tune" for node in tree.body):
        return None
    needs = _literal(tree, "NEEDS", (), source)
    flags = {name: _literal(tree, name, default, source) for name, default in FLAGS.items()}
    if not isinstance(needs, tuple | list) or not set(needs) <= set(READABLE):
        raise PipelineError(f"{source}: NEEDS is {needs!r}, not a tuple of stages among {', '.join(READABLE)}")
    for flag, value in flags.items():
        if not isinstance(value, bool):
            raise PipelineError(f"{source}: {flag} is {value!r}, not True or False")
    if not flags["DEMONSTRATIONS"] and "prompts" not in needs:
        raise PipelineError(f"{source}: DEMONSTRATIONS is False, so NEEDS must name 'prompts': its `tune` gets those")
    return Method(name, module, source, (*ALWAYS, *needs), flags["ONLINE"], flags["DEMONSTRATIONS"])


def _literal(tree: ast.Module, name: str, default: Any, source: Path) -> Any:
    """The value of a constant in a module, or `default`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                raise PipelineError(
                    f"{source}: {name} must be a plain literal: the module is not imported to read it"
                ) from None
    return default
