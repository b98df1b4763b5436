"""Training of a policy's weights on the few-shot trajectories, for every method that changes some or all of them."""

from dataclasses import replace

import numpy as np
import torch
from pydantic import Field

from pd_pipeline.compute import generator_of
from pd_pipeline.config import MAX_STEPS
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.training.loop import BatchSize, History, OptimizationParams, Rate, StepCount, Trainer
from pd_pipeline.training.policy_data import PolicyData, policy_loss
from pd_pipeline.training.stopping import passes_of
from pd_pipeline.tuning.adaptation import Cost
from pd_pipeline.tuning.held_out import watch_prompts
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams, select


class FineTuningParams(TuningParams, OptimizationParams):
    """How weights are trained."""

    steps: StepCount = 150
    learning_rate: Rate = 1e-3
    warmup: int = Field(default=10, ge=0, le=MAX_STEPS)
    batch: BatchSize = 32
    log_every: StepCount = 1


def fine_tune(
    policy: PromptingDecisionTransformer, plm: Pretrained, target: Target, params: FineTuningParams, run: Run
) -> tuple[Prompts, History, Cost]:
    """Train the weights of `policy` that require gradients; returns the prompts to act under, the log and the cost.

    As in pre-training, with a new optimizer, on windows as long as those it acts on. The prompts are few-shot segments;
    candidates are selected by the trained policy's own loss, since it is the one that acts under them.
    """
    policy.train()
    config = policy.config
    trainer = Trainer(policy, params, run.work, run.title)
    shown = None  # where prompts come from, if not from the windows' trajectories
    if target.prompts_from is not target.data:
        shown = PolicyData(target.prompts_from, plm.normalization, plm.device)

    def loss_of_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng([run.seed, step])
        batch = target.windows.batch(rng, params.batch, config.prompt_length, config.acting_window, prompts=shown)
        return policy_loss(policy, batch, generator_of(run.seed, step, plm.device))

    drawn = target.draw(np.random.default_rng(run.seed), params.candidate_count)
    x0, y = prompt_tensors(drawn, plm.normalization, plm.device)
    adapted = replace(plm, policy=policy)
    first = params.prompts  # of the candidates, while it is not chosen among them
    watched = watch_prompts(adapted, target, params, run.seed, lambda: (x0[:first], y[:first]), first)
    history = trainer.fit(trainer.backward(loss_of_step), run.progress, run.logs, watch=watched)
    size = sum(p.numel() for p in trainer.trained.values())
    policy.eval().requires_grad_(False)
    kept, passes = select(adapted, target, x0, y, params, run.seed)
    passes += passes_of(watched, params.steps)
    each_way = params.batch * params.steps
    cost = Cost(tuned_parameters=size, plm_forward=each_way + passes, plm_backward=each_way)
    return drawn.select(kept.cpu().numpy()), history, cost
