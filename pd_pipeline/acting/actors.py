"""Actors: a policy, and the prefix of its window in each of many environments.

Whatever a method conditions the policy with (a prompt, embeddings, a prefix) becomes keys and values of every block,
to which the window's tokens attend. It comes first and the mask is causal, so it does not depend on what follows, and
computing it once is exact. Keys and values of the sliding window are recomputed, since a step that leaves the window
changes what the remaining steps have attended to. With a prompt of zero steps the policy sees its window alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pd_pipeline.models.decision_transformer import (
    PromptingDecisionTransformer,
    Steps,
    causal_mask,
    to_autocast_dtype,
)
from pd_pipeline.models.prefixes import NO_DROPOUT, KeysValues, keys_values, read_prompt
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.prompts.segments import Normalization, Prompts

Prefix = Callable[..., KeysValues]
"""(policy, *conditions) -> keys and values of the prefix; a module-level function: actors are grouped by identity."""


class Origin(NamedTuple):
    """Where a condition comes from: `episode 3`, from `step` on, or `generated`."""

    name: str
    step: int


@dataclass(frozen=True)
class Actors:
    """n actors of one policy."""

    policy: PromptingDecisionTransformer
    prefix: Prefix
    conditions: tuple[Tensor, ...]  # each (n, ...)
    origins: tuple[Origin, ...]  # n

    def __len__(self) -> int:
        """Number of actors n."""
        return len(self.origins)

    def select(self, rows: Sequence[int] | np.ndarray) -> "Actors":
        """The actors at these rows."""
        picked = torch.as_tensor(np.asarray(rows))
        conditions = tuple(condition[picked.to(condition.device)] for condition in self.conditions)
        return replace(self, conditions=conditions, origins=tuple(self.origins[int(row)] for row in rows))

    def is_like(self, other: "Actors") -> bool:
        """Whether one forward pass can serve both."""
        shapes = [[condition.shape[1:] for condition in actors.conditions] for actors in (self, other)]
        return self.policy is other.policy and self.prefix is other.prefix and shapes[0] == shapes[1]

    @torch.no_grad()
    def started(self) -> "Started":
        """The actors before their first step."""
        return Started(self.policy, self.prefix(self.policy, *self.conditions))


def joined(parts: Sequence[Actors]) -> Actors:
    """Join actors that can share a forward pass."""
    conditions = tuple(torch.cat(columns) for columns in zip(*(part.conditions for part in parts), strict=True))
    return replace(parts[0], conditions=conditions, origins=tuple(origin for part in parts for origin in part.origins))


def prompted(policy: PromptingDecisionTransformer, prompts: Prompts, normalization: Normalization) -> Actors:
    """One actor per prompt."""
    device = next(policy.parameters()).device
    x0, y = prompt_tensors(prompts, normalization, device)
    origins = tuple(
        Origin("generated" if episode < 0 else f"episode {episode}", int(start))
        for episode, start in zip(prompts.episode_id, prompts.start, strict=True)
    )
    return Actors(policy, read_prompt, tuple(prompt_steps(x0, y, normalization)), origins)


class Started:
    """Actors during an episode; without dropout, whatever mode the policy is in."""

    def __init__(self, policy: PromptingDecisionTransformer, before: KeysValues):
        self.policy, self._before = policy, before
        self._tokens = before[0][0].shape[1]

    def select(self, rows: Tensor) -> "Started":
        """The actors at these rows, on the actors' device; a row may appear more than once."""
        return Started(self.policy, [(keys[rows], values[rows]) for keys, values in self._before])

    @torch.no_grad()
    def act(self, window: Steps, rows: int = 1) -> Tensor:
        """Actions (n, d_a) in [-1, 1] for the last step of windows (n, L); that step's own action is not read.

        The matrix products of the last tokens have `rows` rows at least: where n is smaller, some are repeated.
        """
        policy, count = self.policy, window.timesteps.shape[0]
        x = policy.norm_embedding(to_autocast_dtype(policy.embed_window(window)[:, :-1]))  # (n, 3L - 1, width)
        full = causal_mask(self._tokens + x.shape[1], x)[self._tokens :]  # (3L - 1, tokens + 3L - 1)
        for index, (block, before) in enumerate(zip(policy.blocks, self._before, strict=True)):
            normed = block.norm_attention(x)
            own = keys_values(block, normed)
            keys, values = (torch.cat(pair, dim=1) for pair in zip(before, own, strict=True))
            if index + 1 == len(policy.blocks):  # only the last state token is read
                if rows > 1 and count < rows:
                    repeats = (-(-rows // count), 1, 1)
                    x, normed, keys, values = (part.repeat(repeats) for part in (x, normed, keys, values))
                x, normed, full = x[:, -1:], normed[:, -1:], full[-1:]
            x = block.attend(x, normed, keys, values, full, NO_DROPOUT)
        return policy.act(x[:, 0])[:count]
