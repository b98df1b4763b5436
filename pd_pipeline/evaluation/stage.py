"""Stages evaluation and target_evaluation: score what every method left.

`evaluation` does so for all target tasks of a family and seed, `target_evaluation` for one target with accepted data.
It is rolled out; where no simulator knows the target it is scored offline (see `offline`).
"""

from dataclasses import fields
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from pd_pipeline.acting.actors import Actors
from pd_pipeline.acting.environments import episode_seed, make_batch
from pd_pipeline.acting.rollouts import Rollouts, grouped, rollout
from pd_pipeline.compute import pick_device, use_bf16
from pd_pipeline.config import Parameters
from pd_pipeline.evaluation import offline
from pd_pipeline.evaluation.offline import OfflineParams
from pd_pipeline.evaluation.policies import TunedPolicy, by_method, can_act, tuned_policies
from pd_pipeline.evaluation.results import Evaluation, save
from pd_pipeline.evaluation.scores import method_metrics
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import atomic_file, save_arrays
from pd_pipeline.tuning.protocol import Pretrained


class Params(Parameters):
    """How scores are made."""

    episodes: int = Field(default=1, gt=0, le=10_000, description="of each actor; more where starts are random")
    workers: int | None = Field(
        default=None, ge=1, le=1024, description="processes for environments; None: one per core"
    )
    environments: int = Field(
        default=400,
        gt=0,
        le=100_000,
        description="held in memory at once; more run in rounds, equal up to rounding",
    )
    patience: float = Field(
        default=600.0, gt=0, le=86_400, description="seconds after which a step that has not come back is ended"
    )
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="bf16 is faster where hardware has it, and then gives other actions"
    )
    bootstrap: int = Field(default=2000, gt=0, le=1_000_000, description="draws of an interval")
    offline: OfflineParams = OfflineParams()


def run(context: StageContext) -> dict[str, Any]:
    """Write `scores.parquet`, `metrics.json` and, where there is a simulator, `rollouts.safetensors`."""
    params: Params = context.params
    device = pick_device(context.device)
    context.facts.update(device=str(device), precision=params.precision)
    plm = Pretrained.load(context.inputs["plm"], context.inputs.get("diffuser"), device)
    policies = tuned_policies(context, plm)
    if not can_act(context):
        return offline.score(context, policies, plm, params.offline)
    rollouts = _roll_out(context, policies, plm, 0)  # those of the first episode are kept
    tables = [_scores(context, policies, rollouts, 0)]
    for episode in range(1, params.episodes):
        again = _roll_out(context, policies, plm, episode)
        tables.append(_scores(context, policies, again, episode))
    scores = pl.concat(tables)
    with atomic_file(context.out / "scores.parquet") as temporary:
        scores.write_parquet(temporary)
    metrics = method_metrics(scores, by_method(policies), context.seed, params.bootstrap)
    save(context.out / "metrics.json", Evaluation(metrics, params.precision, context.key.family, context.seed))
    first = scores.with_row_index().filter(pl.col("prompt") == 0, pl.col("episode") == 0)
    rows = first["index"].to_numpy()
    save_arrays(
        context.out / "rollouts.safetensors",
        {"observations": rollouts.observations[rows], "actions": rollouts.actions[rows], "rows": rows.astype(np.int64)},
    )
    return {f"return_mean_{method}": result.mean.value for method, result in metrics.items()}


def _roll_out(context: StageContext, policies: list[TunedPolicy], plm: Pretrained, episode: int) -> Rollouts:
    """One episode of every actor of every policy, in rounds of environments that are in memory at once."""
    parts = [policy.actors for policy in policies]
    tasks = [policy.task for policy in policies for _ in range(len(policy.actors))]
    targets = np.array([policy.summary.target_return for policy in policies for _ in range(len(policy.actors))])
    numbers = [number for part in parts for number in range(len(part))]
    seeds = [episode_seed(context.seed, task, number, episode) for task, number in zip(tasks, numbers, strict=True)]
    params: Params = context.params
    rounds = np.array_split(np.arange(len(tasks)), -(-len(tasks) // params.environments))
    count = len(rounds) * params.episodes
    bf16 = use_bf16(params.precision, plm.device)
    done: list[Rollouts] = []
    for number, rows in enumerate(rounds, start=1 + episode * len(rounds)):
        of = slice(int(rows[0]), int(rows[-1]) + 1)
        simulated = (context.family, context.environment, context.root, tasks[of], seeds[of])
        environments = make_batch(*simulated, params.workers, params.patience)
        title = f"{context.stage} {context.key}" + (f", {number} of {count}" if count > 1 else "")
        groups = grouped(_between(parts, of.start, of.stop))
        try:
            done.append(rollout(groups, targets[of], plm.normalization, environments, context.progress, title, bf16))
        finally:
            environments.close()
    return Rollouts(*(np.concatenate([getattr(part, field.name) for part in done]) for field in fields(Rollouts)))


def _between(parts: list[Actors], first: int, last: int) -> list[Actors]:
    """The actors from row `first` on and before row `last` of all parts, one after another."""
    found, start = [], 0
    for part in parts:
        rows = range(max(first - start, 0), min(last - start, len(part)))
        if rows:
            found.append(part.select(rows))
        start += len(part)
    return found


def _scores(context: StageContext, policies: list[TunedPolicy], rollouts: Rollouts, episode: int) -> pl.DataFrame:
    """One row per method, task, seed, actor (numbered by the prompt it acts under) and episode."""
    rows = [
        {
            "method": policy.method,
            "task": policy.task,
            "seed": context.seed,
            "prompt": number,
            "episode": episode,
            "target_return": policy.summary.target_return,
            "origin": origin.name,
            "origin_step": origin.step,
        }
        for policy in policies
        for number, origin in enumerate(policy.actors.origins)
    ]
    return pl.DataFrame(rows).with_columns(
        pl.Series("return", rollouts.returns),
        pl.Series("success", rollouts.success if context.family.has_success else [None] * len(rows), dtype=pl.Boolean),
        pl.Series("length", rollouts.lengths),
    )
