"""Scores with a simulator: one or more episodes of everything that every method left."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import polars as pl

from pd_pipeline.acting.actors import Actors
from pd_pipeline.acting.environments import episode_seed, make_batch
from pd_pipeline.acting.rollouts import Rollouts, grouped, rollout
from pd_pipeline.compute import use_bf16
from pd_pipeline.evaluation.policies import TunedPolicy
from pd_pipeline.stage import StageContext
from pd_pipeline.tuning.protocol import Pretrained


def score(
    context: StageContext, policies: Sequence[TunedPolicy], plm: Pretrained, title: str
) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """Scores, one row per method, task, actor (numbered by the prompt it acts under) and episode, and what is kept.

    Kept are the `observations` and `actions` of the first episode of each policy under its first prompt, in the order
    of `policies`.
    """
    rollouts = _roll_out(context, policies, plm, 0, title)
    tables = [_scores(context, policies, rollouts, 0)]
    firsts = tables[0].with_row_index().filter(pl.col("prompt") == 0)["index"].to_numpy()
    kept = {"observations": rollouts.observations[firsts], "actions": rollouts.actions[firsts]}
    for episode in range(1, context.params.episodes):
        again = _roll_out(context, policies, plm, episode, title)
        tables.append(_scores(context, policies, again, episode))
    return pl.concat(tables), kept


def _roll_out(
    context: StageContext, policies: Sequence[TunedPolicy], plm: Pretrained, episode: int, title: str
) -> Rollouts:
    """One episode of every actor of every policy, in rounds of environments that are in memory at once."""
    parts = [policy.actors for policy in policies]
    tasks = [policy.task for policy in policies for _ in range(len(policy.actors))]
    targets = np.array([policy.summary.target_return for policy in policies for _ in range(len(policy.actors))])
    numbers = [number for part in parts for number in range(len(part))]
    seeds = [episode_seed(context.seed, task, number, episode) for task, number in zip(tasks, numbers, strict=True)]
    params = context.params
    rounds = np.array_split(np.arange(len(tasks)), -(-len(tasks) // params.environments))
    count = len(rounds) * params.episodes
    bf16 = use_bf16(params.precision, plm.device)
    done: list[Rollouts] = []
    for number, rows in enumerate(rounds, start=1 + episode * len(rounds)):
        of = slice(int(rows[0]), int(rows[-1]) + 1)
        simulated = (context.family, context.environment, context.root, tasks[of], seeds[of])
        environments = make_batch(*simulated, params.workers, params.patience)
        heading = title + (f", {number} of {count}" if count > 1 else "")
        groups = grouped(_between(parts, of.start, of.stop))
        try:
            done.append(rollout(groups, targets[of], plm.normalization, environments, context.progress, heading, bf16))
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


def _scores(context: StageContext, policies: Sequence[TunedPolicy], rollouts: Rollouts, episode: int) -> pl.DataFrame:
    """The scores of one episode of every actor."""
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
