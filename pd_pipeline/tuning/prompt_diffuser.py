"""Prompt Diffuser (Hu et al., arXiv 2411.01168): tune the diffuser for a target task under the frozen PLM's guidance.

First the diffuser is adapted to the few-shot prompts with L_DM alone, then guided with eq. 9: each step samples
prompts through the reverse chain, computes the PLM's action loss given these prompts, and adds its gradient, projected
off the diffusion gradient where they conflict. The guidance gradient is scaled to the norm of the diffusion gradient
before it is multiplied by lambda: their norms differ by orders of magnitude and drift during tuning, so an unscaled
lambda would mean something else for every task and step. At the end candidates are generated from few-shot conditions
y, and those with the lowest action loss on the few-shot trajectories are kept: a selection that every method has, on
here by default.
"""

import copy
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.compute import generator_of
from pd_pipeline.config import MAX_STEPS
from pd_pipeline.models.conditions import Askable, ask, conditioned
from pd_pipeline.models.diffuser import Denoiser, diffusion_loss, generate, sample
from pd_pipeline.models.diffusion import Diffusion
from pd_pipeline.models.prompting import to_prompts
from pd_pipeline.training.loop import BatchSize, History, OptimizationParams, Rate, StepCount, Trainer
from pd_pipeline.training.stopping import Watch, passes_of
from pd_pipeline.tuning.adaptation import Cost
from pd_pipeline.tuning.generated import Generated
from pd_pipeline.tuning.gradient_projection import Mode, Reading, combine, cosine, norm
from pd_pipeline.tuning.held_out import watch_prompts
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams, evaluating, guidance_loss, select

Share = Annotated[float, Field(ge=0, le=1)]
NEEDS = ("diffuser",)
TINY = torch.finfo(torch.float32).tiny
load = Generated.load


class AdaptParams(OptimizationParams):
    """Phase one: only L_DM, on the few-shot prompts."""

    steps: StepCount = 200
    learning_rate: Rate = 1e-3
    clip: float | None = Field(default=1.0, gt=0)
    warmup: int = Field(default=20, ge=0, le=MAX_STEPS)
    batch: BatchSize = 128


class Params(TuningParams, OptimizationParams):
    """Phase two: eq. 9."""

    start: Literal["pretrained", "random"] = Field(
        default="pretrained",
        description="the pre-trained denoiser, or one of its shape at random, to see what pre-training is worth",
    )
    adapt: AdaptParams | None = AdaptParams()
    steps: StepCount = 300
    learning_rate: Rate = 1e-3
    clip: float | None = Field(default=1.0, gt=0)
    warmup: int = Field(default=10, ge=0, le=MAX_STEPS)
    log_every: StepCount = 1
    batch: BatchSize = 32
    guidance: float = Field(default=20.0, ge=0, le=1e9, description="lambda")
    scale_guidance: bool = Field(default=True, description="scale g_DT to the norm of g_DM before lambda")
    mode: Mode = "projection"
    ask: dict[Askable, Share] = Field(
        default={},
        description="what is asked of generated prompts, with diffuser.conditions: the quantile of a condition among "
        "the few-shot segments, 0 its lowest value there, 1 its highest; where it is not named, that of drawn segments",
    )
    reading: Reading = "flat"
    test: Literal["global", "layer"] = "global"
    energy: float = Field(default=0.95, gt=0, le=1, description="share kept by the layer_svd reading")
    chain: int = Field(
        default=3, gt=0, le=100_000, description="DDIM steps of the reverse chain, in guidance and generation"
    )
    candidates: int | None = Field(
        default=64, gt=0, le=100_000, description="prompts generated, of which the best are kept; None: no selection"
    )


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Generated:
    """Adapt, guide, generate and select."""
    assert plm.diffuser is not None, "NEEDS names the diffuser"
    pretrained, diffusion = plm.diffuser
    denoiser = copy.deepcopy(pretrained) if params.start == "pretrained" else at_random(pretrained, run.seed)
    denoiser.requires_grad_(True).train()
    conditions = pretrained.config.conditions
    x0, y = conditioned(target.prompts, conditions, plm.normalization, plm.device)
    wanted = ask(y, conditions, params.ask, run.title)
    rows: list[dict[str, float]] = []
    if params.adapt is not None:
        adapted = adapt(denoiser, diffusion, x0, y, params.adapt, run)
        rows += [{"phase": 1, **row} for row in adapted.rows]
    before = copy.deepcopy(denoiser).eval()
    watched = watch_generated(plm, denoiser, diffusion, target, wanted, params, run.seed)
    guided = guide(plm, denoiser, diffusion, target, (x0, y, wanted), params, run, watched)
    rows += [{"phase": 2, **row} for row in guided.rows]
    denoiser.eval()
    made, drawn = generate(denoiser, diffusion, wanted, params.candidate_count, params.chain, run.seed)
    kept, chosen_by = select(plm, target, made, drawn, params, run.seed)
    looks = passes_of(watched, params.steps)
    guidance = params.batch * params.steps * (params.mode != "dm_only")  # with dm_only it is only logged
    size = sum(p.numel() for p in denoiser.parameters())
    return Generated(
        prompts=to_prompts(made[kept], drawn[kept], plm.normalization, target.task),
        denoisers={"adapted": before, "guided": denoiser},
        chain=min(params.chain, diffusion.steps),
        history=History(rows),
        cost=Cost(tuned_parameters=size, plm_forward=guidance + looks + chosen_by, plm_backward=guidance),
    )


def at_random(like: Denoiser, seed: int) -> Denoiser:
    """A denoiser of the same shape with random weights, drawn as those that pre-training starts from."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Denoiser(like.config).to(next(like.parameters()).device)


def adapt(denoiser: Denoiser, diffusion: Diffusion, x0: Tensor, y: Tensor, params: AdaptParams, run: Run) -> History:
    """Train on the few-shot prompts x0 (n, K*, channels), y (n, K*, 2 + C) with L_DM alone."""

    def loss_of_step(step: int) -> Tensor:
        rows = np.random.default_rng([run.seed, 1, step]).integers(0, len(x0), params.batch)
        picked = torch.from_numpy(rows).to(x0.device)
        return diffusion_loss(denoiser, diffusion, x0[picked], y[picked], generator_of(run.seed, step, x0.device))

    trainer = Trainer(denoiser, params, run.work / "adapt", f"{run.title} adapt")
    return trainer.fit(trainer.backward(loss_of_step), run.progress, run.logs / "adapt")


def watch_generated(
    plm: Pretrained,
    denoiser: Denoiser,
    diffusion: Diffusion,
    target: Target,
    wanted: Tensor,
    params: Params,
    seed: int,
) -> Watch | None:
    """Early stopping by prompts that the denoiser generates at the moment, from the same noise at every look."""

    def prompts() -> tuple[Tensor, Tensor]:
        with evaluating(denoiser):
            return generate(denoiser, diffusion, wanted, params.prompts, params.chain, seed)

    return watch_prompts(plm, target, params, seed, prompts, params.prompts)


def guide(
    plm: Pretrained,
    denoiser: Denoiser,
    diffusion: Diffusion,
    target: Target,
    segments: tuple[Tensor, Tensor, Tensor],
    params: Params,
    run: Run,
    watched: Watch | None = None,
) -> History:
    """Tune with eq. 9; logs L_DM, L_DT, the cosine and ratio of their gradients and the share projected.

    `segments` are all few-shot ones x0 (n, K*, channels) and y (n, K*, 2 + C), and the y of the prompts that guide.
    """
    trainer = Trainer(denoiser, params, run.work / "guide", f"{run.title} guide")
    parameters = list(denoiser.parameters())
    x0, y, wanted = segments

    def compute(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([run.seed, 2, step])
        generator = generator_of(run.seed + 1, step, plm.device)
        picked = torch.from_numpy(rng.integers(0, len(x0), params.batch)).to(plm.device)
        diffusing = diffusion_loss(denoiser, diffusion, x0[picked], y[picked], generator)
        g_dm = torch.autograd.grad(diffusing, parameters)
        window, valid = target.windows.any_windows(rng, params.batch, plm.policy.config.acting_window)
        noise = torch.randn(x0[picked].shape, generator=generator, device=plm.device)
        prompt = sample(denoiser, diffusion, noise, wanted[picked], params.chain)
        with trainer.autocast():
            acting = guidance_loss(plm, prompt, wanted[picked], window, valid)
        g_dt = torch.autograd.grad(acting, parameters)
        ratio = norm(g_dt) / norm(g_dm)
        similarity = cosine(g_dm, g_dt)
        if params.scale_guidance:
            g_dt = tuple(g / ratio.clamp(min=TINY) for g in g_dt)
        update, projected = combine(
            g_dm, g_dt, params.guidance, params.mode, params.reading, params.test, params.energy
        )
        for parameter, gradient in zip(parameters, update, strict=True):
            parameter.grad = gradient.clone()
        return {
            "loss": (diffusing + params.guidance * acting).detach(),
            "l_dm": diffusing.detach(),
            "l_dt": acting.detach(),
            "cosine": similarity,
            "norm_ratio": ratio,
            "projected": torch.tensor(projected),
        }

    return trainer.fit(compute, run.progress, run.logs / "guide", watch=watched)
