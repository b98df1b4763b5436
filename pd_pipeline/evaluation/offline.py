"""Scores without a simulator: the action loss of what every method left on held-out trajectories of the targets.

All methods of a family and seed are scored on the same trajectories of a target: those of one quality that no method
was given, so that methods pair up by trajectory. With one seed an interval is over trajectories (bootstrap within
targets), with several over the seeds (Student), as for returns.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from pydantic import Field

from pd_pipeline.compute import use_bf16
from pd_pipeline.config import Name, Parameters
from pd_pipeline.evaluation.enough import LEAST_HELD_OUT, TooFew
from pd_pipeline.evaluation.policies import TunedPolicy, of_target
from pd_pipeline.stage import StageContext
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories, read
from pd_pipeline.tuning.action_losses import action_losses
from pd_pipeline.tuning.protocol import Pretrained


class OfflineParams(Parameters):
    """How methods are scored for a family without a simulator."""

    quality: Name = Field(default="expert", description="quality of the held-out trajectories")
    trajectories: int | None = Field(
        default=20, ge=LEAST_HELD_OUT, le=1_000_000, description="held-out trajectories per target, at most; null: all"
    )
    steps: int | None = Field(
        default=50, ge=2, le=1_000_000, description="steps of each that count, evenly spaced; null: all"
    )


def score(
    context: StageContext, policies: Sequence[TunedPolicy], plm: Pretrained, tasks: Sequence[int], title: str
) -> pl.DataFrame:
    """Scores of `tasks`, one row per method, target, prompt and held-out trajectory.

    Raises TooFew if a target has too few trajectories to be scored on.
    """
    params: OfflineParams = context.params.offline
    held_out = {task: _held_out(context, task, policies, params) for task in tasks}
    tables: list[pl.DataFrame] = []
    bf16 = use_bf16(context.params.precision, plm.device)
    windows = {task: PolicyData(found, plm.normalization, plm.device) for task, found in held_out.items()}
    for done, policy in enumerate(policies):
        context.progress(title, done, len(policies), f"{policy.method}, task {policy.task}")
        losses = action_losses(policy.actors, windows[policy.task], params.steps, bf16)  # (prompts, trajectories)
        tables.append(_table(context.seed, policy, held_out[policy.task], losses))
    context.progress(title, len(policies), len(policies))
    return pl.concat(tables)


def _held_out(context: StageContext, task: int, policies: Sequence[TunedPolicy], params: OfflineParams) -> Trajectories:
    """Trajectories of a target that no method was given, in the order in which few-shot ones are drawn."""
    given: set[int] = set()
    for summary in (policy.summary for policy in policies if policy.task == task):
        if summary.quality == params.quality:
            given |= {*summary.few_shot_episodes}
        if summary.prompt_quality == params.quality:
            given |= {*summary.prompt_episodes}
    file = of_target(context, "target_data", task) / f"{params.quality}.parquet"
    if not file.is_file() and context.key.task is not None:
        raise TooFew(task, 0, params.quality)  # what was accepted of the target is of other qualities
    data = read(file, family=context.family, new_task=task)
    order = np.random.default_rng([context.seed, task]).permutation(len(data.task_id))
    unseen = order[~np.isin(data.episode_id[order], list(given))][: params.trajectories]
    if len(unseen) < LEAST_HELD_OUT:
        raise TooFew(task, len(unseen), params.quality)
    return data.select(np.sort(unseen))


def _table(seed: int, policy: TunedPolicy, data: Trajectories, losses: np.ndarray) -> pl.DataFrame:
    count, trajectories = losses.shape
    origins = policy.actors.origins
    return pl.DataFrame(
        {
            "method": [policy.method] * losses.size,
            "task": [policy.task] * losses.size,
            "seed": [seed] * losses.size,
            "prompt": np.repeat(np.arange(count), trajectories),
            "trajectory": np.tile(data.episode_id, count),
            "action_loss": losses.reshape(-1),
            "origin": [origin.name for origin in origins for _ in range(trajectories)],
            "origin_step": [origin.step for origin in origins for _ in range(trajectories)],
        }
    )
