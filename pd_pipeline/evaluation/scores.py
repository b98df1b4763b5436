"""From scores to metrics: per method, with intervals, normalised, and against methods that had the same data.

A variant that was tuned on other data says nothing about a method by how far it lies from it. Each is held against the
prompt_diffuser, the full_finetune and the prompt_dt (or a variant of these) that had trajectories of the same quality
and as many of them; where none had, there is no difference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.statistics import (
    Position,
    Scores,
    estimate,
    interquartile_mean,
    mean,
    paired_difference,
    position,
    success_rate,
)

FLOOR, START, CEILING, REFERENCE = "noise_prompt", "prompt_dt", "full_finetune", "prompt_diffuser"
COMPARED = (REFERENCE, CEILING, START)
"""Methods that every other one is held against, where they had the same data."""

DESCRIBED = ("method", "frozen", "quality", "few_shot", "shown", "candidates", "chain")
"""What a tuned out says of itself, beside what its tuning cost; null where it does not."""

OWN = "own"
"""`shown` of a method that was given trajectories of the target itself, not of another task."""

Metrics = dict[str, dict[str, Any]]
"""Method -> name -> value."""


def summary_of(values: Mapping[str, Any], task: int) -> dict[str, Any]:
    """The summary of a tuned out for a target: whose trajectories it was shown, its passes through the PLM in one."""
    passes = values["plm_forward"] + values["plm_backward"]
    return {**values, "shown": OWN if values["shown_task"] == task else "other", "plm_passes": passes}


def by_task(scores: pl.DataFrame, method: str) -> Scores:
    """Returns of a method, of each seed one array (runs,) a task; seeds and tasks sorted, so that methods pair up.

    A run is a prompt: its episodes share it and are averaged.
    """
    runs = scores.filter(pl.col("method") == method).group_by("seed", "task", "prompt").agg(pl.col("return").mean())
    tasks = runs.group_by("seed", "task").agg(pl.col("return").sort_by("prompt")).sort("seed", "task")
    seeds = tasks.partition_by("seed", maintain_order=True)
    return [[np.asarray(values) for values in seed["return"].to_list()] for seed in seeds]


def method_metrics(
    scores: pl.DataFrame, summaries: Mapping[str, Sequence[Mapping[str, Any]]], seed: int, draws: int
) -> Metrics:
    """Method -> its metrics. `summaries` say how each was tuned and at what cost: one summary per target.

    Where the family knows no success (null in the scores) there is no rate of it. Every method must have scores of the
    same seeds and tasks.
    """
    methods = scores["method"].unique(maintain_order=True).to_list()
    _check_complete(scores, methods)
    described = {method: _described(method, summaries.get(method, ())) for method in methods}
    runs = {method: by_task(scores, method) for method in methods}
    metrics: Metrics = {}
    for method in methods:
        rng = np.random.default_rng(seed)
        iqm, average = (estimate(runs[method], statistic, rng, draws) for statistic in (interquartile_mean, mean))
        partners = {name: same_data(described, method, name) for name in COMPARED}
        differences = {
            f"difference_to_{name}": None
            if partner is None
            else {**paired_difference(runs[method], runs[partner], rng, draws)._asdict(), "reference": partner}
            for name, partner in partners.items()
        }
        normal = _place(runs, method, FLOOR, CEILING, rng, draws)
        start, ceiling = partners[START], partners[CEILING]
        share = _place(runs, method, start, ceiling, rng, draws)
        metrics[method] = {
            **described[method],
            "return_mean": average.value,
            "return_mean_low": average.low,
            "return_mean_high": average.high,
            "return_iqm": iqm.value,
            "ci_low": iqm.low,
            "ci_high": iqm.high,
            **_success(scores, method),
            "normalized": normal.value if normal else None,
            "normalized_low": normal.low if normal else None,
            "normalized_high": normal.high if normal else None,
            **differences,
            "share": {**share._asdict(), "start": start, "ceiling": ceiling} if share else None,
            "episodes": scores.filter(pl.col("method") == method).height,
            "tuned_parameters": max((s["tuned_parameters"] for s in summaries.get(method, ())), default=0),
            "plm_passes": sum(s["plm_passes"] for s in summaries.get(method, ())),
            "environment_episodes": sum(s["environment_episodes"] for s in summaries.get(method, ())),
            "tasks": _tasks(scores, method),
        }
    return metrics


def same_data(described: Mapping[str, Mapping[str, Any]], method: str, base: str) -> str | None:
    """The method of the kind `base` that had the same trajectories as `method`; None where there is none.

    Of several the one with the plain name, else the one with the shortest: what else is in a name is a variation.
    """
    wanted = [described[method].get(name) for name in ("quality", "few_shot")]
    found = [
        name
        for name, says in described.items()
        if (says.get("method") or name) == base
        and [says.get("quality"), says.get("few_shot")] == wanted
        and says.get("shown") in (None, OWN)
    ]
    return min(found, key=lambda name: (name != base, len(name), name), default=None)


def _described(method: str, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the summaries agree on; null where they differ or say nothing."""
    agreed: dict[str, Any] = {}
    for name in DESCRIBED:
        values = [summary.get(name) for summary in summaries]
        agreed[name] = values[0] if values and values.count(values[0]) == len(values) else None
    return agreed | {"method": agreed["method"] or method}


def _place(
    runs: Mapping[str, Scores], method: str, low: str | None, high: str | None, rng: np.random.Generator, draws: int
) -> Position | None:
    """Where a method lies from `low` (0) to `high` (1); these themselves lie there without any uncertainty."""
    if low is None or high is None or not {low, high} <= set(runs):
        return None
    found = position(runs[method], runs[low], runs[high], rng, draws)
    return Position(found.value, found.value, found.value) if found and method in (low, high) else found


def _success(scores: pl.DataFrame, method: str) -> dict[str, float | None]:
    rows = scores.filter(pl.col("method") == method)
    known = rows["success"].null_count() == 0
    found = success_rate([s["success"].to_numpy() for s in rows.partition_by("seed")]) if known else (None,) * 3
    return dict(zip(("success_rate", "success_low", "success_high"), found, strict=True))


def _tasks(scores: pl.DataFrame, method: str) -> dict[str, dict[str, float | None]]:
    """Target task -> mean return, success and the return asked for (the mean over seeds)."""

    def average(part: pl.DataFrame, name: str) -> float | None:
        known = name in part.columns and part[name].null_count() == 0
        return float(part[name].to_numpy().mean()) if known else None

    rows = scores.filter(pl.col("method") == method)
    names = {"return_mean": "return", "success_rate": "success", "target_return": "target_return"}
    return {
        str(task): {name: average(part, column) for name, column in names.items()}
        for (task,), part in rows.group_by("task", maintain_order=True)
    }


def _check_complete(scores: pl.DataFrame, methods: list[str]) -> None:
    cells = scores.select("seed", "task").unique()
    for method in methods:
        present = scores.filter(pl.col("method") == method)
        missing = cells.join(present, on=["seed", "task"], how="anti").sort("seed", "task")
        if len(missing):
            seed, task = missing.row(0)
            raise PipelineError(
                f"{method} has no scores of seed {seed}, task {task}, which another method has: "
                "run stage evaluation again for all seeds, with the same methods"
            )
