"""The results of every method from its action losses on held-out trajectories, for a report too: nothing of a model."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from pd_pipeline.evaluation.offline_results import OfflineMetrics, OfflineResult, OfflineTask
from pd_pipeline.evaluation.results import Difference, Tuned
from pd_pipeline.evaluation.scores import CEILING, REFERENCE, START, agreed, check_complete, same_data, total
from pd_pipeline.evaluation.statistics import Scores, mean_over_tasks


def offline_metrics(
    scores: pl.DataFrame, tuned: Mapping[str, Sequence[Tuned]], seed: int, draws: int
) -> OfflineMetrics:
    """Method -> its result. `tuned`: method -> what its tuned outs record, one per target (and seed).

    Raises PipelineError unless every method has scores of the same seeds and tasks.
    """
    methods = scores["method"].unique(maintain_order=True).to_list()
    check_complete(scores, methods)
    given = {method: agreed(method, [out.given for out in tuned.get(method, ())]) for method in methods}
    losses = {method: by_trajectory(scores, method) for method in methods}
    found = {}
    for method in methods:
        rng = np.random.default_rng(seed)
        differences = {}
        for base in (REFERENCE, CEILING, START):
            partner = same_data(given, method, base)
            if partner is not None:
                paired = mean_over_tasks(_paired(losses[method], losses[partner]), rng, draws)
                differences[f"difference_to_{base}"] = Difference(*paired, reference=partner)
        found[method] = OfflineResult(
            given=given[method],
            costs=total([out.costs for out in tuned.get(method, ())]),
            action_loss=mean_over_tasks(losses[method], rng, draws),
            trajectories=sum(len(of_task) for of_seed in losses[method] for of_task in of_seed),
            tasks=_tasks(scores, method, rng, draws),
            **differences,
        )
    return found


def by_trajectory(scores: pl.DataFrame, method: str) -> Scores:
    """Action losses of a method, means over prompts: for each seed one array (trajectories,) per task, all sorted."""
    runs = scores.filter(pl.col("method") == method).group_by("seed", "task", "trajectory")
    losses = runs.agg(pl.col("action_loss").sort_by("prompt").mean()).sort("seed", "task", "trajectory")
    tasks = losses.group_by("seed", "task", maintain_order=True).agg(pl.col("action_loss"))
    seeds = tasks.partition_by("seed", maintain_order=True)
    return [[np.asarray(values) for values in seed["action_loss"].to_list()] for seed in seeds]


def _paired(one: Scores, other: Scores) -> Scores:
    return [[a - b for a, b in zip(*tasks, strict=True)] for tasks in zip(one, other, strict=True)]


def _tasks(scores: pl.DataFrame, method: str, rng: np.random.Generator, draws: int) -> dict[int, OfflineTask]:
    found = {}
    for part in scores.filter(pl.col("method") == method).partition_by("task", maintain_order=True):
        losses = by_trajectory(part, method)
        count = sum(len(of_task) for of_seed in losses for of_task in of_seed)
        found[int(part["task"][0])] = OfflineTask(*mean_over_tasks(losses, rng, draws), count)
    return found
