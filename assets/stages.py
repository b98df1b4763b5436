"""One asset per stage. It does the same as `pd-pipeline run`, with Dagster's log, metadata and retries.

One step handles all selected partitions in one process, since starting processes and runs is slow. Each partition gets
its own event, with its own data version, as soon as it is done.
"""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from assets.checks import check_results, check_specs
from assets.metadata import describe, plots
from assets.partitions import dependency, partitions_of
from assets.versions import Versions, latest
from pd_pipeline import graph, guard, lineage, preflight
from pd_pipeline.errors import EXPECTED, PipelineError, described
from pd_pipeline.graph import Graph
from pd_pipeline.lineage import Outcome
from pd_pipeline.progress import LineProgress
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest
from pd_pipeline.studies import execution

GPU_POOL = "gpu"
RETRIES = dg.RetryPolicy(max_retries=1)  # for transient errors; those that the user has to fix are not retried

Event = dg.AssetMaterialization | dg.AssetCheckEvaluation

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
        asset = dg.asset(
            name=stage,
            group_name=project.stages[stage].group,
            deps=[dependency(project, stage, need) for need in project.stages[stage].needs],
            partitions_def=partitions,
            backfill_policy=dg.BackfillPolicy.single_run(),
            code_version=guard.version(project, stage),
            check_specs=check_specs(project.stages[stage], partitions),
            pool=GPU_POOL if project.stages[stage].computes else None,
            retry_policy=RETRIES,
            description=f"`pd-pipeline run {stage}`"
            + (f" --key {partitions.get_first_partition_key()}" if partitions else ""),
            kinds={"python"},
        )
    return asset(body)


def make(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    project: Graph,
    stage: str,
    selected: list[str] | None = None,
) -> Iterator[Event]:
    """Do the work of the `selected` keys of a stage; by default, of all that are stale or unknown to Dagster.

    If one piece fails, the others are still done. Raises dagster.Failure at the end.
    """
    try:
        project = graph.load(project.root)  # params.yaml may have changed since the definitions were loaded
        preflight.check(project)
        versions = Versions(context.instance, project)
        keys = (
            [project.key(stage, text) for text in selected]
            if selected is not None
            else _stale(project, stage, versions)
        )
    except PipelineError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    problems, transient = [], False
    if not keys:
        context.log.info(f"{stage}: everything is up to date")
    for number, key in enumerate(keys, 1):
        name = f"{stage} {key}".strip()
        count = f" ({number} of {len(keys)})" if len(keys) > 1 else ""
        try:
            began = time.monotonic()
            outcome = execution.run(project, stage, key, LineProgress(context.log.info))
            seconds = time.monotonic() - began
            context.log.info(f"{name}: {'up to date' if outcome.skipped else f'done in {seconds:.1f} s'}{count}")
            version = outcome.data_version or digest(project.root / project.out(stage, key))
            tags = versions.tags(stage, key, version)
            yield from _events(context.instance, project, stage, key, outcome, tags, seconds)
        except EXPECTED as error:  # a mistake of the user, or a transient error such as a full disk
            transient = transient or not isinstance(error, PipelineError)
            problems.append(described(error) if len(keys) == 1 else f"{name}: {described(error)}")
            context.log.error(f"{name}: {described(error)}{count}")
    if problems:
        others = f"{len(problems)} of {len(keys)} failed: " if len(keys) > 1 else ""
        raise dg.Failure(others + "; ".join(problems), allow_retries=transient)


def _stale(project: Graph, stage: str, versions: Versions) -> list[Key]:
    """The keys of a stage that are out of date, or whose current state Dagster does not know."""
    made = lineage.data_versions(project, [stage])
    tags = {key: versions.tags(name, key, data_version) for (name, key), data_version in made.items()}
    return [key for key in project.keys(stage) if key not in tags or not versions.known(stage, key, tags[key])]


def _events(
    instance: dg.DagsterInstance,
    project: Graph,
    stage: str,
    key: Key,
    outcome: Outcome,
    tags: dict[str, str],
    seconds: float,
) -> Iterator[Event]:
    """The events for a piece of work and its checks."""
    out, partition = project.root / project.out(stage, key), str(key) or None
    if outcome.skipped:
        metadata = _previous_metadata(instance, stage, key)
    else:
        metadata = {name: float(value) for name, value in outcome.metrics.items() if name != "row_count"}
        metadata["duration_seconds"] = seconds
        if "row_count" in outcome.metrics:
            metadata["dagster/row_count"] = int(outcome.metrics["row_count"])
    metadata = metadata | describe(out) | plots(project.stages[stage], out)
    yield dg.AssetMaterialization(stage, partition=partition, metadata=metadata, tags=tags)
    blocking = {check.name: check.blocking for check in project.stages[stage].checks}
    for result in check_results(project, stage, out):
        assert result.check_name is not None
        yield dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(stage),
            check_name=result.check_name,
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
            blocking=blocking[result.check_name],
            partition=partition,
            target_materialization_data=_target(instance, stage, key),
        )


def _target(instance: dg.DagsterInstance, stage: str, key: Key) -> AssetCheckEvaluationTargetMaterializationData | None:
    """The materialization that a check refers to."""
    if (record := latest(instance, stage, key)) is None:
        return None
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
    )


def _previous_metadata(instance: dg.DagsterInstance, stage: str, key: Key) -> dict[str, Any]:
    """Metadata of the last materialization, kept when work is skipped."""
    record = latest(instance, stage, key)
    found = record.asset_materialization if record else None
    return dict(found.metadata) if found else {}
