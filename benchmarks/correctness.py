"""Whether an accelerator computes what the CPU does, and whether a training that was cut off ends as if it was not."""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Figure, at_most
from benchmarks.device import CONTEXT, PROMPT, Bench
from benchmarks.synthetic import ACTION_SIZE, OBSERVATION_SIZE
from pd_pipeline.acting.actors import prompted
from pd_pipeline.compute import generator_of
from pd_pipeline.models.diffuser import diffusion_loss, sample
from pd_pipeline.progress import silent
from pd_pipeline.training.loop import OptimizationParams, Trainer
from pd_pipeline.training.policy_data import PolicyData, policy_loss
from pd_pipeline.tuning.protocol import guidance_loss

CPU = torch.device("cpu")


def differences(bench: Bench) -> list[Figure]:
    """The same loss, gradients, prompts and actions as on the CPU, in float32; and resuming that changes nothing."""
    figures = [
        at_most(f"{what}, relative difference from the CPU", off, 1.0, "", goal=goal)
        for what, off, goal in (*_training_differences(bench), *_generating_differences(bench))
    ]
    figures.append(at_most("weights after resuming, largest difference", _resumed(bench), 1.0, "", goal=0.0))
    return figures


def _off(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the norm of what is expected."""
    found, expected = (tensor.detach().cpu().float() for tensor in (found, expected))
    return float((found - expected).norm() / expected.norm())


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers in one row."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _training_differences(bench: Bench) -> list[tuple[str, float, float]]:
    losses, gradients, halves = list[Tensor](), list[Tensor](), list[Tensor]()  # of the CPU, then of the device
    for device in (CPU, bench.device):
        policy = bench.policy("128x3", device)
        batch = PolicyData(bench.data, bench.normalization, device).batch(np.random.default_rng(0), 4, PROMPT, CONTEXT)
        loss = policy_loss(policy, batch)
        gradients.append(_flat(torch.autograd.grad(loss, list(policy.parameters()))))
        losses.append(loss)
        with torch.autocast(device.type, torch.bfloat16):
            halves.append(policy_loss(policy, batch))
    return [
        ("PLM loss", _off(losses[1], losses[0]), 1e-4),
        ("gradient of the PLM loss", _off(gradients[1], gradients[0]), 1e-3),
        ("PLM loss in bf16, against float32", _off(halves[1], losses[0]), 2e-2),
    ]


def _generating_differences(bench: Bench) -> list[tuple[str, float, float]]:
    found: list[tuple[Tensor, Tensor, Tensor]] = []  # of the CPU, then of the device
    noise = torch.randn((8, PROMPT, OBSERVATION_SIZE + ACTION_SIZE + 1), generator=generator_of(0, 0))
    for device in (CPU, bench.device):
        plm = bench.pretrained("128x3", device)
        target = bench.target(plm)
        assert plm.diffuser is not None, "made above"
        denoiser, diffusion = plm.diffuser
        y = target.tensors(plm)[1][:8]
        made = sample(denoiser, diffusion, noise.to(device), y, 3)
        window, valid = target.windows.any_windows(np.random.default_rng(0), 8, CONTEXT)
        loss = guidance_loss(plm, made, y, window, valid)
        gradient = _flat(torch.autograd.grad(loss, list(denoiser.parameters())))
        actors = prompted(plm.policy, target.draw(np.random.default_rng(0), 8), plm.normalization)
        found.append((made, gradient, actors.started().act(window)))
    names = ("generated prompts", "guidance gradient through the chain", "actions")
    return [(name, _off(ours, expected), 1e-3) for name, ours, expected in zip(names, found[1], found[0], strict=True)]


class _Stopped(Exception):
    """A training was cut off."""


def _resumed(bench: Bench) -> float:
    """Largest difference of weights between a training that was cut off and resumed, and one that was not."""
    with tempfile.TemporaryDirectory() as work:
        whole = _trained(bench, Path(work) / "whole")
        with suppress(_Stopped):
            _trained(bench, Path(work) / "cut", stop_at=12)
        return float((_trained(bench, Path(work) / "cut") - whole).abs().max())


def _trained(bench: Bench, work: Path, stop_at: int | None = None) -> Tensor:
    """The denoiser's weights after twenty steps of the diffusion loss, with a checkpoint after each."""
    plm = bench.pretrained("128x3", bench.device)
    x0, y = bench.target(plm).tensors(plm)
    assert plm.diffuser is not None, "made above"
    denoiser, diffusion = plm.diffuser

    def loss_of_step(step: int) -> Tensor:
        if step == stop_at:
            raise _Stopped
        return diffusion_loss(denoiser, diffusion, x0, y, generator_of(0, step, bench.device))

    params = OptimizationParams(steps=20, learning_rate=1e-3, checkpoint_seconds=0, log_every=5)
    trainer = Trainer(denoiser, params, work, "resuming")
    trainer.fit(trainer.backward(loss_of_step), silent)
    return _flat([parameter.detach() for parameter in denoiser.parameters()])
