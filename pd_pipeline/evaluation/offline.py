"""Scores without a simulator: the action loss of what every method left on held-out trajectories of the targets.

All methods of a family and seed are scored on the same trajectories of a target: those of one quality that no method
was given, so that methods pair up by trajectory. With one seed an interval is over trajectories (bootstrap within
targets), with several over the seeds (Student), as for returns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from pd_pipeline.compute import use_bf16
from pd_pipeline.config import Name, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.offline_metrics import offline_metrics
from pd_pipeline.evaluation.policies import TunedPolicy, by_method, of_target, targets
from pd_pipeline.evaluation.results import OfflineEvaluation, save_offline
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import atomic_file
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories, read
from pd_pipeline.tuning.action_losses import action_losses
from pd_pipeline.tuning.protocol import Pretrained

LEAST = 2
"""Held-out trajectories that an interval needs."""


class TooFew(PipelineError):
    """Too few trajectories of a target are left to be scored on."""

    def __init__(self, task: int, left: int, quality: str):
        super().__init__(
            f"task {task}: {left} of the {LEAST} trajectories of quality '{quality}' that an interval needs are left "
            "to be scored on: bring more, or use fewer (target.few_shot)"
        )


class OfflineParams(Parameters):
    """How methods are scored for a family without a simulator."""

    quality: Name = Field(default="expert", description="quality of the held-out trajectories")
    trajectories: int | None = Field(
        default=20, ge=LEAST, le=1_000_000, description="held-out trajectories per target, at most; null: all"
    )
    steps: int | None = Field(
        default=50, gt=0, le=1_000_000, description="steps of each that count, evenly spaced; null: all"
    )


def score(
    context: StageContext, policies: Sequence[TunedPolicy], plm: Pretrained, params: OfflineParams
) -> dict[str, Any]:
    """Write `scores.parquet`, one row per method, target, prompt and held-out trajectory, and `metrics.json`.

    Of a single target that has too few trajectories as yet, `metrics.json` says so and holds no scores. Raises
    PipelineError if the targets of a family have too few.
    """
    try:
        held_out = {task: _held_out(context, task, policies, params) for task in targets(context)}
    except TooFew as error:
        if context.key.task is None:
            raise
        missing = OfflineEvaluation({}, context.params.precision, context.key.family, context.seed, waits=str(error))
        save_offline(context.out / "metrics.json", missing)
        return {}
    tables: list[pl.DataFrame] = []
    bf16 = use_bf16(context.params.precision, plm.device)
    windows = {task: PolicyData(found, plm.normalization, plm.device) for task, found in held_out.items()}
    for done, policy in enumerate(policies):
        context.progress(f"{context.stage} {context.key}", done, len(policies), f"{policy.method}, task {policy.task}")
        losses = action_losses(policy.actors, windows[policy.task], params.steps, bf16)  # (prompts, trajectories)
        tables.append(_table(context.seed, policy, held_out[policy.task], losses))
    context.progress(f"{context.stage} {context.key}", len(policies), len(policies))
    scores = pl.concat(tables)
    with atomic_file(context.out / "scores.parquet") as temporary:
        scores.write_parquet(temporary)
    metrics = offline_metrics(scores, by_method(list(policies)), context.seed, context.params.bootstrap)
    evaluation = OfflineEvaluation(metrics, context.params.precision, context.key.family, context.seed)
    save_offline(context.out / "metrics.json", evaluation)
    return {f"offline_action_loss_{method}": result.action_loss.value for method, result in metrics.items()}


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
    if len(unseen) < LEAST:
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
