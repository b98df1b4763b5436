"""The action loss of actors along recorded trajectories: what they would do at each step against what was done there.

At a step an actor sees the recorded steps before it, as many as its window holds, and the recorded return-to-go: the
loss of pre-training (eq. 7), but of the step to act in alone.
"""

from collections.abc import Iterator

import numpy as np
import torch

from pd_pipeline.acting.actors import Actors
from pd_pipeline.models.decision_transformer import Steps
from pd_pipeline.training.policy_data import PolicyData

STEPS_PER_PASS = {"cpu": 2560}
"""Steps of all windows in one forward pass, so that activations fit the cache of a CPU."""
OTHERWISE = 1 << 14
"""On a card of which others may have a share: a policy of width 512 takes 2 GB for these."""


def action_losses(
    actors: Actors,
    data: PolicyData,
    per_trajectory: int | None,
    bf16: bool = False,
    units: np.ndarray | None = None,
) -> np.ndarray:
    """Mean squared error (n, m) of the normalised actions of n actors along m trajectories.

    `per_trajectory` steps of each trajectory, evenly spaced, count; None: all. `units` (d_a,): what a normalised action
    of 1 is in the units of the losses; None: 1.
    """
    context, count = actors.policy.config.acting_window, len(actors)
    scale = torch.from_numpy(np.ones(1) if units is None else units).to(data.actions)  # (d_a,) or (1,)
    total, steps = torch.zeros(count, len(data.lengths), dtype=torch.float64), torch.zeros(len(data.lengths))
    with torch.autocast(data.device_type, torch.bfloat16, enabled=bf16):
        started = actors.started()
        for episodes, ends, length in _passes(data, context, count, per_trajectory):
            window = data.windows_before(episodes, ends, length)  # (w, L)
            rows = torch.arange(count, device=window.actions.device).repeat_interleave(len(ends))  # (n w,)
            tiled = Steps(*(part.repeat(count, *[1] * (part.dim() - 1)) for part in window))
            predicted = started.select(rows).act(tiled).view(count, len(ends), -1)  # (n, w, d_a)
            error = (((predicted - window.actions[:, -1]) * scale) ** 2).mean(-1)  # (n, w)
            of = torch.from_numpy(episodes)
            total.index_add_(1, of, error.cpu().double())
            steps.index_add_(0, of, torch.ones(len(of)))
    return (total / steps).numpy()


def _passes(
    data: PolicyData, context: int, count: int, per_trajectory: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """(episodes (w,), number of steps up to and with the one to act in (w,), length of the window) per forward pass."""
    ends = [_spaced(length, per_trajectory) for length in data.lengths]
    episodes = np.repeat(np.arange(len(ends)), [len(each) for each in ends])
    every = np.concatenate(ends)
    for length in np.unique(np.minimum(every, context)):
        rows = np.flatnonzero(np.minimum(every, context) == length)
        size = max(1, STEPS_PER_PASS.get(data.device_type, OTHERWISE) // (count * int(length)))
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            yield episodes[some], every[some], int(length)


def _spaced(length: int, count: int | None) -> np.ndarray:
    """`count` of the numbers 1 to `length`, evenly spaced and with both ends; all if there are fewer."""
    return np.unique(np.linspace(1, length, min(count or length, length)).round().astype(np.int64))
