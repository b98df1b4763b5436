"""All weights of the PLM are tuned on the few-shot trajectories: what may be reached without freezing it."""

import copy
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field

from pd_pipeline.compute import generator_of
from pd_pipeline.config import MOST_STEPS
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.training.loop import BatchSize, OptimizationParams, Rate, StepCount, Trainer
from pd_pipeline.training.policy_data import policy_loss
from pd_pipeline.tuning.protocol import FewShot, Pretrained, Run, Tuned, TuningParams, select


class Params(TuningParams, OptimizationParams):
    """Fine-tuning of all weights."""

    steps: StepCount = 150
    learning_rate: Rate = 1e-3  # chosen with `steps` on validation tasks: results/studies/full_finetune_budget.json
    warmup: int = Field(default=10, ge=0, le=MOST_STEPS)
    batch: BatchSize = 32
    log_every: StepCount = 1


def tune(plm: Pretrained, few_shot: FewShot, params: Params, seed: int, run: Run) -> Tuned:
    """Train a copy of the PLM as in pre-training, with a fresh optimizer, on windows as long as those it acts on.

    The prompts are few-shot segments; candidates are chosen by the tuned policy's own loss, since it acts under them.
    """
    policy = copy.deepcopy(plm.policy).requires_grad_(True).train()
    config = policy.config
    trainer = Trainer(policy, params, run.work, run.title)

    def loss_of_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, step])
        batch = few_shot.windows.batch(rng, params.batch, config.prompt_length, config.acting_window)
        return policy_loss(policy, batch, generator_of(seed, step, plm.device))

    history = trainer.fit(trainer.backward(loss_of_step), run.progress, run.logs)
    policy.eval().requires_grad_(False)
    drawn = few_shot.draw(np.random.default_rng(seed), params.made)
    x0, y = prompt_tensors(drawn, plm.normalization, plm.device)
    kept, passes = select(replace(plm, policy=policy), few_shot, x0, y, params, seed)
    return Tuned(
        drawn.select(kept.cpu().numpy()),
        policy=policy,
        history=history,
        tuned_parameters=sum(p.numel() for p in policy.parameters()),
        plm_passes=2 * params.batch * params.steps + passes,
    )
