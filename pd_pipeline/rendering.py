"""dvc.yaml, rendered from the graph: one DVC stage per stage, one item of its `foreach` per key.

DVC names the work `plm@reach-0` and `tuned_prompt_dt@reach-5-0`: stage, `@`, key. A `foreach` item carries the axes of
its key, which the templates of `do` fill in.

The code that makes an out is known by a digest: code.json beside dvc.yaml holds one per stage and family, over the
files that the stage really uses for it, and each piece of work depends on its own. So an edit makes stale what it
touches and nothing else, the same package installed at another place is the same code, and dvc.yaml stays short. The
stage `code` depends on the files and writes code.json anew, for `dvc repro`; every other door does so by itself. Of a
package that is installed elsewhere no path is named: there `code` depends on the files of the project alone.

Outs are `persist`: DVC would otherwise remove them before the stage can refuse to replace what it did not make.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import FAMILY, PACKAGE, SEED, TASK, Graph
from pd_pipeline.stage import Key
from pd_pipeline.storage import atomic_file, digest, file_digest

DVC_FILE = "dvc.yaml"
CODE_FILE = "code.json"
CODE_STAGE = "code"
HEADER = (
    "# Rendered from params.yaml and pd_pipeline/graph.py by `pd-pipeline graph --write`: edit those, never this.\n"
)
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


def code_files(graph: Graph) -> list[Path]:
    """Every file whose code makes an out."""
    return sorted({file for name in graph.stages for key in graph.keys(name) for file in graph.code(name, key)})


def code_digests(graph: Graph) -> dict[str, dict[str, str]]:
    """Stage -> family (`all` where the stage has none) -> digest of the files that make its outs."""
    contents = {file: file_digest(file) for file in code_files(graph)}
    found: dict[str, dict[str, str]] = {}
    for name in graph.stages:
        for key in graph.keys(name):
            family = key.family or "all"
            if family not in found.setdefault(name, {}):
                named = [f"{code_name(f, graph.root)} {contents[f].hex()}" for f in graph.code(name, key)]
                found[name][family] = digest(*sorted(named), *graph.entry_points(key))[:32]
    return found


def render(graph: Graph) -> str:
    """The text of dvc.yaml."""
    lines = [*_code_stage(graph), *(line for name in graph.stages for line in _stage(graph, name))]
    return f"{HEADER}stages:\n" + "\n".join(lines) + "\n"


def check(graph: Graph) -> None:
    """Raise PipelineError where dvc.yaml is not what `write` would leave."""
    if _present(graph.root / DVC_FILE) != render(graph):
        path = graph.root / DVC_FILE
        raise PipelineError(f"{path}: not what params.yaml and the code ask for: run `pd-pipeline graph --write`")


def write(graph: Graph) -> bool:
    """Bring dvc.yaml and code.json up to date; returns whether one of them had to change."""
    wanted = {
        graph.root / DVC_FILE: render(graph),
        graph.root / CODE_FILE: json.dumps(code_digests(graph), indent=1, sort_keys=True) + "\n",
    }
    stale = {path: text for path, text in wanted.items() if _present(path) != text}
    for path, text in stale.items():
        with atomic_file(path) as temporary:
            temporary.write_text(text)
    return bool(stale)


def _present(path: Path) -> str | None:
    try:
        return path.read_text() if path.is_file() else None
    except UnicodeDecodeError:
        return None


def _code_stage(graph: Graph) -> Iterator[str]:
    """The stage that writes code.json, for `dvc repro`."""
    files = code_files(graph)
    if not in_checkout(graph.root):
        files = [file for file in files if PACKAGE not in file.parents]
    if not files:
        return
    yield f"  {CODE_STAGE}:"
    yield "    cmd: pd-pipeline graph --write"
    yield "    deps:"
    yield from (f"    - {_plain(relative(file, graph.root))}" for file in files)
    yield "    params:"
    yield "    - run"
    yield from (f"    - {_plain(f'families.{family}.environment')}" for family in graph.params.run.families)
    yield "    outs:"
    yield f"    - {CODE_FILE}:"
    yield "        cache: false"
    yield "        persist: true"


def _stage(graph: Graph, name: str) -> Iterator[str]:
    """The lines of one stage, of all its keys."""
    stage, keys = graph.stages[name], graph.keys(name)
    for family in {key.family for key in keys if key.family is not None}:
        graph.params.block(family, name)  # a missing block is better refused here than by DVC
    yield f"  {name}:"
    if not stage.axes:
        yield from (f"    {line}" for line in _body(graph, name, Key()))
        return
    yield "    foreach:"
    for key in keys:
        items = {axis: getattr(key, axis) for axis in (FAMILY, TASK, SEED) if axis in stage.axes}
        yield f"      {_plain(str(key))}: {{{', '.join(f'{n}: {_plain(v)}' for n, v in items.items())}}}"
    yield "    do:"
    template = Key(*(getattr(_TEMPLATE_KEY, axis) if axis in stage.axes else None for axis in (FAMILY, TASK, SEED)))
    yield from (f"      {line}" for line in _body(graph, name, template))


def _body(graph: Graph, name: str, key: Key) -> Iterator[str]:
    """What DVC needs to know of one piece of work, or of all through a template for the key."""
    stage = graph.stages[name]
    yield f"cmd: pd-pipeline run {name}" + (" --key ${key}" if stage.axes else "")
    if stage.needs:
        yield "deps:"
        yield from (f"- {_plain(_input(graph, name, key, need))}" for need in stage.needs)
    yield "params:"
    yield from (f"- {_plain(value)}" for value in graph.params_keys(name, key))
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
