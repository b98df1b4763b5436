"""The three schedules. `automation` in params.yaml says when each runs, in which time zone, and whether at all."""

from collections.abc import Callable, Iterator

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._utils.schedules import is_valid_cron_string

from assets.incoming import REASON, request
from assets.partitions import TARGETS
from assets.targets import targets
from pd_pipeline import graph, lineage
from pd_pipeline.config import PARAMS_FILE, AutomationParams
from pd_pipeline.deployment.candidates import is_decided
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.incoming import standing
from pd_pipeline.stages import FAMILY, REPORT, RESULTS, SEED

Requests = list[dg.RunRequest]
Job = dg.JobDefinition | UnresolvedAssetJobDefinition


def report_job(project: Graph) -> UnresolvedAssetJobDefinition:
    """The results that the report shows, and the report."""
    names = [*_results(project), REPORT]
    return dg.define_asset_job(
        "refresh_report",
        selection=dg.AssetSelection.assets(*names),
        description="Evaluate again, and write the report.",
    )


def _results(project: Graph) -> list[str]:
    """The stages whose outs the report shows; they have the same partitions."""
    return [stage.name for stage in project.stages.values() if stage.group == RESULTS and stage.axes == (FAMILY, SEED)]


def schedules(
    project: Graph,
    everything: dg.JobDefinition,
    retune: UnresolvedAssetJobDefinition,
    report: UnresolvedAssetJobDefinition,
) -> list[dg.ScheduleDefinition]:
    """All schedules of a project."""
    asked = project.params.automation

    def out_of_date_targets(context: dg.ScheduleEvaluationContext, now: Graph) -> Requests:
        context.instance.add_dynamic_partitions(str(TARGETS.name), targets(now))
        reasons = {target: _reason(now, target) for target in targets(now)}
        return [request(now, target, reason, target) for target, reason in reasons.items() if reason]

    def out_of_date_results(_: dg.ScheduleEvaluationContext, now: Graph) -> Requests:
        whys = {key: [lineage.why(now, stage, key) for stage in _results(now)] for key in now.keys("evaluation")}
        found = [
            dg.RunRequest(
                run_key=str(key),  # Dagster asks for keys where there are several requests
                partition_key=str(key),
                asset_selection=[dg.AssetKey(stage) for stage in _results(now)],
                tags={REASON: next(filter(None, reasons))},
            )
            for key, reasons in whys.items()
            if any(reasons)
        ]
        return found or [dg.RunRequest(asset_selection=[dg.AssetKey(REPORT)])]  # it follows new results by itself

    def all_out_of_date(_: dg.ScheduleEvaluationContext, now: Graph) -> Requests:
        made, pieces = len(lineage.data_versions(now)), sum(len(now.keys(stage)) for stage in now.stages)
        return [] if made == pieces else [dg.RunRequest(tags={REASON: f"{pieces - made} out of date"})]

    return [
        _schedule(project, "retune", asked.retune, "0 1 * * *", retune, out_of_date_targets),
        _schedule(project, "retrain", asked.retrain, "0 2 * * *", everything, all_out_of_date),
        _schedule(project, "report", asked.report, "0 6 * * *", report, out_of_date_results),
    ]


def _schedule(
    project: Graph,
    name: str,
    cron: str | None,
    usual: str,
    job: Job,
    asked: Callable[[dg.ScheduleEvaluationContext, Graph], Requests],
) -> dg.ScheduleDefinition:
    """A schedule that is on if params.yaml says when, and otherwise off, at the usual time."""

    def body(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        try:
            found = asked(context, graph.load(project.root))
        except PipelineError as error:
            context.log.error(str(error))
            yield dg.SkipReason(str(error))
            return
        yield from found
        if not found:
            yield dg.SkipReason("everything is up to date")

    if cron and not is_valid_cron_string(cron):
        raise PipelineError(f"{PARAMS_FILE}: automation.{name}: '{cron}' is no time: write such as '0 2 * * *'")
    return dg.ScheduleDefinition(
        name=name,
        cron_schedule=cron or usual,
        execution_timezone=project.params.automation.time_zone,
        execution_fn=body,
        default_status=dg.DefaultScheduleStatus.RUNNING if cron else dg.DefaultScheduleStatus.STOPPED,
        job=job,
        description=f"{AutomationParams.model_fields[name].description}, by `automation.{name}` of params.yaml".replace(
            "; null: not by itself", ""
        ),
    )


def _reason(project: Graph, target: str) -> str:
    """Why a target has work to do; empty if it has none, or waits for data."""
    family, _, number = target.rpartition("-")
    task = int(number)
    if standing.waiting_for(project, family, task):
        return ""
    for stage, key in standing.pieces(project, family, task):
        if why := lineage.why(project, stage, key):
            return f"{stage} {key}: {why}"
    return "" if is_decided(project, target) else "nothing was decided on its policy"
