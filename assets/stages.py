"""One asset a stage. Its body is what `pd-pipeline run` does, with Dagster's log, metadata and retries around it."""

import time
from typing import Any

import dagster as dg

from assets.checks import check_results, check_specs
from assets.metadata import describe, plots
from assets.partitions import dependency, partitions_of
from pd_pipeline import graph, lineage, preflight
from pd_pipeline.errors import EXPECTED, PipelineError, described
from pd_pipeline.graph import Graph
from pd_pipeline.progress import LineProgress
from pd_pipeline.stage import Key
from pd_pipeline.workers import die_with_parent

GPU_POOL = "gpu"


def stage_asset(project: Graph, stage: str) -> dg.AssetsDefinition:
    """The asset of one stage."""
    partitions = partitions_of(project, stage)
    root = project.root

    @dg.asset(
        name=stage,
        group_name=project.stages[stage].group,
        deps=[dependency(project, stage, need) for need in project.stages[stage].needs],
        partitions_def=partitions,
        code_version=lineage.version(project, stage),
        check_specs=check_specs(project.stages[stage], partitions),
        pool=GPU_POOL if project.stages[stage].computes else None,
        retry_policy=dg.RetryPolicy(max_retries=1),  # a transient fault; what is the user's to mend is not retried
        description=f"`pd-pipeline run {stage}`"
        + (f" --key {partitions.get_first_partition_key()}" if partitions else ""),
        kinds={"python"},
    )
    def body(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        die_with_parent()  # a step whose run was killed would hold its piece of work against the next run
        try:
            fresh = graph.load(root)  # params.yaml may have changed since the definitions were loaded
            preflight.check(fresh)
            return _materialize(context, fresh, stage, _key(context, fresh, stage))
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        except EXPECTED as error:  # of the machine: a full disk, no memory; it may be gone the next time
            raise dg.Failure(described(error)) from None

    return body


def _key(context: dg.AssetExecutionContext, project: Graph, stage: str) -> Key:
    return project.key(stage, context.partition_key) if context.has_partition_key else project.keys(stage)[0]


def _materialize(context: dg.AssetExecutionContext, project: Graph, stage: str, key: Key) -> dg.MaterializeResult:
    began = time.monotonic()
    outcome = lineage.run(project, stage, key, LineProgress(context.log.info))
    out = project.root / project.out(stage, key)
    if outcome.skipped:
        context.log.info(f"{stage} {key}: up to date")
        metadata: dict[str, Any] = _previous_metadata(context, stage, key)
    else:
        numbers: dict[str, Any] = {name: float(value) for name, value in outcome.metrics.items() if name != "row_count"}
        metadata = numbers | {"duration_seconds": time.monotonic() - began}
        if "row_count" in outcome.metrics:
            metadata["dagster/row_count"] = int(outcome.metrics["row_count"])
    return dg.MaterializeResult(
        metadata=metadata | describe(out) | plots(project.stages[stage], out),
        data_version=dg.DataVersion(outcome.data_version) if outcome.data_version else None,
        check_results=check_results(project, stage, out),
    )


def _previous_metadata(context: dg.AssetExecutionContext, stage: str, key: Key) -> dict[str, Any]:
    """What the last materialization said: skipping work must not lose its figures."""
    chosen = dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[str(key)] if str(key) else None)
    records = context.instance.fetch_materializations(chosen, limit=1).records
    found = records[0].asset_materialization if records else None
    return dict(found.metadata) if found else {}
