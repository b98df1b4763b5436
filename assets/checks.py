"""Asset checks: the checks of a stage. They run in the step of the stage; blocking ones stop downstream stages."""

import pkgutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.stages import EVALUATION, Stage

SCORES_KEPT = "scores_kept"
"""Compares an evaluation with the one before. It needs Dagster's events, so it is no check of a stage."""
_SCORES = {"return_mean_": 1, "offline_action_loss_": -1}
"""Beginning of the name of a score -> 1 if more is better, -1 if less is."""


def scores_kept(before: Mapping[str, object], now: Mapping[str, object], margin: float) -> dg.AssetCheckResult | None:
    """Whether no score is worse than before by more than a fraction `margin` of it; None if there is none before.

    `before`, `now`: metadata of two materializations of an evaluation.
    """
    worse, compared = [], 0
    for name, sign in ((name, sign) for start, sign in _SCORES.items() for name in now if name.startswith(start)):
        old, new = before.get(name), now[name]
        if isinstance(old, float) and isinstance(new, float):
            compared += 1
            if sign * (new - old) < -margin * abs(old):
                worse.append(f"{name}: {new:.4g}, {old:.4g} before")
    if not compared:
        return None
    return dg.AssetCheckResult(
        passed=not worse,
        check_name=SCORES_KEPT,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(worse) or None,
        metadata={"scores_compared": compared},
    )


def check_specs(stage: Stage, partitions: dg.PartitionsDefinition | None) -> list[dg.AssetCheckSpec]:
    """The check specs of a stage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # for `partitions_def`: without it, keys share one result
        found = [(check.name, check.description, check.blocking) for check in stage.checks]
        if stage.name == EVALUATION:
            found.append((SCORES_KEPT, "No method scores worse than at the last evaluation.", False))
        return [
            dg.AssetCheckSpec(
                name, asset=stage.name, description=description, blocking=blocking, partitions_def=partitions
            )
            for name, description, blocking in found
        ]


def check_results(project: Graph, stage: str, out: Path) -> list[dg.AssetCheckResult]:
    """Run the checks of a stage on one of its outs."""
    found = []
    for check in project.stages[stage].checks:
        try:
            figures = pkgutil.resolve_name(check.function)(out, project.params, project.root)
            found.append(dg.AssetCheckResult(passed=True, check_name=check.name, metadata=figures))
        except PipelineError as error:
            severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
            problem = dg.AssetCheckResult(
                passed=False, check_name=check.name, description=str(error), severity=severity
            )
            found.append(problem)
    return found
