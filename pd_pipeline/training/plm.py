"""Stage plm: pre-train the Prompting Decision Transformer on the training tasks."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from pd_pipeline.models.decision_transformer import PolicyConfig, PolicyShape, PromptingDecisionTransformer
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.prompts.stage import held_out_episodes
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import COST_FILE, read_json, save_arrays, write_json
from pd_pipeline.training.loop import OptimizationParams, Trainer, generator_of, load_weights, pick_device, weights
from pd_pipeline.training.policy_data import PolicyData, TaskInterpolation, policy_loss
from pd_pipeline.trajectories.reading import read

VALIDATION_SEED = 1 << 20  # beside every training seed


class Params(PolicyShape, OptimizationParams):
    """Shape and training of the PLM."""

    steps: int = Field(default=2400, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_per_task: int = Field(default=4, gt=0, description="samples of every training task in each step")
    quality: str = "expert"
    interpolation: TaskInterpolation = TaskInterpolation()
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of episodes kept for the validation loss")


def run(context: StageContext) -> dict[str, Any]:
    """Write `policy.safetensors`, `config.json`, `normalization.safetensors`, `losses.csv` and `cost.json`."""
    params: Params = context.params
    began = time.monotonic()
    device = pick_device(params.device)
    normalization = Normalization.load(context.inputs["prompts"] / "normalization.safetensors")
    prompt_length = read_json(context.inputs["prompts"] / "config.json")["length"]
    data = read(context.inputs["trajectories"] / f"{params.quality}.parquet", context.family.train_tasks)
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
    steps = params.steps - trainer.resumed_at
    seconds = time.monotonic() - began
    samples = steps * params.batch_per_task * len(context.family.train_tasks)
    write_json(context.out / COST_FILE, {"seconds": seconds, "steps": steps, "samples": samples, "device": str(device)})
    return {name: history.rows[-1][name] for name in ("loss", "validation_loss")}


def load_policy(
    directory: Path, device: torch.device | str = "cpu"
) -> tuple[PromptingDecisionTransformer, Normalization]:
    """The frozen PLM of a directory that this stage wrote, in evaluation mode, with its normalisation."""
    policy = PromptingDecisionTransformer(PolicyConfig.model_validate(read_json(directory / "config.json")))
    load_weights(policy, directory / "policy.safetensors", "the config.json beside them")
    policy.to(device).eval().requires_grad_(False)
    return policy, Normalization.load(directory / "normalization.safetensors")
