"""What is measured on a device: models with random weights, synthetic data of Meta-World's size, and a clock."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.synthetic import ACTION_SIZE, OBSERVATION_SIZE, trajectories
from pd_pipeline.models.decision_transformer import PolicyConfig, PromptingDecisionTransformer
from pd_pipeline.models.diffuser import Denoiser, DenoiserConfig
from pd_pipeline.models.diffusion import Diffusion, DiffusionParams
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.trajectories.reading import Trajectories
from pd_pipeline.tuning.protocol import Pretrained, Target

TASKS, PER_TASK, PROMPT, CONTEXT, HORIZON = 15, 16, 5, 20, 200
BATCH = TASKS * PER_TASK
SHAPES = {"128x3": {"width": 128, "layers": 3}, "512x4": {"width": 512, "layers": 4}}


class Bench(NamedTuple):
    """What all pieces measure on."""

    device: torch.device
    quick: bool
    data: Trajectories
    normalization: Normalization

    @classmethod
    def on(cls, device: torch.device, quick: bool) -> "Bench":
        """Synthetic data for a device."""
        data = trajectories(TASKS, 3 if quick else 40, HORIZON)
        return cls(device, quick, data, Normalization.of([data]))

    @property
    def shapes(self) -> list[str]:
        """Shapes of the PLM that are measured."""
        return list(SHAPES)[: 1 if self.quick else None]

    def policy(self, shape: str, device: torch.device, dropout: float = 0.0) -> PromptingDecisionTransformer:
        """A PLM with the same random weights on any device."""
        torch.manual_seed(0)
        given = {"observation_size": OBSERVATION_SIZE, "action_size": ACTION_SIZE, "max_timestep": HORIZON}
        config = PolicyConfig(prompt_length=PROMPT, context=CONTEXT, dropout=dropout, **given, **SHAPES[shape])
        policy = PromptingDecisionTransformer(config)
        with torch.no_grad():
            policy.head.weight.mul_(20)  # near zero at first, and then its actions give nothing to compare
        return policy.to(device)

    def pretrained(self, shape: str, device: torch.device) -> Pretrained:
        """A PLM and a diffuser with random weights: as fast as trained ones."""
        policy = self.policy(shape, device).requires_grad_(False).eval()
        denoiser = Denoiser(DenoiserConfig(channels=OBSERVATION_SIZE + ACTION_SIZE + 1, prompt_length=PROMPT))
        with torch.no_grad():
            denoiser.output.weight.normal_(std=0.02)  # it begins at zero, and then gives nothing to compare
        diffuser = denoiser.to(device), Diffusion(DiffusionParams(), device)
        return Pretrained(policy, self.normalization, device, diffuser)

    def target(self, plm: Pretrained) -> Target:
        """Five trajectories of one task."""
        return Target.of(self.data.select(np.arange(3 if self.quick else 5)), plm)

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, work: Callable[[], object], count: int, repeats: int) -> float:
        """Calls per second, best of `repeats` times `count` of them, after a warm-up."""
        for _ in range(1 if self.quick else 5):
            work()
        best = 0.0
        for _ in range(repeats):
            self.synchronize()
            started = time.perf_counter()
            for _ in range(count):
                work()
            self.synchronize()
            best = max(best, count / (time.perf_counter() - started))
        return best
