"""Segments of trajectories as prompts: x0 and y (eq. 4 and 5), their files and their normalisation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import expect_arrays, load_arrays, save_arrays

if TYPE_CHECKING:  # so that a policy is loaded without Parquet and Gymnasium
    from pd_pipeline.trajectories.reading import Trajectories

MIN_STD = 1e-3  # what hardly ever changes must not explode when it is divided by its deviation

PROMPT_TYPES = {"x0": "float32", "y": "float32", "task_id": "int32", "episode_id": "int64", "start": "int32"}


def _expect_types(path: Path, found: Mapping[str, np.ndarray], types: Mapping[str, str]) -> None:
    """Raise PipelineError where an array has another type."""
    for name, wanted in types.items():
        if found[name].dtype != wanted:
            raise PipelineError(f"{path}: tensor '{name}' is {found[name].dtype}, expected {wanted}")


@dataclass(frozen=True)
class Prompts:
    """n prompts of K* consecutive steps in the units of the task."""

    x0: np.ndarray  # (n, K*, d_s + d_a + 1) float32: state, action, reward of each step (eq. 4)
    y: np.ndarray  # (n, K*, 2) float32: return-to-go and timestep of each step (eq. 5)
    task_id: np.ndarray  # (n,) int32
    episode_id: np.ndarray  # (n,) int64; -1 where the prompt comes from no episode
    start: np.ndarray  # (n,) int32, first timestep

    def __len__(self) -> int:
        """Number of prompts n."""
        return len(self.x0)

    def select(self, rows: np.ndarray) -> "Prompts":
        """The prompts at these rows (indices or a mask)."""
        return Prompts(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_arrays(path, {name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path, normalization: "Normalization | None" = None, length: int | None = None) -> Self:
        """Read what `save` wrote. Raises PipelineError.

        Where given, `length` is the expected K*, and `normalization` that of the expected family.
        """
        arrays, _ = load_arrays(path)
        channels = None if normalization is None else len(normalization.mean)
        shapes = {"x0": (None, length, channels), "y": (None, length, 2)}
        expect_arrays(path, arrays, shapes | dict.fromkeys(("task_id", "episode_id", "start"), (None,)))
        _expect_types(path, arrays, PROMPT_TYPES)
        if len({len(array) for array in arrays.values()}) > 1 or arrays["x0"].shape[1] != arrays["y"].shape[1]:
            found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise PipelineError(f"{path}: its tensors differ in number or length: {found}: run its stage again")
        return cls(**arrays)


def cut(data: "Trajectories", length: int, stride: int = 1) -> Prompts:
    """Every `stride`-th segment of `length` = K* steps of every episode; shorter episodes have none."""
    counts = np.maximum((data.lengths - length) // stride + 1, 0)  # segments per episode (m,)
    episode = np.repeat(np.arange(len(counts)), counts)  # (n,)
    if not len(episode):
        raise PipelineError(f"no episode of '{data.metadata.family}' is as long as a prompt of {length} steps")
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    start = (np.arange(len(episode)) - first[episode]) * stride  # (n,) timestep of the first step
    timesteps = start[:, None] + np.arange(length)  # (n, K*)
    rows = data.starts[:-1][episode][:, None] + timesteps  # (n, K*)
    x0 = np.concatenate((data.observations[rows], data.actions[rows], data.rewards[rows][..., None]), axis=-1)
    y = np.stack((data.returns_to_go[rows], timesteps.astype(np.float32)), axis=-1)
    return Prompts(x0, y, data.task_id[episode], data.episode_id[episode], start.astype(np.int32))


@dataclass(frozen=True)
class Normalization:
    """Scales every channel of x0 to order one; computed from TRAINING tasks only and saved with the PLM."""

    mean: np.ndarray  # (d_s + d_a + 1,) float32; for actions the centre of their bounds
    std: np.ndarray  # (d_s + d_a + 1,) float32, positive; for actions half the width of their bounds
    return_scale: float  # returns-to-go are divided by it
    horizon: int
    observation_size: int
    action_size: int

    @classmethod
    def of(cls, data: "list[Trajectories]") -> "Normalization":
        """Statistics over all steps of several data sets of one family."""
        metadata = data[0].metadata
        observations = np.concatenate([part.observations for part in data]).astype(np.float64)
        rewards = np.concatenate([part.rewards for part in data]).astype(np.float64)
        low, high = (np.asarray(bound, np.float64) for bound in (metadata.action_low, metadata.action_high))
        mean = np.concatenate((observations.mean(0), (low + high) / 2, [rewards.mean()]))
        spread = np.maximum(observations.std(0), MIN_STD), (high - low) / 2, [max(float(rewards.std()), MIN_STD)]
        scale = max(float(np.abs(part.returns_to_go).max()) for part in data)
        return cls(
            mean.astype(np.float32),
            np.concatenate(spread).astype(np.float32),
            scale if scale > 0 else 1.0,
            metadata.horizon,
            metadata.observation_size,
            metadata.action_size,
        )

    def normalize(self, x0: np.ndarray) -> np.ndarray:
        """x0 (..., d_s + d_a + 1) in task units -> of order one."""
        return (x0 - self.mean) / self.std

    def denormalize(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `normalize`."""
        return x * self.std + self.mean

    def observations(self, observations: np.ndarray) -> np.ndarray:
        """Observations (..., d_s) -> standardised."""
        return (observations - self.mean[: self.observation_size]) / self.std[: self.observation_size]

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., d_a) -> [-1, 1]."""
        return (actions - self.mean[self._action]) / self.action_std

    def to_actions(self, normalized: np.ndarray) -> np.ndarray:
        """[-1, 1] -> actions (..., d_a) within their bounds."""
        return normalized * self.action_std + self.mean[self._action]

    @property
    def action_std(self) -> np.ndarray:
        """Half the width (d_a,) of the bounds of actions."""
        return self.std[self._action]

    @property
    def _action(self) -> slice:
        return slice(self.observation_size, self.observation_size + self.action_size)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        numbers = np.array([self.return_scale, self.horizon, self.observation_size, self.action_size], np.float64)
        save_arrays(path, {"mean": self.mean, "std": self.std, "numbers": numbers})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises PipelineError."""
        arrays, _ = load_arrays(path)
        expect_arrays(path, arrays, {"mean": (None,), "std": (None,), "numbers": (4,)})
        _expect_types(path, arrays, {"mean": "float32", "std": "float32", "numbers": "float64"})
        scale, *sizes = arrays["numbers"].tolist()
        if scale <= 0 or any(size < 1 or size != int(size) for size in sizes):
            raise PipelineError(f"{path}: return scale, horizon and sizes are {[scale, *sizes]}: run its stage again")
        horizon, observation_size, action_size = (int(size) for size in sizes)
        channels = observation_size + action_size + 1
        if {len(arrays["mean"]), len(arrays["std"])} != {channels}:
            raise PipelineError(
                f"{path}: mean and std of {len(arrays['mean'])} and {len(arrays['std'])} channels, but sizes for "
                f"{channels}: run its stage again"
            )
        if (arrays["std"] <= 0).any():
            raise PipelineError(f"{path}: std {arrays['std'].min():g} is not positive: run its stage again")
        return cls(arrays["mean"], arrays["std"], scale, horizon, observation_size, action_size)
