"""Prompt-Tuning DT offline: perturbed prompts are ranked by the frozen PLM's action loss on few-shot windows.

All perturbations of a step are ranked on the same windows, without dropout, so that ranks differ by prompts alone.
"""

import numpy as np
import torch
from pydantic import Field

from pd_pipeline.compute import generator_of
from pd_pipeline.config import MAX_STEPS
from pd_pipeline.models.prompting import prompt_tensors, to_prompts
from pd_pipeline.training.loop import History
from pd_pipeline.training.stopping import Best, passes_of
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.held_out import watch_prompts
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from pd_pipeline.tuning.ranking import RankingParams, direction, floats, put_back
from pd_pipeline.tuning.windows import window_losses


class Params(RankingParams):
    """Chosen on validation tasks of reach: the published settings hardly move a prompt."""

    steps: int = Field(default=40, gt=0, le=MAX_STEPS)
    scale: float = Field(default=0.1, gt=0, le=1e6, description="mu, their standard deviation, normalised")
    step_size: float = Field(default=0.3, gt=0, le=1e6, description="how far a prompt moves along v")
    windows: int = Field(default=8, gt=0, le=100_000, description="few-shot windows per step, the same for all")


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Start from few-shot segments and improve each by itself."""
    x0, y = prompt_tensors(target.draw(np.random.default_rng(run.seed), params.prompts), plm.normalization, plm.device)
    x = floats(x0, y)
    velocity, rows = torch.zeros_like(x), list[dict[str, float]]()
    watched = watch_prompts(plm, target, params, run.seed, lambda: put_back(x, x0, y), params.prompts)
    best = Best()
    if watched:
        best.offer(watched.loss(), 0, {"x": x})
    each = torch.arange(params.prompts, device=x.device).repeat_interleave(params.perturbations)  # (n m,)
    for step in range(params.steps):
        generator = generator_of(run.seed, step, x.device)
        shape = (params.prompts, params.perturbations, *x.shape[1:])
        noise = params.scale * torch.randn(shape, generator=generator, device=x.device)
        tried = put_back((x[:, None] + noise).flatten(0, 1), x0[each], y[each])  # (n m, K*, .)
        rng = np.random.default_rng([run.seed, step])
        window, valid = target.windows.any_windows(rng, params.windows, plm.policy.config.acting_window)
        losses = window_losses(plm, *tried, window, valid).mean(1).view(shape[:2])  # (n m, B) -> (n, m)
        velocity = params.momentum * velocity + direction(noise, losses)
        x = x + params.step_size * velocity
        rows.append({"step": step + 1, "loss": float(losses.mean())})
        if watched and watched.is_due(step + 1, params.steps):
            rows[-1]["held_out"] = watched.loss()
            best.offer(rows[-1]["held_out"], step + 1, {"x": x})
        run.progress(run.title, step + 1, params.steps, f"loss {rows[-1]['loss']:.4f}")
    looks = passes_of(watched, params.steps)
    return Prompted(
        prompts=to_prompts(*put_back(best.tensors.get("x", x), x0, y), plm.normalization, target.task),
        history=History(rows),
        cost=Cost(tuned_parameters=x[0].numel(), plm_forward=params.steps * len(each) * params.windows + looks),
    )
