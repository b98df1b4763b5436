"""How it stands with targets: the work that their data ask for, what they wait for, which policy is in use."""

from collections.abc import Iterator
from typing import NamedTuple

from pd_pipeline.decisions import decisions, folders
from pd_pipeline.deployment.candidates import candidate_method, candidate_of, in_use, is_decided
from pd_pipeline.graph import Graph
from pd_pipeline.piece import is_made
from pd_pipeline.stage import Key
from pd_pipeline.stages import TARGET_EVALUATION, TUNED


def pieces(graph: Graph, family: str, task: int) -> list[tuple[str, Key]]:
    """The work of one target: its data, its tuning by every method that has enough trajectories, and its evaluation."""
    tuned = [name for name in graph.stages if name.startswith(TUNED)]
    stages = ["target_data", *tuned, *(name for name in graph.stages if name == TARGET_EVALUATION)]
    return [(name, key) for name in stages for key in graph.keys(name) if (key.family, key.task) == (family, task)]


def waiting_for(graph: Graph, family: str, task: int) -> str:
    """What a target still waits for until the policy to promote can be tuned; empty if it waits for nothing."""
    if task in graph.tasks[family]:
        return ""
    method = candidate_method(graph)
    lacking = graph.lacking(f"{TUNED}{method}", family, task)
    return ", ".join(f"{found} of {needed} trajectories of quality {name}" for name, (found, needed) in lacking.items())


class Status(NamedTuple):
    """How it stands with one target."""

    target: str
    in_use: str
    newer: str
    waits: str
    refused: str
    rolled_back: str


def targets(graph: Graph) -> list[tuple[str, int]]:
    """Family and task of every target that has accepted data or a decision on a policy."""
    known = [(family, task) for family in graph.params.run.families for task in graph.tasks[family]]
    decided = {folder.parent.name for folder in folders(graph.root, graph.params.run.families)}
    accepted = {(family, task) for family, tasks in graph.accepted.items() for task in tasks}
    return sorted(accepted | {one for one in known if f"{one[0]}-{one[1]}" in decided})


def status(graph: Graph) -> Iterator[Status]:
    """How it stands with each of `targets`."""
    for family, task in targets(graph):
        target = f"{family}-{task}"
        current, made = in_use(graph.root, target), decisions(graph.root, target)
        waits = waiting_for(graph, family, task)
        last = made[-1] if made else None
        yield Status(
            target,
            "nothing" if current is None else f"version {current[0]} since {current[1]}",
            "" if waits else _newer(graph, target),
            waits,
            last.reason if last is not None and last.outcome == "refused" else "",
            f"version {last.against}, by hand" if last is not None and last.outcome == "rolled back" else "",
        )


def _newer(graph: Graph, target: str) -> str:
    """What of the policy to promote is out of date or undecided; empty if nothing is."""
    method, key = candidate_of(graph, target)
    stage, promoting = f"{TUNED}{method}", f"pd-pipeline promote {target}"
    for name, piece in (("target_data", Key(key.family, key.task)), (stage, key)):
        if not is_made(graph, name, piece):
            return f"{name} is out of date: `pd-pipeline run {name} --key {piece}`, then `{promoting}`"
    return "" if is_decided(graph, target) else f"a tuned policy that nothing was decided on: `{promoting}`"
