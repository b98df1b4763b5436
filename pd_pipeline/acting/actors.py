"""Actors: a policy, and the prefix of its window in each of many environments.

Whatever a method conditions the policy with (a prompt, embeddings, a prefix) becomes keys and values of every block,
to which the window's tokens attend. It comes first and the mask is causal, so it does not depend on what follows, and
computing it once is exact. Keys and values of the sliding window are recomputed, since a step that leaves the window
changes what the remaining steps have attended to. With a prompt of zero steps the policy sees its window alone.

An action does not depend on how many actors act beside it: on a CPU, matrix products of few rows round differently than
those of many, so every product is filled up to `MIN_ROWS` rows with repeated ones. (With one thread: several divide the
rows of a product among them, and the last bits depend on how many there are. And with two numbers per action or more:
the product that gives a single one is with a vector, which is rounded by the position of the row.)
"""

from collections.abc import Callable, Iterable, Sequence
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

MIN_ROWS = 16
"""From this number of rows on, rows are rounded alike: one of the processors that were tried rounds them differently
below 4, one (AVX-512 without AMX) below 16."""

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
        count = len(self)
        filled = self.select(np.resize(np.arange(count), MIN_ROWS)) if count < MIN_ROWS else self
        prefix = self.prefix(self.policy, *filled.conditions)
        return Started(self.policy, [(keys[:count], values[:count]) for keys, values in prefix])


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
    """Actors during an episode, with their prefix as keys and values; without dropout, whatever mode the policy is in.

    Without `fill`, products have the rows that they need, and the last bits depend on the number of actors.
    """

    def __init__(self, policy: PromptingDecisionTransformer, before: KeysValues, fill: bool = True):
        self.policy, self.before, self._fill = policy, before, fill
        self._tokens = before[0][0].shape[1]

    def select(self, rows: Tensor) -> "Started":
        """The actors at these rows, on the actors' device; a row may appear more than once."""
        return Started(self.policy, [(keys[rows], values[rows]) for keys, values in self.before], self._fill)

    @torch.no_grad()
    def act(self, window: Steps) -> Tensor:
        """Actions (n, d_a) in [-1, 1] for the last step of windows (n, L); that step's own action is not read."""
        policy, (count, length) = self.policy, window.timesteps.shape
        window = Steps(*self._filled(window, count * length))  # (m, L), m >= n
        x = policy.norm_embedding(to_autocast_dtype(policy.embed_window(window)[:, :-1]))  # (m, 3L - 1, width)
        full = causal_mask(self._tokens + x.shape[1], x)[self._tokens :]  # (3L - 1, tokens + 3L - 1)
        for index, (block, pair) in enumerate(zip(policy.blocks, self.before, strict=True)):
            normed = block.norm_attention(x)
            own, before = keys_values(block, normed), self._filled(pair, count * length)
            keys, values = (torch.cat(parts, dim=1) for parts in zip(before, own, strict=True))
            if index + 1 == len(policy.blocks):  # only the last state token is read
                x, normed, keys, values = self._filled((x, normed, keys, values), x.shape[0])
                x, normed, full = x[:, -1:], normed[:, -1:], full[-1:]
            x = block.attend(x, normed, keys, values, full, NO_DROPOUT)
        return policy.act(x[:, 0])[:count]

    def _filled(self, parts: Iterable[Tensor], rows: int) -> Sequence[Tensor]:
        """Tensors (n, ...) that make products of `rows` rows, repeated along n until these have `MIN_ROWS` or more."""
        repeats = -(-MIN_ROWS // rows) if self._fill else 1
        return [part if repeats == 1 else part.repeat(repeats, *[1] * (part.dim() - 1)) for part in parts]
