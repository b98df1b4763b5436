"""Scheduled retraining: all work that is not up to date, in the order of the graph."""

from collections.abc import Iterator

import dagster as dg

from assets.stages import GPU_POOL, RETRIES, make
from pd_pipeline import graph, lineage
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph


def bring_up_to_date_job(project: Graph) -> dg.JobDefinition:
    """One run with one step per asset, which materializes the partitions that are not up to date.

    Not `define_asset_job`: Dagster does not allow assets with different partitions in one run, and a backfill needs
    several runs in sequence even if there is little to do.
    """

    @dg.job(name="bring_up_to_date", description="Do all work that is not up to date.")
    def job() -> None:
        made: dict[str, object] = {}
        for stage in project.stages.values():
            made[stage.name] = _step(project, stage.name)([made[need] for need in stage.needs])

    return job


def _step(project: Graph, stage: str) -> dg.OpDefinition:
    @dg.op(
        name=f"make_{stage}",  # the step of the asset itself already has the name of the stage
        ins={"needs": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        pool=GPU_POOL if project.stages[stage].computes else None,
        retry_policy=RETRIES,
        description=f"`pd-pipeline run {stage}`",
    )
    def step(context: dg.OpExecutionContext) -> Iterator[object]:
        yield from make(context, project, stage)

    return step


def nightly(project: Graph, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Nightly retraining after changes of trajectories, parameters or code. Off until switched on."""

    @dg.schedule(name="retrain_nightly", job=job, cron_schedule="0 2 * * *")
    def body(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        try:
            now = graph.load(project.root)
            if len(lineage.data_versions(now)) == sum(len(now.keys(stage)) for stage in now.stages):
                return dg.SkipReason("everything is up to date")
        except PipelineError as error:
            context.log.warning(str(error))  # the run then fails visibly with the same message
        return dg.RunRequest()

    return body
