"""Doing pieces of work inside a Dagster step: the same as `pd-pipeline run`, with Dagster's log and retries."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from pd_pipeline import graph, lineage, preflight
from pd_pipeline.engines.engine import chosen
from pd_pipeline.errors import EXPECTED, PipelineError, described
from pd_pipeline.graph import Graph
from pd_pipeline.lineage import Outcome
from pd_pipeline.progress import LineProgress
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest
from pd_pipeline.studies import execution

GPU_POOL = "gpu"
RETRIES = dg.RetryPolicy(max_retries=1)  # for transient errors; those that the user has to fix are not retried

Context = dg.AssetExecutionContext | dg.OpExecutionContext


@dataclass(frozen=True)
class Done:
    """A piece of work that a step has done, or found up to date."""

    stage: str
    key: Key
    outcome: Outcome
    data_version: str
    seconds: float
    why: str
    """Why it was done; empty if it was up to date."""

    @property
    def name(self) -> str:
        """Stage and key, as the command line takes them."""
        return f"{self.stage} {self.key}".strip()


@dataclass(frozen=True)
class Problem:
    """A piece of work that failed."""

    text: str
    transient: bool
    """Whether it may succeed when it is tried again."""


def current(project: Graph) -> Graph:
    """The project as it is now: params.yaml may have changed since the definitions were loaded.

    Raises dagster.Failure if it cannot run.
    """
    try:
        now = graph.load(project.root)
        preflight.check(now)
    except PipelineError as error:
        raise failure(error) from None
    return now


def failure(error: PipelineError) -> dg.Failure:
    """The failure of a step for a mistake that the user has to mend: it is not retried."""
    return dg.Failure(str(error), allow_retries=False)


def do(context: Context, project: Graph, pieces: list[tuple[str, Key]]) -> Iterator[Done]:
    """Do pieces of work one after another. If one fails, the others are still done.

    Where PD_PIPELINE_ENGINE says so, they are computed on a cluster, side by side. Raises dagster.Failure at the end;
    it is retried only if one of the errors was transient.
    """
    numbers = {piece: number for number, piece in enumerate(pieces, 1)}

    def one(stage: str, key: Key) -> Done | Problem:
        name = f"{stage} {key}".strip()
        count = f" ({numbers[stage, key]} of {len(pieces)})" if len(pieces) > 1 else ""
        try:
            began = time.monotonic()
            why = lineage.why(project, stage, key)
            if why:
                context.log.info(f"{name}: {why}{count}")
            outcome = execution.run(project, stage, key, LineProgress(context.log.info), engine=engine)
            seconds = time.monotonic() - began
            context.log.info(f"{name}: {'up to date' if outcome.skipped else f'done in {seconds:.1f} s'}{count}")
            version = outcome.data_version or digest(project.root / project.out(stage, key))
            return Done(stage, key, outcome, version, seconds, "" if outcome.skipped else why)
        except EXPECTED as error:  # a mistake of the user, or a transient error such as a full disk
            context.log.error(f"{name}: {described(error)}{count}")
            text = described(error) if len(pieces) == 1 else f"{name}: {described(error)}"
            return Problem(text, not isinstance(error, PipelineError))

    problems: list[Problem] = []
    try:
        with chosen() as engine:
            for found in engine.results(pieces, project.upstream, one):
                if isinstance(found, Problem):
                    problems.append(found)
                else:
                    yield found
    except PipelineError as error:  # there is no such engine
        raise failure(error) from None
    if problems:
        others = f"{len(problems)} of {len(pieces)} failed: " if len(pieces) > 1 else ""
        texts = "; ".join(problem.text for problem in problems)
        raise dg.Failure(others + texts, allow_retries=any(problem.transient for problem in problems))
