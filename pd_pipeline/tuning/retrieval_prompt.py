"""The few-shot segments under which the frozen PLM predicts the other few-shot trajectories best.

Nothing is tuned and no gradient is taken: the loss of a segment is the action loss of the PLM prompted with it, on the
same windows of every trajectory for all segments. A segment is not scored on its own trajectory, whose start it shares,
and as some trajectories are harder than others, each trajectory's mean over the segments that are scored on it is
subtracted first:

    score(s) = mean over j != e(s) of ( L[s, j] - mean over s' with e(s') != j of L[s', j] )

With a single trajectory there is no other, and its own windows count.
"""

import numpy as np
from pydantic import Field

from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams
from pd_pipeline.tuning.windows import window_losses


class Params(TuningParams):
    """How segments are scored."""

    windows: int = Field(default=8, gt=0, le=100_000, description="windows of each trajectory that segments predict")
    candidates: int | None = Field(
        default=None, gt=0, le=1_000_000, description="segments that are scored, drawn at random; null: all"
    )


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Score the segments and return the best ones, the very best first."""
    rng = np.random.default_rng(run.seed)
    count = len(target.prompts) if params.candidates is None else min(params.candidates, len(target.prompts))
    drawn = target.draw(rng, count)
    foreign = drawn.episode_id[:, None] != target.data.episode_id  # (n, m)
    if params.target.prompt_quality not in (None, params.target.quality):
        foreign[:] = True  # numbers of episodes of another quality
    episodes = np.repeat(np.arange(len(target.data.task_id)), params.windows)
    window, valid = target.windows.windows(episodes, rng, plm.policy.config.acting_window)  # (m windows, K)
    found = window_losses(plm, *prompt_tensors(drawn, plm.normalization, plm.device), window, valid)
    losses = found.view(len(found), -1, params.windows).mean(2).cpu().double().numpy()  # (n, m windows) -> (n, m)
    best = np.resize(np.argsort(scores(losses, foreign), kind="stable"), params.prompts)  # again from the best on
    return Prompted(prompts=drawn.select(best), cost=Cost(plm_forward=found.numel()))


def scores(losses: np.ndarray, foreign: np.ndarray) -> np.ndarray:
    """Scores (n,) of n segments from their losses (n, m) on m trajectories, and on which of them they count (n, m)."""
    counted = foreign if foreign.any(1).all() else np.ones_like(foreign)
    weight = counted.astype(float)
    centred = losses - (losses * weight).sum(0) / np.maximum(weight.sum(0), 1)
    return (centred * weight).sum(1) / weight.sum(1)
