"""Snapshots of the code, parameters and inputs of a piece of work, to detect changes during the work.

DVC hashes dependencies only after a command has finished. Here they are also hashed before it, so an out is never
recorded with dependencies that it was not made from.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pd_pipeline import config, made_from, rendering
from pd_pipeline import graph as graphs
from pd_pipeline.code_names import code_name, relative
from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.content import content_digest
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.rendering import address
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest


@dataclass(frozen=True)
class Snapshot:
    """Code, parameters and inputs of a piece of work at one moment."""

    code: dict[str, str]
    parameters: dict[str, str]
    digests: dict[str, str]
    """Digests of code and parameters, as recorded in DVC."""
    inputs: dict[Path, tuple[str, str]]
    """Path -> (digest of names, sizes and times; digest of contents)."""


def snapshot(graph: Graph, stage: str, key: Key) -> Snapshot:
    """Take a snapshot. Raises PipelineError if this process has older code loaded."""
    code = {relative(file, graph.root): _md5(file) for file in made_from.code(graph, stage, key)}
    for file in made_from.code(graph, stage, key):
        if file.suffix == ".py" and _first_seen(file) != _md5(file):  # other files are not kept in memory
            raise PipelineError(f"{file}: edited after this process loaded it: run the command again")
    paths = [graph.root / path for path in graph.inputs(stage, key).values()]
    paths += [*made_from.recordings(graph, stage, key), *made_from.decision_folders(graph, stage)]
    inputs = {path: (stamp(path), _content(graph, path)) for path in paths if path.exists()}
    parameters = made_from.sections_as_json(graph.values, made_from.sections(graph, stage, key))
    return Snapshot(code, parameters, rendering.digests(graph, stage, key), inputs)


def refuse_changes(graph: Graph, stage: str, key: Key, before: Snapshot) -> None:
    """Raise PipelineError if code, parameters or inputs differ from the snapshot."""
    changed = [name for name, md5 in before.code.items() if _md5(graph.root / name) != md5]
    now = made_from.sections_as_json(_values_now(graph), list(before.parameters))
    changed += [f"{PARAMS_FILE} ({name})" for name, value in before.parameters.items() if now[name] != value]
    known = rendering.is_project(graph.root) and not graph.is_overridden
    digests = rendering.recorded(graph.root, stage, key) if known else None
    if digests not in (None, before.digests):
        changed.append(rendering.DIGESTS_FILE)
    for path, (seen, content) in before.inputs.items():
        if not path.exists() or (stamp(path) != seen and _content(graph, path) != content):
            changed.append(relative(path, graph.root))
    if changed:
        raise PipelineError(
            f"{address(stage, key)}: {', '.join(changed)} changed during the work: the out is not "
            "recorded, since it may be made from either version: run it again"
        )


def _content(graph: Graph, path: Path) -> str:
    return digest(path) if path.is_dir() else content_digest(graph.root, [path])


def _values_now(graph: Graph) -> Mapping[str, Any]:
    text = config.read_text(graph.root)
    return (
        graph.values if text == graph.text else graphs.effective_values(graph.root, text, graph.overrides, graph.base)
    )


def version(graph: Graph, stage: str) -> str:
    """Digest of the current code and parameters of all pieces of a stage."""
    files = sorted({file for key in graph.keys(stage) for file in made_from.code(graph, stage, key)})
    code = [(code_name(file, graph.root), _md5(file), _first_seen(file))[:2] for file in files]
    names = sorted({name for key in graph.keys(stage) for name in made_from.sections(graph, stage, key)})
    return hashlib.md5(as_json([code, made_from.sections_as_json(graph.values, names)]).encode()).hexdigest()


def as_json(value: Any) -> str:
    """A value as JSON; equal values give equal text."""
    return json.dumps(value, sort_keys=True, default=str)


@cache
def _first_seen(file: Path) -> str:
    return _md5(file)


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest() if file.is_file() else "missing"


def stamp(path: Path) -> str:
    """Names, sizes and times of the files at a path: cheap to compute, and every edit changes it."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [(str(file), file.stat()) for file in files]
    return as_json([(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats])
