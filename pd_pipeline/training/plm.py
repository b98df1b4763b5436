"""Stage plm: pre-train the Prompting Decision Transformer on the training tasks."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from pd_pipeline.config import Name
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import PolicyConfig, PolicyShape, PromptingDecisionTransformer
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.prompts.stage import Params as PromptParams
from pd_pipeline.prompts.stage import held_out_episodes
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import read_model, save_arrays, write_json
from pd_pipeline.training.loop import (
    OptimizationParams,
    Rate,
    StepCount,
    Trainer,
    generator_of,
    pick_device,
)
from pd_pipeline.training.policy_data import PolicyData, TaskInterpolation, policy_loss
from pd_pipeline.training.weights import load_model, weights
from pd_pipeline.trajectories.reading import read

VALIDATION_SEED = 1 << 20  # beside every training seed


class Params(PolicyShape, OptimizationParams):
    """Shape and training of the PLM."""

    steps: StepCount = 2400
    learning_rate: Rate = 1e-3
    batch_per_task: int = Field(default=4, gt=0, le=100_000, description="samples of every training task in each step")
    quality: Name = "expert"
    interpolation: TaskInterpolation = TaskInterpolation()
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of episodes kept for the validation loss")


def run(context: StageContext) -> dict[str, Any]:
    """Write `policy.safetensors`, `config.json`, `normalization.safetensors` and `losses.csv`."""
    params: Params = context.params
    device = pick_device(params.device)
    normalization = Normalization.load(context.inputs["prompts"] / "normalization.safetensors")
    prompt_length = read_model(context.inputs["prompts"] / "config.json", PromptParams).length
    data = read(
        context.inputs["trajectories"] / f"{params.quality}.parquet", context.family.train_tasks, context.family
    )
    held_out = held_out_episodes(data.task_id, params.held_out)
    training = PolicyData(data.select(np.flatnonzero(~held_out)), normalization, device)
    validation = PolicyData(data.select(np.flatnonzero(held_out)), normalization, device)
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
    trainer = Trainer(policy, params, context.work, f"plm {context.key}")
    residual = torch.bfloat16 if trainer.bf16 else torch.float32
    if params.compile:
        policy.compile()  # in place: names of weights stay

    def loss_of_step(step: int) -> torch.Tensor:
        batch = training.batch(
            np.random.default_rng([context.seed, step]),
            params.batch_per_task,
            prompt_length,
            params.context,
            params.interpolation,
        )
        policy.refresh_dropout(len(batch.valid), residual, generator_of(context.seed, step, device))
        return policy_loss(policy, batch)

    fixed = validation.batch(np.random.default_rng(VALIDATION_SEED), 8, prompt_length, params.context)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        policy.eval()
        loss = float(policy_loss(policy, fixed))
        policy.train()
        return {"validation_loss": loss}

    policy.train()
    history = trainer.fit(trainer.backward(loss_of_step), context.progress, context.logs, evaluate)
    save_arrays(context.out / "policy.safetensors", weights(policy))
    write_json(context.out / "config.json", config.model_dump(mode="json"))
    normalization.save(context.out / "normalization.safetensors")
    history.write(context.out / "losses.csv")
    context.facts.update(device=str(device), precision=trainer.precision)
    return {name: history.rows[-1][name] for name in ("loss", "validation_loss")}


def load_policy(
    directory: Path, device: torch.device | str = "cpu"
) -> tuple[PromptingDecisionTransformer, Normalization]:
    """The frozen PLM of a directory that this stage wrote, in evaluation mode, with its normalisation."""
    config = read_model(directory / "config.json", PolicyConfig)
    normalization = Normalization.load(directory / "normalization.safetensors")
    of_config = config.observation_size, config.action_size, config.max_timestep
    if (of_data := (normalization.observation_size, normalization.action_size, normalization.horizon)) != of_config:
        raise PipelineError(
            f"{directory / 'config.json'}: observation size, action size and horizon are {of_config}, but {of_data} in "
            "normalization.safetensors beside it: run stage plm again"
        )
    path = directory / "policy.safetensors"
    policy = load_model(lambda: PromptingDecisionTransformer(config), path, "the config.json beside them")
    policy.to(device).eval().requires_grad_(False)
    return policy, normalization
