"""What a piece of work is made from, at one moment, and whether that has changed while it ran.

DVC hashes dependencies after a command has run. Here they are taken before it too, so that nothing is recorded as made
from a state that it was not made from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pd_pipeline import config, rendering
from pd_pipeline import graph as graphs
from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.rendering import address, relative
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest


@dataclass(frozen=True)
class Snapshot:
    """What a piece of work is made from, at one moment."""

    code: dict[str, str]
    parameters: dict[str, str]
    digests: dict[str, str]
    """Of both, as DVC records them."""
    inputs: dict[Path, tuple[str, str]]
    """Path -> (digest of names, sizes and times; digest of contents)."""


def snapshot(graph: Graph, stage: str, key: Key) -> Snapshot:
    """What the piece of work would be made from now. Raises PipelineError where this process runs older code."""
    code = {relative(file, graph.root): _md5(file) for file in graph.code(stage, key)}
    for file in graph.code(stage, key):
        if file.suffix == ".py" and _first_seen(file) != _md5(file):  # what else makes an out is read anew
            raise PipelineError(f"{file}: edited since this process started, which still runs the old code: run again")
    paths = [graph.root / graph.input(stage, key, need) for need in graph.stages[stage].needs]
    inputs = {path: (stamp(path), digest(path)) for path in paths if path.exists()}
    parameters = graphs.written(graph.values, graph.sections(stage, key))
    return Snapshot(code, parameters, rendering.digests(graph, stage, key), inputs)


def refuse_changes(graph: Graph, stage: str, key: Key, before: Snapshot) -> None:
    """Raise PipelineError where code, parameters or inputs are no longer what they were."""
    changed = [name for name, md5 in before.code.items() if _md5(graph.root / name) != md5]
    now = graphs.written(_values_now(graph), list(before.parameters))
    changed += [f"{PARAMS_FILE} ({name})" for name, value in before.parameters.items() if now[name] != value]
    known = rendering.is_project(graph.root) and not graph.is_changed
    digests = rendering.recorded(graph.root, stage, key) if known else None
    if digests not in (None, before.digests):
        changed.append(rendering.DIGESTS_FILE)
    for path, (seen, content) in before.inputs.items():
        if not path.exists() or (stamp(path) != seen and digest(path) != content):
            changed.append(relative(path, graph.root))
    if changed:
        raise PipelineError(
            f"{address(stage, key)}: {', '.join(changed)} changed while it ran: what it made is not recorded, "
            "since nobody knows from which state; run it again"
        )


def _values_now(graph: Graph) -> Mapping[str, Any]:
    text = config.read_text(graph.root)
    return graph.values if text == graph.text else graphs.values_now(graph.root, text, graph.overrides, graph.base)


def version(graph: Graph, stage: str) -> str:
    """Digest of the code and the parameters of all pieces of a stage, as they are now."""
    files = sorted({file for key in graph.keys(stage) for file in graph.code(stage, key)})
    code = [(rendering.code_name(file, graph.root), _md5(file), _first_seen(file))[:2] for file in files]
    names = sorted({name for key in graph.keys(stage) for name in graph.sections(stage, key)})
    return hashlib.md5(as_json([code, graphs.written(graph.values, names)]).encode()).hexdigest()


def as_json(value: Any) -> str:
    """A value as text, the same for equal ones."""
    return json.dumps(value, sort_keys=True, default=str)


@cache
def _first_seen(file: Path) -> str:
    return _md5(file)


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest() if file.is_file() else "missing"


def stamp(path: Path) -> str:
    """Names, sizes and times of the files of a path: cheap, and changed by every edit."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(str(file), file.stat()) for file in files]
    return as_json([(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats])
