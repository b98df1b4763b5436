"""dvc.yaml, rendered from the graph: one DVC stage a stage, one item of its `foreach` a key.

DVC names the work `plm@reach-0` and `tuned_prompt_dt@reach-5-0`: stage, `@`, key. A `foreach` item carries the axes of
its key and the file of its family, which the templates of `do` fill in; DVC allows no template to be a whole list, so
files that families import stand in the list of every key.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import FAMILY, PACKAGE, SEED, TASK, Graph
from pd_pipeline.stage import Key
from pd_pipeline.storage import atomic_file

DVC_FILE = "dvc.yaml"
HEADER = (
    "# Rendered from params.yaml and pd_pipeline/graph.py by `pd-pipeline graph --write`: edit those, never this.\n"
)
_NO_FAMILY_FILE = PACKAGE / "families" / "__init__.py"  # stands in for a family that is installed elsewhere
_TEMPLATE_KEY = Key("${item.family}", "${item.task}", "${item.seed}")  # type: ignore[arg-type]


def address(stage: str, key: Key) -> str:
    """DVC's name of a piece of work: `plm@reach-0`, `report`."""
    return f"{stage}@{key}" if str(key) else stage


def relative(path: Path, root: Path) -> str:
    """How dvc.yaml names a file: relative in the project and for a project in the package's checkout, else absolute.

    A checkout may then lie anywhere, and hold projects whose dvc.yaml is under version control.
    """
    if root in path.parents:
        return path.relative_to(root).as_posix()
    return Path(os.path.relpath(path, root)).as_posix() if PACKAGE.parent in root.parents else path.as_posix()


def render(graph: Graph) -> str:
    """The text of dvc.yaml."""
    stages = "\n".join("\n".join(_stage(graph, name)) for name in graph.stages)
    return f"{HEADER}stages:\n{stages}\n"


def check(graph: Graph) -> None:
    """Raise PipelineError where dvc.yaml is not what `write` would leave."""
    if _present(graph) != render(graph):
        raise PipelineError(
            f"{graph.root / DVC_FILE}: not what params.yaml and the code ask for: run `pd-pipeline graph --write`"
        )


def write(graph: Graph) -> bool:
    """Bring dvc.yaml up to date; returns whether it had to change."""
    text = render(graph)
    if _present(graph) == text:
        return False
    with atomic_file(graph.root / DVC_FILE) as temporary:
        temporary.write_text(text)
    return True


def _present(graph: Graph) -> str | None:
    path = graph.root / DVC_FILE
    return path.read_text() if path.is_file() else None


def _stage(graph: Graph, name: str) -> Iterator[str]:
    """The lines of one stage, of all its keys."""
    stage, keys = graph.stages[name], graph.keys(name)
    for family in {key.family for key in keys if key.family is not None}:
        graph.params.block(family, name)  # a missing block is better refused here than by DVC
    families = {key: graph.family_source(key.family) for key in keys if key.family is not None}
    shared = {file for key in keys for file in graph.code(name, key)} - {f for f in families.values() if f is not None}
    if None in families.values():
        shared -= {_NO_FAMILY_FILE}
    code = [relative(file, graph.root) for file in sorted(shared)]
    yield f"  {name}:"
    if not stage.axes:
        yield from (f"    {line}" for line in _body(graph, name, Key(), code))
        return
    yield "    foreach:"
    for key in keys:
        items = {axis: getattr(key, axis) for axis in (FAMILY, TASK, SEED) if axis in stage.axes}
        items["code"] = relative(families[key] or _NO_FAMILY_FILE, graph.root)
        yield f"      {_plain(str(key))}: {{{', '.join(f'{n}: {_plain(v)}' for n, v in items.items())}}}"
    yield "    do:"
    template = Key(*(getattr(_TEMPLATE_KEY, axis) if axis in stage.axes else None for axis in (FAMILY, TASK, SEED)))
    yield from (f"      {line}" for line in _body(graph, name, template, ["${item.code}", *code]))


def _body(graph: Graph, name: str, key: Key, code: list[str]) -> Iterator[str]:
    """What DVC needs to know of one piece of work, or of all through a template for the key."""
    stage = graph.stages[name]
    yield f"cmd: pd-pipeline run {name}" + (" --key ${key}" if stage.axes else "")
    lists = {
        "deps": [*code, *(_input(graph, name, key, need) for need in stage.needs)],
        "params": graph.params_keys(name, key),
        "outs": [graph.out(name, key).as_posix()],
    }
    for title, values in lists.items():
        yield f"{title}:"
        yield from (f"- {_plain(value)}" for value in values)


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
