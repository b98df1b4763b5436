"""Early stopping and falling back to drawn prompts, for every method: what tuning did not see decides.

A method can lower its loss on the few-shot trajectories and still act worse, since it learned them by heart. With
`held_out` some of these trajectories are kept from it, and its action loss on them decides twice:

    stop        what the method had found when this loss was lowest is kept, not what it ends with; to have learned
                nothing is one of the choices, or nothing since its first phase, if it has two (prompt_diffuser,
                warm_start)
    fall_back   drawn prompts are kept unless the loss of the adapted policy is lower than that of the PLM under them
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import Steps
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.training.stopping import Watch
from pd_pipeline.trajectories.reading import Trajectories
from pd_pipeline.tuning.action_losses import action_losses
from pd_pipeline.tuning.adaptation import Adaptation, FellBack, Prompted
from pd_pipeline.tuning.protocol import SELECTION_WINDOWS, Pretrained, Target, TuningParams
from pd_pipeline.tuning.windows import window_losses

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
            f"{where}: held_out: needs two few-shot trajectories, one to tune on and one to hold out, but there is "
            f"{count}: set target.few_shot to more, or leave out held_out"
        )
    kept = count - min(max(1, round(share * count)), count - 1)
    return Split(data.select(np.arange(kept)), data.select(np.arange(kept, count)))


def watch(
    plm: Pretrained, target: Target, params: TuningParams, seed: int, loss: Callable[[Steps, Tensor], Tensor], each: int
) -> Watch | None:
    """The mean `loss` on windows (B, K) of what `target` holds out, the same at every look; None: no early stopping.

    `loss` returns that of `each` conditions (prompts, prefixes) on each window or over all, of any shape.
    """
    if target.held_out is None or params.held_out is None or not params.held_out.stop:
        return None
    context = plm.policy.config.acting_window
    window, valid = target.held_out.any_windows(np.random.default_rng([seed, 8]), SELECTION_WINDOWS, context)
    return Watch(lambda: float(loss(window, valid).mean()), params.held_out.every, each * SELECTION_WINDOWS)


def watch_prompts(
    plm: Pretrained,
    target: Target,
    params: TuningParams,
    seed: int,
    prompts: Callable[[], tuple[Tensor, Tensor]],
    count: int,
) -> Watch | None:
    """`watch` with the action loss of `plm` under the `count` prompts x0, y that `prompts` gives at the moment."""
    return watch(plm, target, params, seed, lambda window, valid: window_losses(plm, *prompts(), window, valid), count)


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
