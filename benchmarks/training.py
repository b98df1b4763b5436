"""A training step of the PLM on a device, what it computes, and how fast the device multiplies matrices."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device import CONTEXT, PER_TASK, PROMPT, TASKS, Bench
from pd_pipeline.compute import generator_of, use_bf16
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer
from pd_pipeline.training.loop import OptimizationParams, Trainer
from pd_pipeline.training.policy_data import PolicyData, policy_loss


def training_step(bench: Bench, policy: PromptingDecisionTransformer, work: Path) -> tuple[Callable[[], None], Trainer]:
    """One step as stage plm makes it (batch, forward, backward, clipping, optimizer), and its trainer."""
    trainer = Trainer(policy, OptimizationParams(steps=10_000, learning_rate=1e-4), work, "benchmark")
    source = PolicyData(bench.data, bench.normalization, bench.device)

    def loss_of_step(step: int) -> Tensor:
        batch = source.batch(np.random.default_rng([0, step]), PER_TASK, PROMPT, CONTEXT)
        return policy_loss(policy, batch, generator_of(0, step, bench.device))

    compute = trainer.backward(loss_of_step)

    def step() -> None:
        trainer._update(compute)
        trainer.step += 1

    return step, trainer


def operations(bench: Bench, policy: PromptingDecisionTransformer) -> float:
    """Floating-point operations of the matrix products of one sample, forward and backward."""
    source = PolicyData(bench.data, bench.normalization, bench.device)
    batch = source.batch(np.random.default_rng(0), 1, PROMPT, CONTEXT)
    with FlopCounterMode(display=False) as counter:
        policy_loss(policy, batch, generator_of(0, 0, bench.device)).backward()
    policy.zero_grad(set_to_none=True)
    return counter.get_total_flops() / TASKS


def matmul_rate(bench: Bench) -> float:
    """Operations per second of a large matrix product in the precision of training, the best of twenty."""
    size = 8192 if bench.device.type == "cuda" and not bench.quick else 2048
    kind = torch.bfloat16 if use_bf16("auto", bench.device) else torch.float32
    a, b = (torch.randn(size, size, device=bench.device, dtype=kind) for _ in range(2))
    return 2 * size**3 * bench.rate(lambda: torch.mm(a, b), 1, 3 if bench.quick else 20)
