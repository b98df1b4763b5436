"""From scores to metrics: per method, with intervals, normalised, and against Prompt Diffuser."""

from typing import Any

import numpy as np
import polars as pl

from pd_pipeline.evaluation.statistics import (
    Scores,
    interquartile_mean,
    mean,
    normalized,
    paired_difference,
    stratified_bootstrap,
    wilson,
)

FLOOR, CEILING, REFERENCE = "noise_prompt", "full_finetune", "prompt_diffuser"


def by_task(scores: pl.DataFrame, method: str) -> Scores:
    """Returns of a method, of each seed one array (runs,) a task, sorted so that methods pair up."""
    rows = scores.filter(pl.col("method") == method)
    groups = rows.group_by("seed", "task").agg(pl.col("return").sort_by("prompt")).sort("seed", "task")
    seeds = groups.partition_by("seed", maintain_order=True)
    return [[np.asarray(values) for values in seed["return"].to_list()] for seed in seeds]


def method_metrics(
    scores: pl.DataFrame,
    summaries: dict[str, list[dict[str, Any]]],
    seconds: dict[str, float],
    seed: int,
    draws: int,
) -> dict[str, dict[str, Any]]:
    """Method -> its metrics. `summaries` and `seconds` say what tuning cost, one summary a target.

    Where the family knows no success (null in the scores) there is no rate of it. Its interval takes episodes for
    independent, and is the narrower for it with several seeds.
    """
    methods = scores["method"].unique(maintain_order=True).to_list()
    means = {m: float(scores.filter(pl.col("method") == m)["return"].to_numpy().mean()) for m in methods}
    metrics = {}
    for method in methods:
        runs, rows = by_task(scores, method), scores.filter(pl.col("method") == method)
        rng = np.random.default_rng(seed)
        iqm = stratified_bootstrap(runs, interquartile_mean, rng, draws)
        average = stratified_bootstrap(runs, mean, rng, draws)
        known = rows["success"].null_count() == 0
        success = wilson(int(rows["success"].sum()), len(rows)) if known else None
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
