"""Asset checks: what must hold of an out. They run in the step that made it; a blocking one stops its readers."""

import csv
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.storage import read_json

CHECKS: dict[str, dict[str, tuple[str, bool]]] = {
    "trajectories": {
        "valid": ("Every file passes `pd-pipeline validate`.", True),
        "expert_quality": ("Expert data reaches the family's bars of return, success and early ends.", False),
    },
    "plm": {"losses_finite": ("No loss is infinite or not a number.", True)},
    "diffuser": {"losses_finite": ("No loss is infinite or not a number.", True)},
    "evaluation": {"metrics_complete": ("Every method of params.yaml has its metrics.", True)},
}
"""Stage -> name of a check -> what it says, and whether it is blocking."""


def check_specs(stage: str, partitions: dg.PartitionsDefinition | None) -> list[dg.AssetCheckSpec]:
    """What Dagster is told of a stage's checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # of `partitions_def`: without it keys hide each other
        return [
            dg.AssetCheckSpec(name, asset=stage, description=text, blocking=blocking, partitions_def=partitions)
            for name, (text, blocking) in CHECKS.get(stage, {}).items()
        ]


def check_results(project: Graph, stage: str, out: Path) -> list[dg.AssetCheckResult]:
    """The results of a stage's checks on one of its outs."""
    found = []
    for name in CHECKS.get(stage, {}):
        try:
            figures = _TESTS[name](project, out)
            found.append(dg.AssetCheckResult(passed=True, check_name=name, metadata=figures))
        except PipelineError as error:
            found.append(dg.AssetCheckResult(passed=False, check_name=name, description=str(error)))
    return found


def _valid(project: Graph, out: Path) -> dict[str, int]:
    from pd_pipeline.trajectories.reading import stream

    family, files = project.family(out.name), sorted(out.glob("*.parquet"))
    return {file.name: sum(len(batch.step) for batch in stream(file, family=family)) for file in files}


def _expert_quality(project: Graph, out: Path) -> dict[str, float]:
    from pd_pipeline.trajectories.quality import EXPERT, missed_bars

    summary = read_json(out / "summary.json")
    if missed := missed_bars(summary, project.family(out.name).expert_bars):
        raise PipelineError(f"{out / 'expert.parquet'}: {'; '.join(missed)}: train or script a better policy")
    names = ("return_mean", "success_rate", "early_ends", "coverage")
    return {name: summary[EXPERT][name] for name in names if summary.get(EXPERT, {}).get(name) is not None}


def _losses_finite(project: Graph, out: Path) -> dict[str, float]:
    with (out / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name, value in row.items():
            if value and not math.isfinite(float(value)):
                raise PipelineError(f"{out / 'losses.csv'}: {name} is {value} at step {row['step']}")
    return {name: float(value) for name, value in rows[-1].items() if value} if rows else {}


def _metrics_complete(project: Graph, out: Path) -> dict[str, int]:
    methods = read_json(out / "metrics.json")["methods"]
    if missing := [method for method in project.params.run.methods if method not in methods]:
        raise PipelineError(f"{out / 'metrics.json'}: no metrics of {', '.join(missing)}")
    return {"methods": len(methods)}


_TESTS: dict[str, Callable[[Graph, Path], dict]] = {
    "valid": _valid,
    "expert_quality": _expert_quality,
    "losses_finite": _losses_finite,
    "metrics_complete": _metrics_complete,
}
