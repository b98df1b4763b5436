"""One job for everything: all work that is not up to date, in the order of the graph."""

from collections.abc import Iterator

import dagster as dg

from assets.stages import make
from assets.work import GPU_POOL, RETRIES
from pd_pipeline.graph import Graph
from pd_pipeline.stages import EVALUATION, REPORT, TARGET_EVALUATION


def bring_up_to_date_job(project: Graph) -> dg.JobDefinition:
    """One run with one step per asset, which materializes the partitions that are not up to date.

    Not `define_asset_job`: Dagster does not allow assets with different partitions in one run, and a backfill needs
    several runs in sequence even if there is little to do.
    """

    @dg.job(name="bring_up_to_date", description="Do all work that is not up to date.")
    def job() -> None:
        made: dict[str, object] = {}
        for stage, needs in _steps(project).items():
            made[stage] = _step(project, stage)([made[need] for need in needs])

    return job


def _steps(project: Graph) -> dict[str, tuple[str, ...]]:
    """Stage -> the stages before it. The first data of a target may come after the definitions were loaded."""
    found = {name: stage.needs for name, stage in project.stages.items()}
    if TARGET_EVALUATION not in found:
        before = found.pop(REPORT)
        found |= {TARGET_EVALUATION: found[EVALUATION], REPORT: (*before, TARGET_EVALUATION)}
    return found


def _step(project: Graph, stage: str) -> dg.OpDefinition:
    @dg.op(
        name=f"make_{stage}",  # the step of the asset itself already has the name of the stage
        ins={"needs": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        pool=GPU_POOL if stage == TARGET_EVALUATION or project.stages[stage].computes else None,
        retry_policy=RETRIES,
        description=f"`pd-pipeline run {stage}`",
    )
    def step(context: dg.OpExecutionContext) -> Iterator[object]:
        yield from make(context, project, stage)

    return step
