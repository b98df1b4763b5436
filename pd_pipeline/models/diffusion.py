"""The diffusion process: noise schedules, the forward step and the reverse chain (Ho et al. 2020, Song et al. 2021).

Steps are counted from 0 to N - 1 here (1 to N in the papers): n = 0 is almost clean, n = N - 1 almost noise, and
-1 stands for the clean sample. Works on x of any shape (B, ...).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.config import Parameters

Schedule = Literal["vp", "cosine", "linear"]
Prediction = Literal["eps", "x0", "v"]
Sampler = Literal["ancestral", "ddim"]
Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_n (B, ...), n (B,) long) -> the network's prediction (B, ...)."""


class DiffusionParams(Parameters):
    """The process, and what the network predicts."""

    steps: int = Field(default=20, gt=0, le=100_000, description="N")
    schedule: Schedule = "cosine"
    prediction: Prediction = "x0"
    snr_clip: float | None = Field(
        default=5.0, gt=0, description="weight of L_DM: min(SNR, clip); null: eq. 6 unweighted"
    )


def betas(schedule: Schedule, steps: int) -> Tensor:
    """Noise variances (N,), float64.

    vp: discretised variance-preserving SDE, beta from 0.1 to 10 (Xiao et al. 2022, used by Diffusion-QL);
    cosine: Nichol and Dhariwal 2021; linear: Ho et al. 2020, 1e-4 to 0.02 for N = 1000, scaled to N.
    """
    n = torch.arange(1, steps + 1, dtype=torch.float64)
    if schedule == "vp":
        return 1 - torch.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * n - 1) / steps**2)
    if schedule == "cosine":
        level = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - level[1:] / level[:-1]).clamp(max=0.999)
    scale = 1000 / steps
    return torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp(max=0.999)


class Diffusion:
    """Forward and reverse process of a schedule."""

    def __init__(self, params: DiffusionParams, device: torch.device | str = "cpu"):
        self.params = params
        self.betas = betas(params.schedule, params.steps).to(torch.float32).to(device)  # (N,)
        self.alphas_bar = torch.cumprod(1 - betas(params.schedule, params.steps), 0).to(torch.float32).to(device)

    @property
    def steps(self) -> int:
        """N."""
        return self.params.steps

    def alpha_bar(self, n: Tensor, like: Tensor) -> Tensor:
        """Share of signal left at step n (B,), 1 for n = -1, shaped to broadcast over `like` (B, ...)."""
        padded = torch.cat((self.alphas_bar.new_ones(1), self.alphas_bar))
        return padded[n + 1].view(-1, *([1] * (like.dim() - 1)))

    def add_noise(self, x0: Tensor, noise: Tensor, n: Tensor) -> Tensor:
        """Forward process q(x_n | x_0), the argument of eps_theta in eq. 6."""
        level = self.alpha_bar(n, x0)
        return level.sqrt() * x0 + (1 - level).sqrt() * noise

    def target(self, x0: Tensor, noise: Tensor, n: Tensor) -> Tensor:
        """What the network must predict."""
        if self.params.prediction == "eps":
            return noise
        if self.params.prediction == "x0":
            return x0
        level = self.alpha_bar(n, x0)
        return level.sqrt() * noise - (1 - level).sqrt() * x0

    def to_x0(self, prediction: Tensor, x: Tensor, n: Tensor) -> Tensor:
        """The clean sample that a prediction at x_n implies."""
        level = self.alpha_bar(n, x)
        if self.params.prediction == "x0":
            return prediction
        if self.params.prediction == "eps":
            return (x - (1 - level).sqrt() * prediction) / level.sqrt()
        return level.sqrt() * x - (1 - level).sqrt() * prediction

    def loss(self, denoise: Denoise, x0: Tensor, noise: Tensor, n: Tensor) -> Tensor:
        """L_DM (eq. 6), a scalar: squared error of eps, each step weighted by min(SNR, clip) / SNR (Hang et al. 2023).

        Errors of x0 and v are converted to errors of eps first, so that the three predictions share one loss.
        """
        error = (denoise(self.add_noise(x0, noise, n), n) - self.target(x0, noise, n)) ** 2
        snr = self.alphas_bar[n] / (1 - self.alphas_bar[n])
        to_eps = {"eps": torch.ones_like(snr), "x0": snr, "v": snr / (snr + 1)}[self.params.prediction]
        clip = torch.ones_like(snr) if self.params.snr_clip is None else snr.clamp(max=self.params.snr_clip) / snr
        return (error.flatten(1).mean(1) * to_eps * clip).mean()

    def ancestral_step(self, x: Tensor, x0: Tensor, n: Tensor, noise: Tensor) -> Tensor:
        """x_n -> x_{n-1}, drawn from the posterior q(x_{n-1} | x_n, x0) (Ho et al., eq. 7); the last adds no noise."""
        level, before = self.alpha_bar(n, x), self.alpha_bar(n - 1, x)
        beta = self.betas[n].view_as(level)
        mean = before.sqrt() * beta / (1 - level) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - level) * x
        variance = beta * (1 - before) / (1 - level)
        return mean + variance.sqrt() * noise

    def ddim_step(self, x: Tensor, x0: Tensor, n: Tensor, to: Tensor) -> Tensor:
        """x_n -> x_to without noise (Song et al., eq. 12 with eta = 0)."""
        level, after = self.alpha_bar(n, x), self.alpha_bar(to, x)
        noise = (x - level.sqrt() * x0) / (1 - level).sqrt()
        return after.sqrt() * x0 + (1 - after).sqrt() * noise

    def sample(
        self,
        denoise: Denoise,
        noise: Tensor,
        sampler: Sampler = "ddim",
        steps: int | None = None,
        generator: torch.Generator | None = None,
        clip: float | None = None,
    ) -> Tensor:
        """Reverse chain from `noise` (B, ...) to a clean sample of the same shape; differentiable.

        `steps` (ddim only) is how many of the N steps are visited; `clip` bounds every estimate of x0.
        """
        if sampler == "ancestral" and steps not in (None, self.steps):
            raise ValueError("the ancestral chain visits every step: leave `steps` out or use ddim")
        visited = self._visited(steps)
        x = noise
        for index, step in enumerate(visited):
            n = torch.full((len(x),), step, dtype=torch.long, device=x.device)
            x0 = self.to_x0(denoise(x, n), x, n)
            if clip is not None:
                x0 = x0.clamp(-clip, clip)
            if sampler == "ddim":
                to = visited[index + 1] if index + 1 < len(visited) else -1
                x = self.ddim_step(x, x0, n, torch.full_like(n, to))
            else:
                fresh = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                x = self.ancestral_step(x, x0, n, fresh)
        return x

    def encode(self, denoise: Denoise, x0: Tensor, steps: int | None = None, iterations: int = 10) -> Tensor:
        """The DDIM chain of `sample` run backwards: the noise (B, ...) from which it makes about x0.

        A step x_n -> x_to is inverted by fixed-point iteration, as in Pan et al. (arXiv 2312.12540): x_n is corrected
        by what the step from it misses of x_to, as long as each correction at least halves that. A sample off the data
        has no noise that leads to it exactly, and would be corrected without end.
        """
        visited = [*self._visited(steps), -1]
        x = x0
        for step, before in zip(visited[-2::-1], visited[:0:-1], strict=True):
            n, to = (torch.full((len(x),), at, dtype=torch.long, device=x.device) for at in (step, before))

            def missed(at: Tensor, x: Tensor = x, n: Tensor = n, to: Tensor = to) -> Tensor:
                return x - self.ddim_step(at, self.to_x0(denoise(at, n), at, n), n, to)

            found, miss = x, missed(x)
            for _ in range(iterations):
                corrected = found + miss
                left = missed(corrected)
                halved = (left.flatten(1).norm(dim=1) < miss.flatten(1).norm(dim=1) / 2).view(-1, *[1] * (x.dim() - 1))
                found, miss = torch.where(halved, corrected, found), torch.where(halved, left, miss)
            x = found
        return x

    def _visited(self, steps: int | None) -> list[int]:
        """The steps that a chain of this length visits, from the noisiest on."""
        return torch.linspace(self.steps - 1, 0, steps or self.steps).round().long().tolist()
