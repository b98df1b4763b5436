"""Falling back to drawn prompts where tuning did not help, for every method: what tuning did not see decides.

A method can lower its loss on the few-shot trajectories and still act worse, since it learned them by heart. With
`fallback` some of these trajectories are kept from it. Then the adapted policy and the PLM under drawn prompts are
compared by their action loss on them, and drawn prompts are kept unless the adapted policy is better.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories
from pd_pipeline.tuning.action_losses import action_losses
from pd_pipeline.tuning.adaptation import Adaptation, FellBack, Prompted
from pd_pipeline.tuning.protocol import Pretrained, Target

PER_TRAJECTORY = 50
"""Steps of each trajectory, evenly spaced, that are compared."""


class Split(NamedTuple):
    """Trajectories to tune on, and those kept from it."""

    tuning: Trajectories
    held_out: Trajectories


def split(data: Trajectories, share: float, where: str) -> Split:
    """Keep the last `share` of m trajectories from tuning, at least one. Raises PipelineError if there is only one."""
    count = len(data.task_id)
    if count < 2:
        raise PipelineError(
            f"{where}: fallback: needs two few-shot trajectories, one to tune on and one to compare on, but there is "
            f"{count}: set target.few_shot to more, or leave out fallback"
        )
    kept = count - min(max(1, round(share * count)), count - 1)
    return Split(data.select(np.arange(kept)), data.select(np.arange(kept, count)))


def fall_back(
    plm: Pretrained, target: Target, result: Adaptation, held_out: Trajectories, prompts: int, seed: int
) -> Adaptation:
    """`result`, or as many drawn prompts of `target` if the PLM under these predicts `held_out` as well or better.

    What the comparison costs is added to the cost.
    """
    plain = Prompted(prompts=target.draw(np.random.default_rng([seed, 9]), prompts))
    data = PolicyData(held_out, plm.normalization, plm.device)
    losses = [action_losses(each.actors(plm), data, PER_TRAJECTORY) for each in (result, plain)]  # (n, m) each
    steps = sum(min(int(length), PER_TRAJECTORY) for length in data.lengths)
    passes = sum(len(found) for found in losses) * steps
    cost = result.cost.model_copy(update={"plm_forward": result.cost.plm_forward + passes})
    tuned, drawn = (float(found.mean()) for found in losses)
    if tuned < drawn:
        return replace(result, cost=cost)
    return FellBack(prompts=plain.prompts, tuned=tuned, drawn=drawn, cost=cost, history=result.history)
