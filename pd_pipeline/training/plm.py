"""Stage plm: pre-train the Prompting Decision Transformer on the training tasks."""

from typing import Any

import numpy as np
import torch
from pydantic import Field

from pd_pipeline.compute import generator_of, pick_device
from pd_pipeline.config import Name
from pd_pipeline.models.decision_transformer import PolicyConfig, PolicyShape, PromptingDecisionTransformer
from pd_pipeline.models.saved_policy import save_policy
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.prompts.stage import Params as PromptParams
from pd_pipeline.prompts.stage import held_out_episodes
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import read_model
from pd_pipeline.training.loop import PretrainingParams, Rate, StepCount, Trainer
from pd_pipeline.training.policy_data import PolicyData, TaskInterpolation, policy_loss
from pd_pipeline.training.ranks import Ranks, in_processes
from pd_pipeline.trajectories.reading import Trajectories, joined, read

VALIDATION_SEED = 1 << 20


class Params(PolicyShape, PretrainingParams):
    """Shape and training of the PLM."""

    steps: StepCount = 2400
    learning_rate: Rate = 1e-3
    batch_per_task: int = Field(default=4, gt=0, le=100_000, description="samples per training task in each step")
    qualities: tuple[Name, ...] = Field(
        default=("expert",), min_length=1, max_length=100, description="qualities of the trajectories to learn from"
    )
    interpolation: TaskInterpolation = TaskInterpolation()
    processes: int = Field(default=1, gt=0, le=1024, description="that share every batch: one per GPU, say")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of episodes kept for the validation loss")


def run(context: StageContext) -> dict[str, Any]:
    """Write `policy.safetensors`, `config.json`, `normalization.safetensors` and `losses.csv`."""
    return in_processes(train, context, context.params.processes)


def train(context: StageContext, ranks: Ranks) -> dict[str, Any]:
    """Train in this process, and write if it leads."""
    params: Params = context.params
    device = ranks.device(pick_device(context.device))
    normalization = Normalization.load(context.inputs["prompts"] / "normalization.safetensors")
    prompt_length = read_model(context.inputs["prompts"] / "config.json", PromptParams).length
    files = [context.inputs["trajectories"] / f"{quality}.parquet" for quality in params.qualities]
    data = [read(file, context.family.train_tasks, context.family) for file in files]
    held_out = [held_out_episodes(part.task_id, params.held_out) for part in data]  # of each quality
    training = PolicyData(_episodes(data, [~mask for mask in held_out]), normalization, device)
    validation = PolicyData(_episodes(data, held_out), normalization, device)
    config = PolicyConfig(
        observation_size=normalization.observation_size,
        action_size=normalization.action_size,
        max_timestep=normalization.horizon,
        prompt_length=prompt_length,
        **params.model_dump(include=set(PolicyShape.model_fields)),
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(context.seed)
        policy = PromptingDecisionTransformer(config).to(device)
    trainer = Trainer(policy, params, context.work, f"plm {context.key}", ranks)
    if params.compile:
        policy.compile()  # in place: the names of the weights stay the same
    called = ranks.wrapped(policy)

    def loss_of_step(step: int) -> torch.Tensor:
        batch = training.batch(
            np.random.default_rng([context.seed, step]),
            params.batch_per_task,
            prompt_length,
            params.context,
            params.interpolation,
        )
        share = ranks.share(batch)
        loss = policy_loss(called, share, generator_of(context.seed, ranks.seed_step(step), device))
        return ranks.weighted(loss, share.valid.sum())

    fixed = validation.batch(np.random.default_rng(VALIDATION_SEED), 8, prompt_length, params.context)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        policy.eval()
        loss = float(policy_loss(policy, fixed))
        policy.train()
        return {"validation_loss": loss}

    policy.train()
    history = trainer.fit(trainer.backward(loss_of_step), context.progress, context.logs, evaluate)
    if ranks.leads:
        save_policy(context.out, policy, normalization)
        history.write(context.out / "losses.csv")
    context.facts.update(device=str(device), precision=trainer.precision)
    return {name: history.rows[-1][name] for name in ("loss", "validation_loss")}


def _episodes(data: list[Trajectories], masks: list[np.ndarray]) -> Trajectories:
    """The episodes (m,) of each data set that its mask selects, joined."""
    return joined([part.select(np.flatnonzero(mask)) for part, mask in zip(data, masks, strict=True)])
