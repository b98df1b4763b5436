"""From scores to results: per method, with intervals, normalised, and compared with methods that had the same data.

How far two methods lie apart that were tuned on different data tells nothing about either. Each is compared with the
prompt_diffuser, the full_finetune and the prompt_dt (or a variant of these) that had trajectories of the same quality,
as many of them and chosen by the same rule; where none had, there is no difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import polars as pl

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.results import (
    OTHER,
    OWN,
    Costs,
    Difference,
    Given,
    MethodResult,
    Metrics,
    Share,
    TaskResult,
    Tuned,
)
from pd_pipeline.evaluation.statistics import (
    Estimate,
    Position,
    Scores,
    above_middle,
    estimate,
    interquartile_mean,
    mean,
    paired_difference,
    position,
    success_rate,
)
from pd_pipeline.tuning.summary import Summary

FLOOR, START, CEILING, REFERENCE = "noise_prompt", "prompt_dt", "full_finetune", "prompt_diffuser"


def tuned_of(summary: Summary, task: int) -> Tuned:
    """What evaluation keeps of the summary of a tuned out for the target `task`."""
    return Tuned(
        Given(
            method=summary.method,
            frozen=summary.frozen,
            quality=summary.quality,
            few_shot=summary.few_shot,
            choose=None if summary.choose == "random" else summary.choose,
            shown=OWN if summary.shown_task == task else OTHER,
            candidates=summary.candidates,
            chain=summary.chain,
            prompt_quality=None if summary.prompt_quality == summary.quality else summary.prompt_quality,
        ),
        Costs(summary.tuned_parameters, summary.plm_forward + summary.plm_backward, summary.environment_episodes),
    )


def by_task(scores: pl.DataFrame, method: str) -> Scores:
    """Returns of a method: for each seed one array (runs,) per task, both sorted, so that methods pair up.

    A run is a prompt: its episodes share it and are averaged. Where there is a single prompt, a run is an episode.
    """
    return _by_task(scores.filter(pl.col("method") == method), "return")


def _by_task(rows: pl.DataFrame, column: str) -> Scores:
    """A column of the scores of a method by seed and task; its runs as `by_task` has them."""
    rows = rows.with_columns(single=pl.col("prompt").n_unique().over("seed", "task") == 1)
    rows = rows.with_columns(run=pl.when("single").then(pl.int_range(pl.len())).otherwise("prompt"))
    runs = rows.group_by("seed", "task", "run").agg(pl.col(column).cast(pl.Float64).mean())
    tasks = runs.group_by("seed", "task").agg(pl.col(column).sort_by("run")).sort("seed", "task")
    seeds = tasks.partition_by("seed", maintain_order=True)
    return [[np.asarray(values) for values in seed[column].to_list()] for seed in seeds]


def method_metrics(scores: pl.DataFrame, tuned: Mapping[str, Sequence[Tuned]], seed: int, draws: int) -> Metrics:
    """Method -> its result. `tuned`: method -> what its tuned outs record, one per target (and seed).

    Where the family knows no success (null in the scores) there is no rate of it. Raises PipelineError unless every
    method has scores of the same seeds and tasks.
    """
    methods = scores["method"].unique(maintain_order=True).to_list()
    check_complete(scores, methods)
    given = {method: agreed(method, [out.given for out in tuned.get(method, ())]) for method in methods}
    runs = {method: by_task(scores, method) for method in methods}
    return {method: _result(scores, runs, given, method, tuned.get(method, ()), seed, draws) for method in methods}


def _result(
    scores: pl.DataFrame,
    runs: Mapping[str, Scores],
    given: Mapping[str, Given],
    method: str,
    tuned: Sequence[Tuned],
    seed: int,
    draws: int,
) -> MethodResult:
    """One method's result. Its draws begin anew with the seed: what other methods are there changes no interval."""
    rng = np.random.default_rng(seed)  # the order of what follows decides the draws of each interval
    iqm, average = (estimate(runs[method], statistic, rng, draws) for statistic in (interquartile_mean, mean))
    partners = {base: same_data(given, method, base) for base in (REFERENCE, CEILING, START)}
    differences = {
        base: None
        if partner is None
        else Difference(*paired_difference(runs[method], runs[partner], rng, draws), reference=partner)
        for base, partner in partners.items()
    }
    normal = _place(runs, method, FLOOR, CEILING, rng, draws)
    start, ceiling = partners[START], partners[CEILING]
    share = _place(runs, method, start, ceiling, rng, draws)
    above = above_middle(runs[method], runs[start], runs[ceiling], rng, draws) if start and ceiling else None
    return MethodResult(
        given=given[method],
        mean=average,
        iqm=iqm,
        success=_success(scores, method),
        normalized=normal,
        difference_to_prompt_diffuser=differences[REFERENCE],
        difference_to_full_finetune=differences[CEILING],
        difference_to_prompt_dt=differences[START],
        share=None if share is None or not (start and ceiling) else Share(*share, start=start, ceiling=ceiling),
        above_half=above,
        episodes=scores.filter(pl.col("method") == method).height,
        costs=total([out.costs for out in tuned]),
        tasks=_tasks(scores, method),
    )


def same_data(given: Mapping[str, Given], method: str, base: str) -> str | None:
    """The method of the kind `base` that had the same trajectories as `method`; None where there is none.

    Of several the one with the plain name, else the one with the shortest: what else is in a name is a variation.
    """
    wanted = _data(given[method])
    found = [
        name for name, other in given.items() if other.method == base and _data(other) == wanted and other.own_task
    ]
    return min(found, key=lambda name: (name != base, len(name), name), default=None)


def _data(given: Given) -> tuple[Any, ...]:
    return given.quality, given.few_shot, given.choose, given.prompt_quality


def agreed(method: str, given: Sequence[Given]) -> Given:
    """What all outs of a method agree on; None where they differ, and then the method is that of its name."""
    agreed = {name: {getattr(out, name) for out in given} for name in (one.name for one in fields(Given))}
    known: dict[str, Any] = {name: values.pop() for name, values in agreed.items() if len(values) == 1}
    return Given(**{"method": method} | known)


def total(costs: Sequence[Costs]) -> Costs:
    """The costs of all outs of a method."""
    return Costs(
        tuned_parameters=max((cost.tuned_parameters for cost in costs), default=0),
        plm_passes=sum(cost.plm_passes for cost in costs),
        environment_episodes=sum(cost.environment_episodes for cost in costs),
    )


def _place(
    runs: Mapping[str, Scores], method: str, low: str | None, high: str | None, rng: np.random.Generator, draws: int
) -> Position | None:
    """Where a method lies from `low` (0) to `high` (1); these two lie at 0 and 1 without any uncertainty."""
    if low is None or high is None or not {low, high} <= set(runs):
        return None
    found = position(runs[method], runs[low], runs[high], rng, draws)
    return Position(found.value, found.value, found.value) if found and method in (low, high) else found


def _success(scores: pl.DataFrame, method: str) -> Estimate | None:
    """The rate of success over runs, as `by_task` has them: episodes of one prompt may be one and the same."""
    rows = scores.filter(pl.col("method") == method)
    known = rows["success"].null_count() == 0
    return success_rate([np.concatenate(list(seed)) for seed in _by_task(rows, "success")]) if known else None


def _tasks(scores: pl.DataFrame, method: str) -> dict[int, TaskResult]:
    """Target task -> means over its episodes (and seeds)."""

    def average(part: pl.DataFrame, name: str) -> float | None:
        known = name in part.columns and part[name].null_count() == 0
        return float(part[name].to_numpy().mean()) if known else None

    rows = scores.filter(pl.col("method") == method)
    return {
        int(part["task"][0]): TaskResult(
            float(part["return"].to_numpy().mean()), average(part, "success"), average(part, "target_return")
        )
        for part in rows.partition_by("task", maintain_order=True)
    }


def check_complete(scores: pl.DataFrame, methods: list[str]) -> None:
    """Raise PipelineError unless every method has scores of the same seeds and tasks."""
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
