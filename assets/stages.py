"""One asset per stage. It does the same as `pd-pipeline run`, with Dagster's log, metadata and retries.

One step handles all selected partitions in one process, since starting processes and runs is slow. Each partition gets
its own event, with its own data version, as soon as it is done.
"""

import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from assets.checks import check_results, check_specs, scores_kept
from assets.metadata import describe, plots
from assets.partitions import OF_REPORT, dependency, needs, partitions_of
from assets.versions import Versions, latest
from assets.work import GPU_POOL, RETRIES, Context, Done, current, do, failure
from pd_pipeline import guard, lineage
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.stage import Key
from pd_pipeline.stages import DATA, EVALUATION, PRE_TRAINING, REPORT, RESULTS, TUNING

Event = dg.AssetMaterialization | dg.AssetCheckEvaluation

KINDS = {
    DATA: {"parquet", "dvc"},
    PRE_TRAINING: {"pytorch", "dvc"},
    TUNING: {"pytorch", "dvc"},
    RESULTS: {"python", "dvc"},
}
"""Group of a stage -> the kinds of its asset."""

NO_EVENT = {SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True}
"""Suppresses Dagster's own event, which would give all partitions of a step the same data version."""


def stage_asset(project: Graph, stage: str) -> dg.AssetsDefinition:
    """The asset of one stage."""
    partitions = partitions_of(project, stage)

    def body(context: dg.AssetExecutionContext) -> Iterator[Event | dg.MaterializeResult | dg.Output]:
        keys = list(context.partition_keys) if partitions else [""]
        yield from make(context, project, stage, keys)
        for output in context.op_execution_context.selected_output_names:
            # the other outputs belong to the checks
            yield dg.MaterializeResult(metadata=NO_EVENT) if output == "result" else dg.Output(None, output)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # for `backfill_policy`
        rest: dict[str, Any] = _of_report(project) if stage == REPORT else {"deps": []}
        asset = dg.asset(
            name=stage,
            group_name=project.stages[stage].group,
            deps=[dependency(project, stage, need) for need in needs(project, stage)] + rest.pop("deps"),
            partitions_def=partitions,
            backfill_policy=dg.BackfillPolicy.single_run(),
            code_version=guard.version(project, stage),
            check_specs=check_specs(project.stages[stage], partitions),
            pool=GPU_POOL if project.stages[stage].computes else None,
            retry_policy=RETRIES,
            description=f"`pd-pipeline run {stage}`"
            + (f" --key {partitions.get_first_partition_key()}" if partitions else ""),
            kinds=KINDS[project.stages[stage].group],
            owners=project.params.automation.owners,
            **rest,
        )
    return asset(body)


def _of_report(project: Graph) -> dict[str, Any]:
    """What the asset of the report has besides: it follows new results of targets, and can be overdue."""
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    under_way = dg.AutomationCondition.in_progress() | dg.AutomationCondition.any_deps_in_progress()
    shown = dg.AssetSelection.assets(*OF_REPORT, *needs(project, REPORT))
    hours = project.params.automation.report_max_age_hours
    return {
        "deps": [dg.AssetDep(name, partition_mapping=dg.AllPartitionMapping()) for name in OF_REPORT],
        "automation_condition": (changed.allow(shown).since_last_handled() & ~under_way).with_label("new results"),
        "freshness_policy": None if hours is None else dg.FreshnessPolicy.time_window(timedelta(hours=hours)),
    }


def make(context: Context, project: Graph, stage: str, selected: list[str] | None = None) -> Iterator[Event]:
    """Do the work of the `selected` keys of a stage; by default, of all that are stale or unknown to Dagster.

    If one piece fails, the others are still done. Raises dagster.Failure at the end.
    """
    project = current(project)
    if stage not in project.stages:
        context.log.info(f"{stage}: nothing to do: no target has accepted data")
        return
    versions = Versions(context.instance, project)
    try:
        keys = (
            [project.key(stage, text) for text in selected]
            if selected is not None
            else _stale(project, stage, versions)
        )
    except PipelineError as error:
        raise failure(error) from None
    if not keys:
        context.log.info(f"{stage}: everything is up to date")
    for done in do(context, project, [(stage, key) for key in keys]):
        if project.is_benchmark(stage, done.key):
            yield from events(context.instance, project, versions, done)


def _stale(project: Graph, stage: str, versions: Versions) -> list[Key]:
    """The keys of a stage that are out of date, or whose current state Dagster does not know."""
    made = lineage.data_versions(project, [(stage, key) for key in project.keys(stage)])
    tags = {key: versions.tags(name, key, data_version) for (name, key), data_version in made.items()}
    return [
        key
        for key in project.keys(stage)
        if key not in tags or (project.is_benchmark(stage, key) and not versions.known(stage, key, tags[key]))
    ]


def events(instance: dg.DagsterInstance, project: Graph, versions: Versions, done: Done) -> Iterator[Event]:
    """The events for a piece of work and its checks."""
    stage, key, outcome = done.stage, done.key, done.outcome
    out, partition = project.root / project.out(stage, key), str(key) or None
    tags = versions.tags(stage, key, done.data_version)
    before = _previous_metadata(instance, stage, key)
    if outcome.skipped:
        metadata = before
    else:
        metadata = {name: float(value) for name, value in outcome.metrics.items() if name != "row_count"}
        metadata["duration_seconds"] = done.seconds
        if done.why:
            metadata["why"] = done.why
        if "row_count" in outcome.metrics:
            metadata["dagster/row_count"] = int(outcome.metrics["row_count"])
    results = check_results(project, stage, out)
    if stage == EVALUATION and not outcome.skipped:
        last = {name: value.value for name, value in before.items()}
        results += filter(None, [scores_kept(last, metadata, project.params.promotion.margin)])
    metadata = metadata | describe(out) | plots(project.stages[stage], out)
    yield dg.AssetMaterialization(stage, partition=partition, metadata=metadata, tags=tags)
    blocking = {check.name: check.blocking for check in project.stages[stage].checks}
    for result in results:
        assert result.check_name is not None
        yield dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(stage),
            check_name=result.check_name,
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
            blocking=blocking.get(result.check_name, False),
            partition=partition,
            target_materialization_data=_target(instance, stage, key),
        )


def _target(instance: dg.DagsterInstance, stage: str, key: Key) -> AssetCheckEvaluationTargetMaterializationData | None:
    """The materialization that a check refers to."""
    if (record := latest(instance, stage, str(key))) is None:
        return None
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
    )


def _previous_metadata(instance: dg.DagsterInstance, stage: str, key: Key) -> dict[str, Any]:
    """Metadata of the last materialization, kept when work is skipped."""
    record = latest(instance, stage, str(key))
    found = record.asset_materialization if record else None
    return dict(found.metadata) if found else {}
