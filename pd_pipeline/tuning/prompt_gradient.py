"""Gradient descent on the prompt itself, with the PLM frozen: no generator, no prior over prompts."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pd_pipeline.compute import generator_of
from pd_pipeline.config import MAX_STEPS
from pd_pipeline.models.prompting import prompt_tensors, to_prompts
from pd_pipeline.training.loop import History, OptimizationParams, Rate, StepCount, Trainer
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.training.stopping import Watch, passes_of
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.held_out import watch_prompts
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams, guidance_loss, select


class DescentParams(TuningParams, OptimizationParams):
    """Gradient descent; all prompts are tuned in one batch, each on its own windows.

    Their steps count alike: a prompt whose windows happen to be short takes a smaller step.
    """

    steps: StepCount = 200
    learning_rate: Rate = Field(default=3e-2, description="in the units that prompts are normalised to")
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    warmup: int = Field(default=10, ge=0, le=MAX_STEPS)
    clip: float | None = Field(default=None, gt=0)
    windows: int = Field(default=16, gt=0, le=100_000, description="few-shot windows per prompt and step")
    log_every: StepCount = 1


class Params(DescentParams):
    """Gradient descent, and where it starts."""

    start: Literal["segment", "noise"] = Field(
        default="segment", description="start from few-shot segments, or from noise under their y"
    )


class PromptParameters(nn.Module):
    """The prompts as the only weights."""

    def __init__(self, x0: Tensor):
        super().__init__()
        self.x0 = nn.Parameter(x0.clone())  # (n, K*, channels) normalised


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Follow the gradient of L_DT on few-shot windows; return-to-go and timesteps stay those of few-shot segments."""
    start = target.draw(np.random.default_rng(run.seed), params.candidate_count)
    x0, y = prompt_tensors(start, plm.normalization, plm.device)
    if params.start == "noise":
        x0 = torch.randn(x0.shape, generator=generator_of(run.seed, 0, plm.device), device=plm.device)
    found, y, history, passes = descend_and_select(plm, target, x0, y, params, run)
    each_way = len(x0) * params.windows * params.steps
    return Prompted(
        prompts=to_prompts(found, y, plm.normalization, target.task),
        history=history,
        cost=Cost(tuned_parameters=tuned_numbers(x0), plm_forward=each_way + passes, plm_backward=each_way),
    )


def tuned_numbers(x0: Tensor) -> int:
    """Numbers of one prompt of x0 (n, K*, channels) that tuning can change: not the rewards, which no policy reads."""
    return x0[0, :, :-1].numel()


def descend_and_select(
    plm: Pretrained, target: Target, x0: Tensor, y: Tensor, params: DescentParams, run: Run
) -> tuple[Tensor, Tensor, History, int]:
    """Tune prompts on the few-shot windows, stop early if asked to, and select.

    Returns the x0 and y of those selected, the log, and the PLM passes beyond those of the descent.
    """
    tuned = PromptParameters(x0)
    watched = watch_prompts(plm, target, params, run.seed, lambda: (tuned.x0.detach(), y), len(x0))
    history = descend(plm, target.windows, tuned, y, params, run, watched)
    found = tuned.x0.detach()
    kept, passes = select(plm, target, found, y, params, run.seed)
    return found[kept], y[kept], history, passes + passes_of(watched, params.steps)


def descend(
    plm: Pretrained,
    data: PolicyData,
    tuned: PromptParameters,
    y: Tensor,
    params: DescentParams,
    run: Run,
    watched: Watch | None = None,
) -> History:
    """Tune prompts (n, K*, channels) under y (n, K*, 2), each on windows of its own drawn from `data`."""
    trainer, count = Trainer(tuned, params, run.work, run.title), len(y)
    each = torch.arange(count, device=plm.device).repeat_interleave(params.windows)  # (n windows,)

    def loss_of_step(step: int) -> Tensor:
        rng = np.random.default_rng([run.seed, step])
        window, valid = data.any_windows(rng, len(each), plm.policy.config.acting_window)
        # a sum over prompts: the step of each does not shrink with their number
        return guidance_loss(plm, tuned.x0[each], y[each], window, valid) * count

    history = trainer.fit(trainer.backward(loss_of_step), run.progress, run.logs, watch=watched)
    for row in history.rows:
        row["loss"] /= count
    return history
