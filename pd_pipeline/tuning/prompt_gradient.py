"""Gradient descent on the prompt itself, the PLM frozen: no generator, no prior over prompts."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pd_pipeline.training.loop import OptimizationParams, Trainer
from pd_pipeline.training.policy_data import prompt_tensors
from pd_pipeline.tuning.protocol import FewShot, Pretrained, Run, Tuned, TuningParams, guidance_loss, to_prompts


class Params(TuningParams, OptimizationParams):
    """Descent on each prompt."""

    prompts: int = Field(default=4, gt=0, description="prompts tuned, each on its own, in one batch")
    steps: int = Field(default=200, gt=0)
    learning_rate: float = Field(default=3e-2, gt=0, description="in units of a channel's standard deviation")
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=10, ge=0)
    clip: float | None = Field(default=None, gt=0)
    windows: int = Field(default=16, gt=0, description="few-shot windows a prompt and step")
    log_every: int = Field(default=1, gt=0)


class PromptParameters(nn.Module):
    """The prompts as the only weights."""

    def __init__(self, x0: Tensor):
        super().__init__()
        self.x0 = nn.Parameter(x0.clone())  # (n, K*, channels) normalised


def tune(plm: Pretrained, few_shot: FewShot, params: Params, seed: int, run: Run) -> Tuned:
    """Begin at few-shot segments and follow the gradient of L_DT; return-to-go and timesteps stay."""
    start = few_shot.draw(np.random.default_rng(seed), params.prompts)
    x0, y = prompt_tensors(start, plm.normalization, plm.device)
    tuned = PromptParameters(x0)
    trainer = Trainer(tuned, params, run.work, run.title)
    each = torch.arange(params.prompts, device=plm.device).repeat_interleave(params.windows)  # (n windows,)

    def loss_of_step(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        window, valid = few_shot.windows.any_windows(rng, len(each), plm.policy.config.acting_window)
        # a sum over prompts: each moves as if it were alone
        return guidance_loss(plm, tuned.x0[each], y[each], window, valid) * params.prompts

    history = trainer.fit(trainer.backward(loss_of_step), run.progress, run.logs)
    for row in history.rows:
        row["loss"] /= params.prompts
    return Tuned(
        to_prompts(tuned.x0, y, plm.normalization, int(few_shot.data.task_id[0])),
        history=history,
        tuned_parameters=x0[0].numel(),
        plm_passes=2 * len(each) * params.steps,
    )
