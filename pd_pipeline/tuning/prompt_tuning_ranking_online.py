"""Prompt-Tuning DT online: perturbed prompts are ranked by the return of episodes in the target's environment.

One prompt is improved, and returned for every evaluated episode: the budget of episodes is spent on it alone.
"""

import numpy as np
import torch
from pydantic import Field

from pd_pipeline.acting.actors import prompted
from pd_pipeline.compute import generator_of
from pd_pipeline.models.prompting import prompt_tensors, to_prompts
from pd_pipeline.training.loop import History
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from pd_pipeline.tuning.ranking import RankingParams, direction, floats, put_back

ONLINE = True


class Params(RankingParams):
    """How perturbations are ranked: steps * perturbations * queries episodes."""

    queries: int = Field(default=2, gt=0, le=1000, description="episodes per perturbation, whose mean return counts")


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Start from a few-shot segment and improve it."""
    x0, y = prompt_tensors(target.draw(np.random.default_rng(run.seed), 1), plm.normalization, plm.device)
    x = floats(x0, y)
    velocity, rows = torch.zeros_like(x), list[dict[str, float]]()
    each = torch.zeros(params.perturbations, dtype=torch.long, device=x.device)
    with run.simulation(params.steps * params.perturbations * params.queries) as simulation:
        for step in range(params.steps):
            generator = generator_of(run.seed, step, x.device)
            noise = params.scale * torch.randn(
                (params.perturbations, *x.shape[1:]), generator=generator, device=x.device
            )
            tried = to_prompts(*put_back(x + noise, x0[each], y[each]), plm.normalization, target.task)
            actors = prompted(plm.policy, tried, plm.normalization)
            queries = actors.select(np.tile(np.arange(params.perturbations), params.queries))
            found = simulation.run(queries, target.target_return).returns.reshape(params.queries, -1)  # (queries, m)
            losses = torch.from_numpy(-found.mean(0)[None]).to(x)  # (1, m)
            velocity = params.momentum * velocity + direction(noise[None], losses)
            x = x + params.step_size * velocity
            rows.append({"step": step + 1, "return": float(found.mean())})
            run.progress(run.title, step + 1, params.steps, f"return {rows[-1]['return']:.3f}")
    made = to_prompts(*put_back(x, x0, y), plm.normalization, target.task)
    return Prompted(
        prompts=made.select(np.zeros(params.prompts, np.int64)),
        history=History(rows),
        cost=Cost(tuned_parameters=x[0].numel()),
    )
