"""Small synthetic data for tests."""

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pd_pipeline.families.base import load_family
from pd_pipeline.families.ml1 import ML1
from pd_pipeline.families.reach import Reach
from pd_pipeline.models.decision_transformer import PolicyConfig, PromptingDecisionTransformer, Steps
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.trajectories.reading import Trajectories, return_to_go
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns

D_S, D_A = 3, 2
F = TypeVar("F", Reach, ML1)


def metadata(**changes: Any) -> TrajectoryMetadata:
    values = {
        "family": "point_robot",
        "quality": "expert",
        "observation_size": D_S,
        "action_low": (-1.0, -2.0),
        "action_high": (1.0, 2.0),
        "horizon": 10,
        "seed": 0,
        "goals": {0: {"position": [0.0]}, 1: {"position": [1.0]}},
        "environment": {},
        "versions": {"numpy": np.__version__},
    }
    return TrajectoryMetadata(**(values | changes))


def columns(
    tasks: tuple[int, ...] = (0, 1), episodes: int = 2, length: int = 5, seed: int = 0, d_s: int = D_S
) -> Columns:
    """Valid steps: `episodes` episodes of `length` steps per task."""
    rng = np.random.default_rng(seed)
    count = len(tasks) * episodes * length
    reward = rng.normal(size=count).astype(np.float32)
    step = np.tile(np.arange(length, dtype=np.int32), len(tasks) * episodes)
    return Columns(
        task_id=np.repeat(np.array(tasks, np.int32), episodes * length),
        episode_id=np.tile(np.repeat(np.arange(episodes, dtype=np.int64), length), len(tasks)),
        step=step,
        observation=rng.normal(size=(count, d_s)).astype(np.float32),
        action=rng.uniform(-1, 1, (count, D_A)).astype(np.float32),
        reward=reward,
        return_to_go=np.concatenate([return_to_go(part) for part in reward.reshape(-1, length)]),
        terminated=np.zeros(count, bool),
        truncated=step == length - 1,
        success=rng.random(count) < 0.1,
    )


def changed(made: Columns, name: str, rows: Any, value: Any) -> Columns:
    """A copy of `made` with other values in some rows of one column."""
    array = getattr(made, name).copy()
    array[rows] = value
    return replace(made, **{name: array})


def trajectories(lengths: tuple[int, ...], tasks: tuple[int, ...], seed: int = 0, **changes: Any) -> Trajectories:
    """Episodes of these lengths, with one task per episode."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    rewards = rng.normal(size=total).astype(np.float32)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    parts = [return_to_go(rewards[a:b]) for a, b in pairwise(starts)]
    return Trajectories(
        metadata(**changes),
        rng.normal(1.0, 2.0, (total, D_S)).astype(np.float32),
        rng.uniform(-1, 1, (total, D_A)).astype(np.float32),
        rewards,
        np.concatenate(parts),
        np.zeros(total, bool),
        starts,
        np.array(tasks, np.int32),
        np.arange(len(lengths), dtype=np.int64),
    )


def normalization(data: Trajectories) -> Normalization:
    return Normalization.of([data])


def fill(model: torch.nn.Module) -> None:
    """Set every weight by a formula, so that stored outputs do not depend on PyTorch's random numbers."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (0.7 + 0.1 * index) + index)
            base = 1.0 if name.endswith("norm.weight") or ("norm" in name and name.endswith("weight")) else 0.0
            parameter.copy_((base + 0.3 * wave).view(parameter.shape).to(parameter.dtype))


def policy(seed: int = 0, **changes: Any) -> PromptingDecisionTransformer:
    """A tiny PLM in evaluation mode with weights large enough to matter."""
    values = {"observation_size": D_S, "action_size": D_A, "max_timestep": 10, "prompt_length": 2, "context": 4}
    values |= {"width": 16, "layers": 2, "heads": 1, "dropout": 0.1}
    torch.manual_seed(seed)
    made = PromptingDecisionTransformer(PolicyConfig(**(values | changes)))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def steps(batch: int, length: int, seed: int = 0, first: int = 0, d_s: int = D_S) -> Steps:
    """Random normalised steps from timestep `first` on."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    timesteps = torch.arange(first, first + length).expand(batch, -1)
    return Steps(draw(batch, length), draw(batch, length, d_s), draw(batch, length, D_A).tanh(), timesteps)


@lru_cache(maxsize=16)
def benchmark(seed: int = 0, task: str = "reach-v3") -> Any:
    """ML1 for a seed; building it takes two seconds."""
    import metaworld

    return metaworld.ML1(task, seed=seed)


def reach(**block: Any) -> Reach:
    """The family with a benchmark that is built once per process."""
    family = load_family("reach", block, Path.cwd())
    assert isinstance(family, Reach)
    return with_benchmark(family)


def with_benchmark(family: F) -> F:
    """The family with a benchmark that is built once per process."""
    found = benchmark(family.params.benchmark_seed, family.environment)
    family.__dict__["_benchmark"] = found  # where the cached property stores its value
    return family
