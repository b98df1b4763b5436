"""What an out is made from: its code, its parameters and what it reads, and digests of these."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pd_pipeline import config, decisions
from pd_pipeline.code_names import code_name
from pd_pipeline.content import content_digest
from pd_pipeline.families.base import entry_point, read_files, source_files
from pd_pipeline.graph import Graph
from pd_pipeline.incoming import store
from pd_pipeline.sources import PACKAGE, import_closure, local_closure
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest, file_digest

ACTING_BY_LEVELS = ("behavior_policies", "trajectories")
"""The stages in which policies of `behavior_policies.levels` are created, and act."""


def code(graph: Graph, stage: str, key: Key) -> list[Path]:
    """The files of the project and the package whose code produces the out, sorted."""
    files = set(import_closure(graph.stages[stage].modules))
    sources = [graph.stages[name].source for name in (stage, *graph.stages[stage].needs)]
    for source in sources:
        if source is not None and graph.root in source.parents:
            files |= local_closure(source, graph.root)
    files |= set(graph.stages[stage].files)
    for source in family_sources(graph, key.family, stage) if key.family is not None else ():
        files |= local_closure(source, graph.root)
    if key.family is not None:
        files |= {*read_files(key.family, graph.params.block(key.family, "environment"), graph.root)}
    files |= {template for folder in {file.parent for file in files} for template in folder.glob("templates/*")}
    return sorted(files)


def family_sources(graph: Graph, family: str, stage: str | None = None) -> list[Path]:
    """The files that define a family, except those installed outside the project and the package.

    With those of the policies that `behavior_policies` describes, for all stages (None) or where `stage` acts by them.
    """
    acts = stage in (None, *ACTING_BY_LEVELS)
    levels = graph.params.block(family, "behavior_policies").get("levels") if acts else None
    described = levels if isinstance(levels, Mapping) else {}
    sources = source_files(family, graph.params.block(family, "environment"), described, graph.root)
    return [source for source in sources if {PACKAGE, graph.root} & {*source.parents}]


def entry_points(graph: Graph, key: Key) -> list[str]:
    """The entry points of the families of a key: no out depends on the whole table of families."""
    families = [key.family] if key.family is not None else graph.params.run.families
    return [entry_point(name, graph.params.block(name, "environment")) for name in families]


def code_digest(graph: Graph, stage: str, key: Key) -> str:
    """Digest of the code whose changes make the out stale: the same for all keys of a stage and family."""
    named = sorted(f"{code_name(file, graph.root)} {file_digest(file).hex()}" for file in code(graph, stage, key))
    return digest(*named, *entry_points(graph, key))[:16]


def sections(graph: Graph, stage: str, key: Key) -> list[str]:
    """The dotted names of the sections of params.yaml that a piece of work reads."""
    if graph.stages[stage].preset is not None:
        return ["run", "families"]
    if key.family is None:  # the report shows the parameters of everything it reports
        return ["run", stage, *(f"families.{family}" for family in graph.params.run.families)]
    own = (config.TARGET, stage) if stage.startswith(config.TUNED) else (graph.stages[stage].block or stage,)
    return [f"families.{key.family}.{block}" for block in ("environment", *own)]


def sections_as_json(values: Mapping[str, Any], names: list[str]) -> dict[str, str]:
    """Name -> the section of params.yaml as JSON, without defaults; {} for a section that is left out."""
    found = {}
    for name in names:
        value: Any = values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        found[name] = json.dumps({} if value is None else value, sort_keys=True, default=str)
    return found


def recordings(graph: Graph, stage: str, key: Key) -> list[Path]:
    """The trajectory files of users that a piece of work reads, sorted.

    They are those of a family without a simulator; for a stage of targets, those that were accepted for its target; for
    a study, those of all its points.
    """
    if graph.stages[stage].recordings:
        return [*graph.stages[stage].recordings]
    if key.family is None or not graph.stages[stage].reads_recordings:
        return []
    if key.task is not None:
        return store.files(graph.root, key.family, key.task)
    return sorted(path for paths in graph.family(key.family).recordings.values() for path in paths)


def decision_folders(graph: Graph, stage: str) -> list[Path]:
    """The folders with decisions on policies in use that a stage reads, sorted."""
    reads = graph.stages[stage].reads_decisions
    return decisions.folders(graph.root, graph.params.run.families) if reads else []


def work_digest(graph: Graph, stage: str, key: Key) -> str:
    """Digest of the code, parameters and inputs of a piece of work, wherever they are.

    It names the resume folder, and says whether an out is up to date where DVC does not.
    """
    parts: list[Path | str] = [stage, graph.stage_params(stage, key).model_dump_json(), str(key)]
    if key.family is not None:
        parts.append(repr(sorted(graph.params.block(key.family, "environment").items())))
    else:
        parts += sections_as_json(graph.values, sections(graph, stage, key)).values()  # the report shows them
    for need, other in graph.upstream(stage, key):
        parts += [f"{need} {other}", graph.root / graph.out(need, other)]
    parts += decision_folders(graph, stage)
    if brought := recordings(graph, stage, key):
        parts.append(content_digest(graph.root, brought))
    return digest(*parts, code_digest(graph, stage, key))
