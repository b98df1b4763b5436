"""Which tuned policy of a target is to be put in use, whether that is decided, and which version is in use now."""

import re
from pathlib import Path

from pd_pipeline import records
from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.decisions import current_if_any, decisions, folder_of
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.graph import Graph
from pd_pipeline.stage import Key
from pd_pipeline.stages import TUNED

PREFERRED = "prompt_diffuser"
"""The method whose policies are used, unless params.yaml names another."""


def candidate_method(graph: Graph) -> str:
    """The method whose policies are put in use. Raises PipelineError."""
    run = graph.params.run
    method = graph.params.promotion.method or (PREFERRED if PREFERRED in run.methods else run.methods[0])
    if method not in run.methods:
        raise PipelineError(f"{PARAMS_FILE}: promotion.method: '{method}': {suggestion(method, run.methods)}")
    return method


def candidate_of(graph: Graph, target: str) -> tuple[str, Key]:
    """Method and key of the policy that would be in use for a target, as params.yaml asks. Raises PipelineError."""
    asked, run, method = graph.params.promotion, graph.params.run, candidate_method(graph)
    seed = run.seeds[0] if asked.seed is None else asked.seed
    if seed not in run.seeds:
        raise PipelineError(f"{PARAMS_FILE}: promotion.seed: {seed} is not among run.seeds")
    keys = {f"{key.family}-{key.task}": key for key in graph.keys(f"{TUNED}{method}") if key.seed == seed}
    if target not in keys:
        raise PipelineError(f"'{target}' is no target, or has too few trajectories: {suggestion(target, sorted(keys))}")
    return method, keys[target]


def is_decided(graph: Graph, target: str) -> bool:
    """Whether the tuned policy of a target that is there now was decided on last, or taken back by hand."""
    method, key = candidate_of(graph, target)
    made = decisions(graph.root, target)
    new = [decision for decision in made if decision.outcome != "rolled back"]
    taken_back = {decision.against for decision in made if decision.outcome == "rolled back"}
    final = new[-1:] + [decision for decision in new if decision.version in taken_back - {None}]
    tuned = method, digests_of(graph, method, key)
    return any((decision.method, decision.made_from) == tuned for decision in final)


def digests_of(graph: Graph, method: str, key: Key) -> dict[str, str]:
    """File of the PLM and of a tuned out, relative to the project -> SHA-256."""
    outs = graph.input(f"{TUNED}{method}", key, "plm"), graph.out(f"{TUNED}{method}", key)
    return {
        (out / name).as_posix(): digest for out in outs for name, digest in records.listing(graph.root / out).items()
    }


def versions(home: Path) -> list[int]:
    """The versions of a target, oldest first."""
    return sorted(int(path.name) for path in home.glob("*") if re.fullmatch(r"\d{4,}", path.name) and path.is_dir())


def in_use(root: Path, target: str) -> tuple[int, str] | None:
    """The version of a target that is in use, and since when; None if none is."""
    found = current_if_any(folder_of(root, target))
    return None if found is None else (found.version, found.since)
