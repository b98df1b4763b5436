"""Acting with a policy folder in a loop of your own, without Dagster, DVC, a simulator or the method that made it.

    policy = load_policy("reach-5")
    policy.reset()
    action = policy.act(observation)
    action = policy.act(observation, reward)

The actions are those of evaluation, and do not depend on the batch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pd_pipeline.acting.actors import Started
from pd_pipeline.compute import pick_device
from pd_pipeline.config import MachineParams
from pd_pipeline.deployment.folder import PLM, PREFIX, Description, check_files, describe, locate
from pd_pipeline.errors import PipelineError
from pd_pipeline.models import saved_policy
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer, Steps
from pd_pipeline.models.prefixes import KeysValues
from pd_pipeline.parsing import parse
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.storage import expect_arrays, load_arrays


@dataclass(frozen=True)
class Loaded:
    """The contents of a policy folder."""

    description: Description
    plm: PromptingDecisionTransformer
    normalization: Normalization
    prefix: KeysValues
    """Keys and values of every block, each (1, tokens, width)."""


def load_policy(path_or_target: str | Path, device: str = "cpu", batch: int | None = None) -> "Policy":
    """The policy of a policy folder, or of a target such as `reach-5` in data/promoted/ below the working directory.

    With `batch`, it acts in that many environments at once. Raises PipelineError if the folder is missing or damaged,
    or was written in another format.
    """
    if batch is not None and batch < 1:
        raise PipelineError(f"batch: {batch} environments: give at least 1, or leave it out for one")
    return Policy(read_policy(locate(path_or_target), device), batch)


def read_policy(folder: Path, device: str = "cpu") -> Loaded:
    """Read a policy folder. Raises PipelineError if it is missing, damaged or of another format version."""
    description = describe(folder)
    check_files(folder, description)
    where = pick_device(parse(MachineParams, {"device": device}, "load_policy").device)
    plm, normalization = saved_policy.load_policy(folder / PLM, where)
    plm.requires_grad_(description.requires_grad)  # acting computes no gradients, but its last bits depend on this
    sizes = normalization.observation_size, normalization.action_size, normalization.horizon
    if sizes != (description.observation_size, description.action_size, description.horizon):
        raise PipelineError(f"{folder}: policy.json is not that of the PLM beside it: copy the whole folder again")
    arrays, _ = load_arrays(folder / PREFIX)
    names = [(f"keys.{block}", f"values.{block}") for block in range(plm.config.layers)]
    tokens = len(arrays["keys.0"]) if "keys.0" in arrays else None
    expect_arrays(folder / PREFIX, arrays, {name: (tokens, plm.config.width) for pair in names for name in pair})
    dtype = torch.bfloat16 if description.precision == "bf16" else torch.float32
    tensors = {name: torch.from_numpy(array)[None].to(where, dtype) for name, array in arrays.items()}
    return Loaded(description, plm, normalization, [(tensors[keys], tensors[values]) for keys, values in names])


def repeated(prefix: KeysValues, count: int) -> KeysValues:
    """The prefix (1, tokens, width) of one actor for `count` windows."""
    return [(keys.expand(count, -1, -1), values.expand(count, -1, -1)) for keys, values in prefix]


class Policy:
    """A policy in one environment, or in n at once; `load_policy` makes it.

    `description` says what it is. The window of the last steps is kept here, one per environment.
    """

    def __init__(self, loaded: Loaded, batch: int | None = None):
        self.description = loaded.description
        self._plm, self._normalization, self._prefix = loaded.plm, loaded.normalization, loaded.prefix
        self._batch, self._count = batch, batch or 1
        low, high = self.description.action_low, self.description.action_high
        self._bounds = np.asarray(low, np.float32), np.asarray(high, np.float32)
        context = self._plm.config.acting_window
        # the last steps of each episode: the current one is at the end, and its action is not read
        self._observations = np.zeros((self._count, context, self._normalization.observation_size), np.float32)
        self._actions = np.zeros((self._count, context, self._normalization.action_size), np.float32)
        self._returns_to_go = np.zeros((self._count, context), np.float32)
        self._returns = np.zeros(self._count)  # so far
        self._steps = np.full(self._count, -1)  # so far; -1 before the first reset

    def reset(self, rows: int | slice | list[int] | np.ndarray | None = None) -> None:
        """Begin an episode; in a batch, with `rows` only in these environments (indices or a mask)."""
        if self._batch is None and rows is not None:
            raise PipelineError("reset: rows are those of a batch: load the policy with batch=n")
        try:
            picked = np.arange(self._count)[slice(None) if rows is None else rows]
        except IndexError:
            raise PipelineError(f"reset: rows {rows} are not among those of a batch of {self._count}") from None
        self._returns[picked] = 0
        self._steps[picked] = 0

    def act(self, observation: np.ndarray, reward: float | np.ndarray | None = None) -> np.ndarray:
        """The action (d_a,) for an observation (d_s,), both in the environment's units; in a batch (n, d_a), (n, d_s).

        `reward` is that of the previous step, a number or (n,): it lowers the return that is still asked for. Where it
        is left out, that return stays as it is. At the first step of an episode there is none, and what is given is
        ignored. Raises PipelineError for a wrong shape, values that are not finite, a missing `reset` and steps beyond
        the horizon.
        """
        self._check_steps()
        current = self._checked(observation, "observation", (self._normalization.observation_size,))
        if reward is not None:
            self._returns += np.where(self._steps > 0, self._checked(reward, "reward", ()), 0)
        for history in (self._observations, self._actions, self._returns_to_go):
            history[:, :-1] = history[:, 1:]
        self._observations[:, -1] = current
        self._returns_to_go[:, -1] = self.description.target_return - self._returns
        lengths = np.minimum(self._steps + 1, self._plm.config.acting_window)
        for length in np.unique(lengths):  # windows of equal length share a forward pass, and nothing is padded
            rows = np.flatnonzero(lengths == length)
            self._actions[rows, -1] = self._predicted(rows, int(length))
        self._steps += 1
        actions = self._actions[:, -1].copy()
        return actions[0] if self._batch is None else actions

    def _predicted(self, rows: np.ndarray, length: int) -> np.ndarray:
        """Actions (m, d_a) of the environments `rows` (m,), whose windows have `length` steps."""
        timesteps = self._steps[rows, None] + np.arange(1 - length, 1)
        scaled, device = self._normalization, next(self._plm.parameters()).device
        window = Steps(
            torch.from_numpy(self._returns_to_go[rows, -length:] / scaled.return_scale),
            torch.from_numpy(scaled.observations(self._observations[rows, -length:])),
            torch.from_numpy(scaled.actions(self._actions[rows, -length:])),
            torch.from_numpy(timesteps),
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=self.description.precision == "bf16"):
            normalized = self._forward(Steps(*(part.to(device) for part in window)))
        actions = scaled.to_actions(normalized.cpu().numpy())
        return np.clip(actions, *self._bounds)  # rounding may leave them

    def _forward(self, window: Steps) -> torch.Tensor:
        """Actions (m, d_a) in [-1, 1] for windows (m, L)."""
        return Started(self._plm, repeated(self._prefix, len(window.timesteps))).act(window)

    def _check_steps(self) -> None:
        """Raise PipelineError where an episode has not begun, or is over."""
        if (self._steps < 0).any():
            where = "" if self._batch is None else f" of row {int(np.argmin(self._steps))}"
            raise PipelineError(f"act: no episode{where} has begun: call reset() first")
        if (self._steps >= self._normalization.horizon).any():
            where = "" if self._batch is None else f" of row {int(np.argmax(self._steps))}"
            raise PipelineError(
                f"act: the episode{where} is over: it has the {self._normalization.horizon} steps of the horizon, and "
                "the policy knows no later ones: call reset()"
            )

    def _checked(self, given: object, what: str, each: tuple[int, ...]) -> np.ndarray:
        """`given` as float32 (n, *each). Raises PipelineError unless it has that shape and is finite."""
        expected = each if self._batch is None else (self._batch, *each)
        try:
            values = np.asarray(given, np.float32)
        except (TypeError, ValueError):
            raise PipelineError(f"act: the {what} is not an array of numbers: {given!r}") from None
        if values.shape != expected:
            raise PipelineError(f"act: the {what} has shape {values.shape}, expected {expected}")
        if not np.isfinite(values).all():
            raise PipelineError(f"act: the {what} holds values that are not finite: {given!r}")
        return values.reshape(self._count, *each)
