"""Stage diffuser: pre-train the diffuser on the prompts of the training tasks (phase 1 of the paper, eq. 6)."""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.compute import generator_of, pick_device
from pd_pipeline.config import MAX_STEPS, Name
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.conditions import Condition, conditions_of
from pd_pipeline.models.diffuser import Denoiser, DenoiserConfig, DenoiserShape, diffusion_loss
from pd_pipeline.models.diffusion import Diffusion, DiffusionParams
from pd_pipeline.models.saved_diffuser import save_diffuser
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.prompts.stage import HELD_OUT, load_tensors
from pd_pipeline.prompts.stage import Params as PromptParams
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import read_model
from pd_pipeline.training.loop import BatchSize, PretrainingParams, Rate, StepCount, Trainer


class Params(PretrainingParams):
    """Process, shape and training of the diffuser."""

    steps: StepCount = 2000
    learning_rate: Rate = 1e-3
    warmup: int = Field(default=200, ge=0, le=MAX_STEPS)
    clip: float | None = Field(default=1.0, gt=0)
    ema: float | None = Field(default=0.999, gt=0, lt=1)
    log_every: StepCount = 100
    batch: BatchSize = 256
    qualities: tuple[Name, ...] = Field(
        default=("expert",), min_length=1, max_length=100, description="qualities of the prompts to learn from"
    )
    diffusion: DiffusionParams = DiffusionParams()
    denoiser: DenoiserShape = DenoiserShape()
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=3,
        description="what prompts are generated for beyond return and time: where they are in their episode, how "
        "strong their actions are, what the family says of their task",
    )


def run(context: StageContext) -> dict[str, Any]:
    """Write `denoiser.safetensors` (the moving average), `config.json` and `losses.csv`."""
    params: Params = context.params
    device = pick_device(context.device)
    prompts = context.inputs["prompts"]
    cut = read_model(prompts / "config.json", PromptParams)
    if missing := [quality for quality in params.qualities if quality not in cut.qualities]:
        raise PipelineError(
            f"families.{context.key.family}.diffuser.qualities: there are no prompts of '{missing[0]}': add it to "
            f"families.{context.key.family}.prompts.qualities, now {', '.join(cut.qualities)}"
        )
    normalization = Normalization.load(prompts / "normalization.safetensors")
    conditions = conditions_of(params.conditions, context.family)
    x0, y = load_tensors(prompts, params.qualities, "", normalization, conditions, device)
    held_x0, held_y = load_tensors(prompts, params.qualities, HELD_OUT, normalization, conditions, device)
    shape = params.denoiser.model_dump()
    config = DenoiserConfig(channels=x0.shape[2], prompt_length=cut.length, conditions=conditions, **shape)
    with torch.random.fork_rng([]):
        torch.manual_seed(context.seed)
        denoiser = Denoiser(config).to(device)
    diffusion = Diffusion(params.diffusion, device)
    if params.compile:
        denoiser.compile()  # in place: the names of the weights stay the same

    def loss_of_step(step: int) -> Tensor:
        rows = np.random.default_rng([context.seed, step]).integers(0, len(x0), params.batch)
        picked = torch.from_numpy(rows).to(device)
        return diffusion_loss(denoiser, diffusion, x0[picked], y[picked], generator_of(context.seed, step, device))

    fixed = torch.from_numpy(np.random.default_rng(0).choice(len(held_x0), min(len(held_x0), 512), replace=False))
    held_x0, held_y = held_x0[fixed.to(device)], held_y[fixed.to(device)]

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        generator = generator_of(0, 0, device)
        return {"validation_loss": float(diffusion_loss(denoiser, diffusion, held_x0, held_y, generator))}

    trainer = Trainer(denoiser, params, context.work, f"diffuser {context.key}")
    history = trainer.fit(trainer.backward(loss_of_step), context.progress, context.logs, evaluate)
    save_diffuser(context.out, denoiser, params.diffusion, params.qualities)
    history.write(context.out / "losses.csv")
    context.facts.update(device=str(device), precision=trainer.precision)
    return {name: history.rows[-1][name] for name in ("loss", "validation_loss")}
