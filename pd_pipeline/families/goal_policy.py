"""A learned goal-conditioned policy: weights without pickle, acting in NumPy for one environment or many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import expect_arrays, load_arrays, save_arrays

INPUT_CLIP = 10.0  # normalised inputs are clipped to +- this, in training and here
WEIGHTS = "weights"


@dataclass(frozen=True)
class GoalPolicy:
    """A Gaussian policy, N(mu(s, g), diag(std^2)), with mu a ReLU network of the normalised observation and goal.

    The goal's features are read from the environment, never stored with the observation. Actions are in the units of
    the task and clipped to its bounds, as in training.
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    """(weight [out, in], bias [out]) of each layer, float32; max(0, .) after all but the last."""
    mean: np.ndarray  # (d_s + d_g,) float32
    deviation: np.ndarray  # (d_s + d_g,) float32
    log_std: np.ndarray  # (d_a,) float32
    low: np.ndarray  # (d_a,) float32
    high: np.ndarray  # (d_a,) float32
    features: Callable[[gymnasium.Env], np.ndarray]
    """Goal features (d_g,) of an environment."""
    noise: float = 1.0
    """Exploration: a multiple of the learned standard deviation."""

    def mu(self, inputs: np.ndarray) -> np.ndarray:
        """Mean actions (n, d_a) for observations with goals (n, d_s + d_g)."""
        hidden = np.clip((inputs - self.mean) / self.deviation, -INPUT_CLIP, INPUT_CLIP)
        for weight, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weight.T + bias, 0.0)
        weight, bias = self.layers[-1]
        return hidden @ weight.T + bias

    def together(
        self,
        environments: Sequence[gymnasium.Env],
        observations: np.ndarray,
        rngs: Sequence[np.random.Generator],
    ) -> np.ndarray:
        """Actions (n, d_a) for observations (n, d_s), each with noise from its own generator."""
        goals = np.stack([self.features(environment) for environment in environments])
        actions = self.mu(np.concatenate([observations, goals], axis=1))
        if self.noise:
            noise = np.stack([rng.standard_normal(len(self.low), np.float32) for rng in rngs])
            actions = actions + self.noise * np.exp(self.log_std) * noise
        return np.clip(actions, self.low, self.high).astype(np.float32)

    def __call__(self, environment: gymnasium.Env, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Action (d_a,) for an observation (d_s,)."""
        return self.together([environment], observation[None], [rng])[0]


def save(path: Path, layers: Sequence[tuple[np.ndarray, np.ndarray]], **others: np.ndarray) -> None:
    """Write the layers and `mean`, `deviation`, `log_std` as safetensors."""
    arrays = dict(others)
    for i, (weight, bias) in enumerate(layers):
        arrays |= {f"layer{i}.weight": weight, f"layer{i}.bias": bias}
    save_arrays(path, {name: array.astype(np.float32) for name, array in arrays.items()})


def load(
    path: Path,
    low: np.ndarray,
    high: np.ndarray,
    inputs: int,
    features: Callable[[gymnasium.Env], np.ndarray],
    noise: float,
) -> GoalPolicy:
    """Read a policy for `inputs` = d_s + d_g numbers. Raises PipelineError where it is missing or has other sizes."""
    arrays, _ = load_arrays(path)
    count = sum(name.endswith(".weight") for name in arrays)
    if wrong := [name for name, array in arrays.items() if array.dtype != np.float32]:
        raise PipelineError(f"{path}: tensor '{wrong[0]}' is not float32: not a policy of stage behavior_policies")
    shapes: dict[str, tuple[int | None, ...]] = dict.fromkeys(("mean", "deviation", "log_std"), (None,))
    for i in range(max(count, 1)):
        shapes |= {f"layer{i}.weight": (None, None), f"layer{i}.bias": (None,)}
    expect_arrays(path, arrays, shapes)
    made_for = len(arrays["mean"]), len(arrays["log_std"])
    if made_for != (inputs, len(low)):
        raise PipelineError(
            f"{path}: made for {made_for[0]} inputs and {made_for[1]} actions, but the family has "
            f"{inputs} and {len(low)}: train it again (stage behavior_policies)"
        )
    widths = [inputs, *(len(arrays[f"layer{i}.bias"]) for i in range(count))]
    for i in range(count):
        shapes[f"layer{i}.weight"] = widths[i + 1], widths[i]
    shapes |= {"deviation": (inputs,), f"layer{count - 1}.bias": low.shape}
    expect_arrays(path, arrays, shapes)
    if (arrays["deviation"] <= 0).any():
        raise PipelineError(f"{path}: deviation {arrays['deviation'].min():g} is not positive: train it again")
    layers = tuple((arrays[f"layer{i}.weight"], arrays[f"layer{i}.bias"]) for i in range(count))
    return GoalPolicy(layers, arrays["mean"], arrays["deviation"], arrays["log_std"], low, high, features, noise)


def located(description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`description` with an absolute path to its weights file, which is named relative to `folder`."""
    return description | {WEIGHTS: str(folder / description[WEIGHTS])} if WEIGHTS in description else description
