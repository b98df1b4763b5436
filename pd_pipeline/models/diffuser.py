"""The conditional denoiser of prompts.

Residual MLP blocks on the flattened prompt, each modulated by an embedding of the condition y and the diffusion step n
(adaptive layer norm, Peebles and Xie 2023). The output layer starts at zero. A plain MLP on the concatenation of x_n,
y and n does not fit: the output must change with small changes of the timestep, which Fourier features make possible.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pd_pipeline.compute import generator_of
from pd_pipeline.config import Parameters
from pd_pipeline.models.conditions import CHANNELS, Conditions
from pd_pipeline.models.diffusion import Diffusion


class DenoiserShape(Parameters):
    """The settings of the denoiser that a user chooses."""

    width: int = Field(default=256, gt=0, le=16_384)
    blocks: int = Field(default=4, gt=0, le=200)
    frequencies: int = Field(
        default=16, gt=0, le=1024, description="Fourier features of the timestep and the diffusion step"
    )


class DenoiserConfig(DenoiserShape):
    """Shape of the denoiser; saved beside its weights."""

    channels: int = Field(gt=0, le=200_001, description="d_s + d_a + 1")
    prompt_length: int = Field(gt=0, le=1000, description="K*")
    conditions: Conditions = Conditions()


class DenoiserBlock(nn.Module):
    """x + gate * MLP(scale * norm(x) + shift), with scale, shift and gate from the condition."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, width), condition (B, width) -> (B, width)."""
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)
        normed = self.norm(x) * (1 + scale) + shift
        return x + (1 + gate) * self.down(F.mish(self.up(normed)))


class Denoiser(nn.Module):
    """Predicts eps, x0 or v from a noisy prompt, its condition and the diffusion step."""

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        flat = config.channels * config.prompt_length
        features = config.prompt_length + 4 * config.frequencies + config.conditions.size
        self.input = nn.Linear(flat, config.width)
        self.condition = nn.Sequential(
            nn.Linear(features, config.width), nn.Mish(), nn.Linear(config.width, config.width), nn.Mish()
        )
        self.blocks = nn.ModuleList(DenoiserBlock(config.width) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, flat)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, y: Tensor, n: Tensor) -> Tensor:
        """Noisy prompt (B, K*, channels), condition y (B, K*, 2 + C), n (B,) in [0, 1] -> (B, K*, channels).

        y is normalised; its C further channels are those of `config.conditions`.
        """
        returns_to_go, start = y[..., 0], y[:, 0, 1]  # the timesteps of a prompt are consecutive
        further = y[:, 0, CHANNELS:]  # (B, C), the same at each step
        features = torch.cat((returns_to_go, self._fourier(start), self._fourier(n), further), dim=-1)
        condition = self.condition(features)  # (B, width)
        hidden = self.input(x.flatten(1))  # (B, K* channels) -> (B, width)
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.output(self.norm(hidden)).view_as(x)

    def _fourier(self, value: Tensor) -> Tensor:
        """(B,) in [0, 1] -> (B, 2 frequencies): sines and cosines, geometrically spaced from half a turn to 32."""
        exponents = torch.linspace(0, 6, self.config.frequencies, device=value.device, dtype=value.dtype)
        angles = value.unsqueeze(-1) * math.pi * 2**exponents
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def diffusion_loss(
    denoiser: Denoiser, diffusion: Diffusion, x0: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    """L_DM (eq. 6) of prompts x0 (B, K*, channels) given y (B, K*, 2 + C), with n ~ U and eps ~ N(0, I) drawn here."""
    n = torch.randint(0, diffusion.steps, (len(x0),), generator=generator, device=x0.device)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device)
    return diffusion.loss(lambda x, n: denoiser(x, y, n / diffusion.steps), x0, noise, n)


def sample(denoiser: Denoiser, diffusion: Diffusion, noise: Tensor, y: Tensor, chain: int) -> Tensor:
    """Reverse chain from noise (B, K*, channels) given y (B, K*, 2 + C), differentiable."""
    return diffusion.sample(
        lambda x, n: denoiser(x, y, n / diffusion.steps), noise, "ddim", min(chain, diffusion.steps)
    )


def encode(denoiser: Denoiser, diffusion: Diffusion, x0: Tensor, y: Tensor, chain: int) -> Tensor:
    """The noise (B, K*, channels) from which `sample` makes prompts close to x0 (B, K*, channels) given y."""
    return diffusion.encode(lambda x, n: denoiser(x, y, n / diffusion.steps), x0, min(chain, diffusion.steps))


@torch.no_grad()
def generate(
    denoiser: Denoiser, diffusion: Diffusion, y: Tensor, count: int, chain: int, seed: int
) -> tuple[Tensor, Tensor]:
    """`count` prompts and their conditions, drawn from the few-shot conditions y (n, K*, 2 + C)."""
    rows = np.random.default_rng([seed, 3]).choice(len(y), count, replace=count > len(y))
    conditions = y[torch.from_numpy(rows).to(y.device)]
    shape = (count, denoiser.config.prompt_length, denoiser.config.channels)
    noise = torch.randn(shape, generator=generator_of(seed + 2, 0, y.device), device=y.device)
    return sample(denoiser, diffusion, noise, conditions, chain), conditions
