"""Scheduled retraining: everything that is not up to date is made, in the order of the graph."""

from pathlib import Path

import dagster as dg

from assets.reporting_back import report
from assets.stages import GPU_POOL
from pd_pipeline import graph, lineage, preflight
from pd_pipeline.errors import EXPECTED, PipelineError, described
from pd_pipeline.progress import LineProgress
from pd_pipeline.workers import die_with_parent


def bring_up_to_date_job(root: Path) -> dg.JobDefinition:
    """One step for all pieces of work: a run each would cost seconds even where there is nothing to do."""

    @dg.op(name="make_what_is_out_of_date", pool=GPU_POOL)
    def make(context: dg.OpExecutionContext) -> None:
        die_with_parent()  # a step whose run was killed would hold its piece of work against the next run
        try:
            project = graph.load(root)
            preflight.check(project)
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        try:
            for stage in project.stages:
                for key in project.keys(stage):
                    if not lineage.run(project, stage, key, LineProgress(context.log.info)).skipped:
                        context.log.info(f"{stage} {key}: made")
        except EXPECTED as error:
            raise dg.Failure(described(error), allow_retries=False) from None
        finally:
            context.log.info(f"reported: {', '.join(report(context.instance, project)) or 'nothing new'}")

    @dg.job(name="bring_up_to_date", description="Make every piece of work that is not up to date.")
    def job() -> None:
        make()

    return job


def nightly(job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Retraining at night on whatever changed: new trajectories, parameters or code. Off until switched on."""
    return dg.ScheduleDefinition(name="retrain_nightly", job=job, cron_schedule="0 2 * * *")
