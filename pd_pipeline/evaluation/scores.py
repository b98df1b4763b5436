"""From scores to metrics: per method, with intervals, normalised, and against Prompt Diffuser."""

from typing import Any

import numpy as np
import polars as pl

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.statistics import (
    Scores,
    estimate,
    interquartile_mean,
    mean,
    normalized,
    paired_difference,
    success_rate,
)

FLOOR, CEILING, REFERENCE = "noise_prompt", "full_finetune", "prompt_diffuser"


def by_task(scores: pl.DataFrame, method: str) -> Scores:
    """Returns of a method, of each seed one array (runs,) a task; seeds and tasks sorted, so that methods pair up.

    A run is a prompt: its episodes share it and are averaged.
    """
    runs = scores.filter(pl.col("method") == method).group_by("seed", "task", "prompt").agg(pl.col("return").mean())
    tasks = runs.group_by("seed", "task").agg(pl.col("return").sort_by("prompt")).sort("seed", "task")
    seeds = tasks.partition_by("seed", maintain_order=True)
    return [[np.asarray(values) for values in seed["return"].to_list()] for seed in seeds]


def method_metrics(
    scores: pl.DataFrame,
    summaries: dict[str, list[dict[str, Any]]],
    seconds: dict[str, float],
    seed: int,
    draws: int,
) -> dict[str, dict[str, Any]]:
    """Method -> its metrics. `summaries` and `seconds` say what tuning cost, one summary a target.

    Where the family knows no success (null in the scores) there is no rate of it. Every method must have scores of the
    same seeds and tasks.
    """
    methods = scores["method"].unique(maintain_order=True).to_list()
    _check_complete(scores, methods)
    means = {m: float(scores.filter(pl.col("method") == m)["return"].to_numpy().mean()) for m in methods}
    metrics = {}
    for method in methods:
        runs, rows = by_task(scores, method), scores.filter(pl.col("method") == method)
        rng = np.random.default_rng(seed)
        iqm = estimate(runs, interquartile_mean, rng, draws)
        average = estimate(runs, mean, rng, draws)
        known = rows["success"].null_count() == 0
        success = success_rate([s["success"].to_numpy() for s in rows.partition_by("seed")]) if known else None
        metrics[method] = {
            "return_mean": average.value,
            "return_mean_low": average.low,
            "return_mean_high": average.high,
            "return_iqm": iqm.value,
            "ci_low": iqm.low,
            "ci_high": iqm.high,
            "success_rate": success.value if success else None,
            "success_low": success.low if success else None,
            "success_high": success.high if success else None,
            "normalized": (
                normalized(means[method], means[FLOOR], means[CEILING]) if FLOOR in means and CEILING in means else None
            ),
            "episodes": len(rows),
            "tuned_parameters": max((s["tuned_parameters"] for s in summaries.get(method, [])), default=0),
            "plm_passes": sum(s["plm_passes"] for s in summaries.get(method, [])),
            "environment_episodes": sum(s["environment_episodes"] for s in summaries.get(method, [])),
            "seconds": seconds.get(method, 0.0),
            "tasks": {
                str(task): {
                    "return_mean": float(part["return"].to_numpy().mean()),
                    "success_rate": float(part["success"].to_numpy().mean()) if known else None,
                }
                for (task,), part in rows.group_by("task", maintain_order=True)
            },
        }
        if REFERENCE in means:
            difference = paired_difference(runs, by_task(scores, REFERENCE), rng, draws)
            metrics[method]["difference_to_prompt_diffuser"] = difference._asdict()
    return metrics


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
