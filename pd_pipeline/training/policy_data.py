"""Trajectories as contiguous, normalised tensors, and batches for the PLM as gathers by index.

A sample is a window of the current episode and a prompt: a random segment of a random trajectory of the same task.
The window ends at a uniformly drawn step and begins up to K steps before it, as windows do when acting.
"""

from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import Steps, action_loss
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.trajectories.reading import Trajectories


class Batch(NamedTuple):
    """B samples."""

    prompt: Steps  # (B, K*)
    window: Steps  # (B, K)
    valid: Tensor  # (B, K) bool: False where the episode is shorter than the window


class TaskInterpolation(Parameters):
    """Training samples between tasks: task interpolation (Yao et al., ICLR 2022) for trajectories.

    A sample is mixed with one of another episode at the same timesteps, prompt and window with the same weight:
    x = w x_1 + (1 - w) x_2 for returns-to-go, states and actions, w uniform in [-e, 1 + e]. A PLM trained on
    only a few tasks can treat them as classes, and act on a new task's prompt as on that of the nearest training task;
    samples between and beyond the tasks (e > 0) teach it that tasks are continuous. This suits tasks whose behaviour is
    close to linear in the goal, such as reaching; a mixture of two gaits is not a gait.
    """

    share: float = Field(default=0.0, ge=0, le=1, description="share of samples that are interpolated; 0: off")
    extrapolation: float = Field(default=0.0, ge=0, le=100, description="e: how far weights go beyond either task")


def interpolate(one: Batch, other: Batch, weight: Tensor) -> Batch:
    """weight * one + (1 - weight) * other, weight (B,); actions are clipped to [-1, 1], timesteps are those of one."""

    def mix(a: Tensor, b: Tensor) -> Tensor:
        w = weight.view(-1, *[1] * (a.dim() - 1))  # (B, 1, ..)
        return w * a + (1 - w) * b

    def steps(a: Steps, b: Steps) -> Steps:
        return Steps(
            mix(a.returns_to_go, b.returns_to_go),
            mix(a.observations, b.observations),
            mix(a.actions, b.actions).clamp(-1, 1),
            a.timesteps,
        )

    return Batch(steps(one.prompt, other.prompt), steps(one.window, other.window), one.valid)


class PolicyData:
    """Episodes of some tasks on one device."""

    def __init__(self, data: Trajectories, normalization: Normalization, device: torch.device | str = "cpu"):
        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)

        self.observations = tensor(normalization.observations(data.observations))  # (n, d_s)
        self.actions = tensor(normalization.actions(data.actions))  # (n, d_a)
        self.returns_to_go = tensor(data.returns_to_go / normalization.return_scale)  # (n,)
        self.starts = data.starts[:-1]  # (m,)
        self.lengths = data.lengths  # (m,)
        self.tasks = np.unique(data.task_id)
        self.episodes = [np.flatnonzero(data.task_id == task) for task in self.tasks]
        self.device = device

    @property
    def device_type(self) -> str:
        """The kind of its device: cpu, cuda, ..."""
        return torch.device(self.device).type

    def batch(
        self,
        rng: np.random.Generator,
        per_task: int,
        prompt_length: int,
        context: int,
        interpolation: TaskInterpolation | None = None,
        prompts: "PolicyData | None" = None,
    ) -> Batch:
        """`per_task` samples per task; `interpolation` makes some of them mixtures of two tasks.

        Prompts come from the episodes of `prompts`, which has the same tasks; None: from these. Raises PipelineError
        where a task has no episode that is as long as a prompt.
        """
        shown = self if prompts is None else prompts
        window_episode = np.concatenate([rng.choice(of, per_task) for of in self.episodes])  # (B,)
        prompt_episode = np.concatenate([rng.choice(of, per_task) for of in shown._as_long_as(prompt_length)])
        prompt_start = rng.integers(0, shown.lengths[prompt_episode] - prompt_length + 1)
        window_end = rng.integers(1, self.lengths[window_episode] + 1)

        def samples(windows: np.ndarray, prompts: np.ndarray) -> Batch:
            window, valid = self._steps(windows, np.maximum(window_end - context, 0), context, window_end)
            return Batch(shown._steps(prompts, prompt_start, prompt_length)[0], window, valid)

        batch = samples(window_episode, prompt_episode)
        if interpolation is None or interpolation.share == 0:
            return batch
        partner = rng.permutation(len(window_episode))
        long_enough = (self.lengths[window_episode[partner]] >= window_end) & (
            shown.lengths[prompt_episode[partner]] >= prompt_start + prompt_length
        )
        partner = np.where(
            long_enough, partner, np.arange(len(partner))
        )  # a sample without a partner mixes with itself
        mixed = rng.random(len(partner)) < interpolation.share
        reach = interpolation.extrapolation
        weight = np.where(mixed, rng.uniform(-reach, 1 + reach, len(partner)), 1.0).astype(np.float32)
        return interpolate(
            batch,
            samples(window_episode[partner], prompt_episode[partner]),
            torch.from_numpy(weight).to(self.device),
        )

    def windows(self, episodes: np.ndarray, rng: np.random.Generator, context: int) -> tuple[Steps, Tensor]:
        """A random window of each of these episodes: Steps (B, K) and its valid steps (B, K)."""
        end = rng.integers(1, self.lengths[episodes] + 1)
        return self._steps(episodes, np.maximum(end - context, 0), context, end)

    def windows_before(self, episodes: np.ndarray, ends: np.ndarray, length: int) -> Steps:
        """The last L = `length` of the first `ends` (B,) steps of each of these episodes, `ends` >= L: (B, L)."""
        return self._steps(episodes, ends - length, length, ends)[0]

    def any_windows(self, rng: np.random.Generator, count: int, context: int) -> tuple[Steps, Tensor]:
        """`count` random windows of random episodes."""
        return self.windows(rng.integers(0, len(self.lengths), count), rng, context)

    def _as_long_as(self, prompt_length: int) -> list[np.ndarray]:
        """For each task its episodes that a prompt can be cut from. Raises PipelineError where there is none."""
        long = [of[self.lengths[of] >= prompt_length] for of in self.episodes]
        for task, of in zip(self.tasks, long, strict=True):
            if not len(of):
                raise PipelineError(
                    f"task {task}: no episode of those to learn from, or of those held out, is as long as a prompt of "
                    f"{prompt_length} steps: shorten prompts (prompts.length), or have more or longer episodes"
                )
        return long

    def _steps(
        self, episodes: np.ndarray, first: np.ndarray, length: int, end: np.ndarray | None = None
    ) -> tuple[Steps, Tensor]:
        """`length` steps from `first` (B,) on, up to `end`; beyond it the last step repeats and is not valid."""
        timesteps = first[:, None] + np.arange(length)  # (B, L)
        end = self.lengths[episodes] if end is None else end
        valid = timesteps < end[:, None]
        timesteps = np.minimum(timesteps, end[:, None] - 1)
        rows = torch.from_numpy(self.starts[episodes][:, None] + timesteps).to(self.device)
        steps = Steps(
            self.returns_to_go[rows],
            self.observations[rows],
            self.actions[rows],
            torch.from_numpy(timesteps).to(self.device),
        )
        return steps, torch.from_numpy(valid).to(self.device)


def policy_loss(policy: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
    """Action loss of a batch (eq. 7 with given prompts); `generator` draws the dropout in training."""
    return action_loss(policy(batch.prompt, batch.window, generator), batch.window.actions, batch.valid)
