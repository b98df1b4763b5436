"""What new data of targets asks for: their tuning and evaluation, the comparison with the policies in use, a report."""

from collections.abc import Callable
from pathlib import Path

from pd_pipeline import graph as graphs
from pd_pipeline import lineage, preflight
from pd_pipeline.alerts import alert
from pd_pipeline.deployment.promotion import promote
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.enough import TooFew
from pd_pipeline.graph import Graph
from pd_pipeline.incoming.standing import pieces, waiting_for
from pd_pipeline.progress import Progress
from pd_pipeline.stage import Key
from pd_pipeline.stages import PAGE, REPORT


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
