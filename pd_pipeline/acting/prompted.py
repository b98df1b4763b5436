"""Acting with the PLM: many environments in one forward pass, the prompt's keys and values computed once.

A prompt stands first and the mask is causal, so its keys and values in every block do not depend on what follows:
caching them is exact. Those of the sliding window are computed anew, since leaving the window changes what the
remaining steps have seen. A prompt of no steps is no prompt: the PLM then sees its window alone.
"""

import torch
from torch import Tensor

from pd_pipeline.models.decision_transformer import (
    Block,
    Dropout,
    PromptingDecisionTransformer,
    Steps,
    causal_mask,
    residual,
)


class PromptedPolicy:
    """A frozen PLM under B prompts, one per environment, without dropout whatever mode the PLM is in."""

    @torch.no_grad()
    def __init__(self, policy: PromptingDecisionTransformer, prompt: Steps):
        """`prompt` holds B prompts of K* steps, normalised; K* may be 0."""
        self.policy = policy
        self._dropout = Dropout(0.0)
        x = policy.norm_embedding(residual(policy.embed_prompt(prompt)))  # (B, 3K*, width)
        self._tokens = x.shape[1]
        self._cache: list[tuple[Tensor, Tensor]] = []
        if not self._tokens:
            self._cache = [(x, x)] * len(policy.blocks)
            return
        mask = causal_mask(self._tokens, x)
        for block in policy.blocks:
            self._cache.append(_keys_values(block, block.norm_attention(x)))
            x = block(x, mask, self._dropout)

    @torch.no_grad()
    def act(self, window: Steps) -> Tensor:
        """Actions (B, d_a) in [-1, 1] for the last step of windows (B, L); that step's own action is not read."""
        policy = self.policy
        x = policy.norm_embedding(residual(policy.embed_window(window)[:, :-1]))  # (B, 3L - 1, width)
        full = causal_mask(self._tokens + x.shape[1], x)[self._tokens :]  # (3L - 1, 3K* + 3L - 1)
        for index, (block, cached) in enumerate(zip(policy.blocks, self._cache, strict=True)):
            normed = block.norm_attention(x)
            own = _keys_values(block, normed)
            keys, values = (torch.cat(pair, dim=1) for pair in zip(cached, own, strict=True))
            if index + 1 == len(policy.blocks):  # only the last state token is read
                x, normed, full = x[:, -1:], normed[:, -1:], full[-1:]
            x = block.attend(x, normed, keys, values, full, self._dropout)
        return policy.act(x[:, 0])


def _keys_values(block: Block, normed: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = block.key_value(normed).chunk(2, dim=-1)
    return keys, values
