"""dvc.yaml, rendered from the graph: one DVC stage a stage, one item of its `foreach` a key.

DVC names the work `plm@reach-0` and `tuned_prompt_dt@reach-5-0`: stage, `@`, key. A `foreach` item carries the axes of
its key and the file of its family, which the templates of `do` fill in; DVC allows no template to be a whole list, so
files that families import stand in the list of every key.

A project in a checkout of this package depends on the package's files by their relative paths. A project elsewhere
depends on digests of them, kept in code.json beside dvc.yaml: the same package installed at another place, or by
another user, is the same code. Outs are `persist`: DVC would otherwise remove them before the stage can refuse to
replace what it did not make.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import FAMILY, PACKAGE, SEED, TASK, Graph
from pd_pipeline.stage import Key
from pd_pipeline.storage import atomic_file, digest

DVC_FILE = "dvc.yaml"
CODE_FILE = "code.json"
HEADER = (
    "# Rendered from params.yaml and pd_pipeline/graph.py by `pd-pipeline graph --write`: edit those, never this.\n"
)
_NO_FAMILY_FILE = PACKAGE / "families" / "__init__.py"  # stands in for a family that is installed elsewhere
_TEMPLATE_KEY = Key("${item.family}", "${item.task}", "${item.seed}")  # type: ignore[arg-type]


def address(stage: str, key: Key) -> str:
    """DVC's name of a piece of work: `plm@reach-0`, `report`."""
    return f"{stage}@{key}" if str(key) else stage


def in_checkout(root: Path) -> bool:
    """Whether the project lies in the checkout that this package is, or is that."""
    return PACKAGE.parent == root or PACKAGE.parent in root.parents


def relative(path: Path, root: Path) -> str:
    """How dvc.yaml names a file: relative to the project. A checkout may then lie anywhere."""
    return path.relative_to(root).as_posix() if root in path.parents else Path(os.path.relpath(path, root)).as_posix()


def code_name(path: Path, root: Path) -> str:
    """A name of a code file that does not depend on where this package is installed."""
    base = PACKAGE.parent if PACKAGE in path.parents and not in_checkout(root) else root
    return relative(path, base)


def code_digests(graph: Graph) -> dict[str, dict[str, str]]:
    """Stage -> family (`all` where the stage has none) -> digest of the package's files that make its outs."""
    found: dict[str, dict[str, str]] = {}
    for name in graph.stages:
        for key in graph.keys(name):
            family = key.family or "all"
            if family not in found.setdefault(name, {}):
                files = [file for file in graph.code(name, key) if PACKAGE in file.parents]
                found[name][family] = digest(*(part for file in files for part in (file.name, file)))
    return found


def render(graph: Graph) -> str:
    """The text of dvc.yaml."""
    stages = "\n".join("\n".join(_stage(graph, name)) for name in graph.stages)
    return f"{HEADER}stages:\n{stages}\n"


def check(graph: Graph) -> None:
    """Raise PipelineError where dvc.yaml is not what `write` would leave."""
    for path, text in _wanted(graph).items():
        if _present(path) != text:
            raise PipelineError(f"{path}: not what params.yaml and the code ask for: run `pd-pipeline graph --write`")


def write(graph: Graph) -> bool:
    """Bring dvc.yaml, and code.json where there is one, up to date; returns whether one of them had to change."""
    stale = {path: text for path, text in _wanted(graph).items() if _present(path) != text}
    for path, text in stale.items():
        with atomic_file(path) as temporary:
            temporary.write_text(text)
    return bool(stale)


def _wanted(graph: Graph) -> dict[Path, str]:
    """The files that this module renders, with their text."""
    files = {graph.root / DVC_FILE: render(graph)}
    if not in_checkout(graph.root):
        files[graph.root / CODE_FILE] = json.dumps(code_digests(graph), indent=1, sort_keys=True) + "\n"
    return files


def _present(path: Path) -> str | None:
    try:
        return path.read_text() if path.is_file() else None
    except UnicodeDecodeError:
        return None


def _stage(graph: Graph, name: str) -> Iterator[str]:
    """The lines of one stage, of all its keys."""
    stage, keys = graph.stages[name], graph.keys(name)
    for family in {key.family for key in keys if key.family is not None}:
        graph.params.block(family, name)  # a missing block is better refused here than by DVC
    families = {key: graph.family_source(key.family) for key in keys if key.family is not None}
    shared = {file for key in keys for file in graph.code(name, key)} - {f for f in families.values() if f is not None}
    stand_in = _NO_FAMILY_FILE  # for a family that no file of the project or the package defines
    if in_checkout(graph.root):
        shared -= {_NO_FAMILY_FILE} if None in families.values() else set()
    else:
        stand_in = graph.root / CODE_FILE
        shared = {file for file in shared if PACKAGE not in file.parents}
        families = {key: None if f is None or PACKAGE in f.parents else f for key, f in families.items()}
    code = [relative(file, graph.root) for file in sorted(shared)]
    yield f"  {name}:"
    if not stage.axes:
        yield from (f"    {line}" for line in _body(graph, name, Key(), code))
        return
    own_files = in_checkout(graph.root) or any(families.values())
    yield "    foreach:"
    for key in keys:
        items = {axis: getattr(key, axis) for axis in (FAMILY, TASK, SEED) if axis in stage.axes}
        if own_files:
            items["code"] = relative(families[key] or stand_in, graph.root)
        yield f"      {_plain(str(key))}: {{{', '.join(f'{n}: {_plain(v)}' for n, v in items.items())}}}"
    yield "    do:"
    template = Key(*(getattr(_TEMPLATE_KEY, axis) if axis in stage.axes else None for axis in (FAMILY, TASK, SEED)))
    code = ["${item.code}", *code] if own_files else code
    yield from (f"      {line}" for line in _body(graph, name, template, code))


def _body(graph: Graph, name: str, key: Key, code: list[str]) -> Iterator[str]:
    """What DVC needs to know of one piece of work, or of all through a template for the key."""
    stage = graph.stages[name]
    yield f"cmd: pd-pipeline run {name}" + (" --key ${key}" if stage.axes else "")
    if deps := [*code, *(_input(graph, name, key, need) for need in stage.needs)]:
        yield "deps:"
        yield from (f"- {_plain(value)}" for value in deps)
    yield "params:"
    yield from (f"- {_plain(value)}" for value in graph.params_keys(name, key))
    if not in_checkout(graph.root):
        yield f"- {CODE_FILE}:"
        yield f"  - {_plain(name + '.' + (key.family or 'all'))}"
    yield "outs:"
    yield f"- {_plain(graph.out(name, key).as_posix())}:"
    yield "    persist: true"


def _input(graph: Graph, name: str, key: Key, need: str) -> str:
    """As `Graph.input`, for a key that may be a template: axes that the upstream stage lacks are left out."""
    mine, theirs = graph.stages[name].axes, graph.stages[need].axes
    if not mine:
        return graph.input(name, key, need).as_posix()
    other = Key(*(getattr(key, axis) if axis in theirs else None for axis in (FAMILY, TASK, SEED)))
    path = graph.out(need, other)
    return (path.parent if TASK in theirs and TASK not in mine else path).as_posix()


def _plain(value: str | int) -> str:
    """A YAML scalar, quoted where it would not be read back as the same string."""
    text = str(value)
    reserved = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
    safe = re.fullmatch(r"[\w./@+\-${}]+", text) and text.lower() not in reserved and not text.startswith(("@", "-"))
    return text if isinstance(value, int) or safe else json.dumps(text)
