"""Zeroth-order descent on a prompt by ranking perturbations of it (Prompt-Tuning DT, Hu et al., arXiv 2305.09648).

Each step draws m perturbations xi_j ~ mu N(0, I), ranks the prompts x + xi_j from best (0) to worst (m - 1), and moves

    g = 2 / (m (m - 1)) sum_j (m - 1 - 2 rank_j) xi_j,      v = momentum * v + g,      x = x + step * v

The weights sum to zero, so that what all perturbations have in common adds nothing to g; those of the published code,
m - 2 rank_j, do not.
What is perturbed are states, actions and returns-to-go, normalised: neither the timesteps nor a mask, as there.
"""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pd_pipeline.config import MAX_STEPS
from pd_pipeline.tuning.protocol import TuningParams


class RankingParams(TuningParams):
    """The published settings."""

    steps: int = Field(default=10, gt=0, le=MAX_STEPS)
    perturbations: int = Field(default=15, gt=1, le=100_000, description="m, per step")
    scale: float = Field(default=1.0, gt=0, le=1e6, description="mu, their standard deviation, normalised")
    step_size: float = Field(default=1e-4, gt=0, le=1e6, description="how far a prompt moves along v")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="share of v that stays from step to step")

    @model_validator(mode="after")
    def _nothing_to_choose(self) -> Self:
        if self.candidates is not None:
            raise ValueError("ranking improves each prompt by itself: leave out candidates")
        return self


def floats(x0: Tensor, y: Tensor) -> Tensor:
    """What is perturbed: states, actions and returns-to-go (n, K*, d_s + d_a + 1). The PLM never reads a reward."""
    return torch.cat((x0[..., :-1], y[..., :1]), dim=-1)


def put_back(x: Tensor, x0: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x0 (n, K*, channels) and y (n, K*, 2) with these numbers; rewards and timesteps as they were."""
    return torch.cat((x[..., :-1], x0[..., -1:]), dim=-1), torch.cat((x[..., -1:], y[..., 1:]), dim=-1)


def direction(noise: Tensor, losses: Tensor) -> Tensor:
    """The direction g (n, ...) to go, from perturbations (n, m, ...) and their losses (n, m): less is better."""
    m = losses.shape[1]
    ranks = losses.argsort(dim=1, stable=True).argsort(dim=1, stable=True)  # (n, m): 0 for the best
    weights = 2 / (m * (m - 1)) * (m - 1 - 2 * ranks).to(noise)
    return torch.einsum("nm,nm...->n...", weights, noise)
