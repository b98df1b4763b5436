"""Asset checks: the checks of a stage. They run in the step of the stage; blocking ones stop downstream stages."""

import pkgutil
import warnings
from pathlib import Path

import dagster as dg

from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.stages import Stage


def check_specs(stage: Stage, partitions: dg.PartitionsDefinition | None) -> list[dg.AssetCheckSpec]:
    """The check specs of a stage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # for `partitions_def`: without it, keys share one result
        return [
            dg.AssetCheckSpec(
                check.name,
                asset=stage.name,
                description=check.description,
                blocking=check.blocking,
                partitions_def=partitions,
            )
            for check in stage.checks
        ]


def check_results(project: Graph, stage: str, out: Path) -> list[dg.AssetCheckResult]:
    """Run the checks of a stage on one of its outs."""
    found = []
    for check in project.stages[stage].checks:
        try:
            figures = pkgutil.resolve_name(check.function)(out, project.params, project.root)
            found.append(dg.AssetCheckResult(passed=True, check_name=check.name, metadata=figures))
        except PipelineError as error:
            found.append(dg.AssetCheckResult(passed=False, check_name=check.name, description=str(error)))
    return found
