"""What new data of targets asks for: their tuning and evaluation, the comparison with the policies in use, a report."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pd_pipeline import graph as graphs
from pd_pipeline import lineage, preflight
from pd_pipeline.alerts import alert
from pd_pipeline.decisions import decisions, folders
from pd_pipeline.deployment.promotion import candidate_method, candidate_of, in_use, is_decided, promote
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.offline import TooFew
from pd_pipeline.graph import Graph
from pd_pipeline.piece import is_made
from pd_pipeline.progress import Progress
from pd_pipeline.stage import Key
from pd_pipeline.stages import PAGE, REPORT, TARGET_EVALUATION, TUNED


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


def retune(root: Path, progress: Progress, say: Callable[[str], None]) -> bool:
    """Do what is out of date for every target with accepted data, and compare its policy with the one in use.

    Then bring the report up to date. One target that fails does not hold up the others. Returns whether all succeeded.
    """
    graph = graphs.load(root)
    preflight.check(graph)
    if lineage.is_recording(graph):
        lineage.keep_rendered(graph)  # so that DVC knows of new targets that wait for more data
    good, news = True, False
    for family, tasks in graph.accepted.items():
        for task in tasks:
            target = f"{family}-{task}"
            try:
                for stage, key in pieces(graph, family, task):
                    if not lineage.run(graph, stage, key, progress).skipped:
                        news = True
                        say(f"{stage} {key}: done")
                if waits := waiting_for(graph, family, task):
                    say(f"{target}: waits: {waits}")
                    continue
                decision = promote(graph, target, say)
                if decision is not None:
                    news = True
                    say(f"{target}: {decision.outcome}: {decision.reason}")
            except TooFew as waits_for:
                say(f"{target}: waits: {waits_for}")
            except PipelineError as error:
                good = False
                say(f"{target}: {error}")
                alert(graph, "failure", target, str(error))
    return _reported(graph, progress, say, news) and good


def _reported(graph: Graph, progress: Progress, say: Callable[[str], None], news: bool) -> bool:
    """Bring the report up to date if there is accepted data and all that it reads is there; False if that fails.

    Otherwise say what it waits for, if there are `news` of targets.
    """
    if not any(graph.accepted.values()):
        return True
    needed = graph.upstream(REPORT, Key())
    missing = next((piece for piece in needed if not (graph.root / graph.out(*piece)).exists()), None)
    try:
        if missing is None and not lineage.run(graph, REPORT, Key(), progress).skipped:
            say(f"{REPORT}: done")
            say(str(graph.root / graph.out(REPORT, Key()) / PAGE))
        elif missing is not None and news:
            say(f"{REPORT}: waits for {missing[0]} {missing[1]}: run `pd-pipeline run all`")
    except PipelineError as error:
        say(f"{REPORT}: {error}")
        return False
    return True


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
