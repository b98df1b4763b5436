"""The upper bound: all weights of the PLM are tuned on the few-shot trajectories."""

import copy

import numpy as np
import torch
from pydantic import Field

from pd_pipeline.training.loop import OptimizationParams, Trainer, generator_of
from pd_pipeline.training.policy_data import policy_loss
from pd_pipeline.tuning.protocol import FewShot, Pretrained, Run, Tuned, TuningParams


class Params(TuningParams, OptimizationParams):
    """Fine-tuning of all weights."""

    steps: int = Field(default=150, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=10, ge=0)
    batch: int = Field(default=32, gt=0)
    log_every: int = Field(default=1, gt=0)


def tune(plm: Pretrained, few_shot: FewShot, params: Params, seed: int, run: Run) -> Tuned:
    """Train a copy of the PLM as in pre-training, with a fresh optimizer; evaluate it with few-shot prompts."""
    policy = copy.deepcopy(plm.policy).requires_grad_(True).train()
    config = policy.config
    trainer = Trainer(policy, params, run.work, run.title)
    residual = torch.bfloat16 if trainer.bf16 else torch.float32

    def loss_of_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, step])
        batch = few_shot.windows.batch(rng, params.batch, config.prompt_length, config.context)
        policy.refresh_dropout(params.batch, residual, generator_of(seed, step, plm.device))
        return policy_loss(policy, batch)

    history = trainer.fit(trainer.backward(loss_of_step), run.progress, run.logs)
    return Tuned(
        few_shot.draw(np.random.default_rng(seed), params.prompts),
        policy=policy.eval(),
        history=history,
        tuned_parameters=sum(p.numel() for p in policy.parameters()),
        plm_passes=2 * params.batch * params.steps,
    )
