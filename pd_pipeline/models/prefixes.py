"""What stands in front of the policy's window, as keys and values of every block.

A prompt, embeddings or anything else that conditions the policy comes first, and the mask is causal: its keys and
values do not depend on the window, and are computed once.
"""

import torch
from torch import Tensor

from pd_pipeline.models.decision_transformer import (
    Block,
    Dropout,
    PromptingDecisionTransformer,
    Steps,
    causal_mask,
    to_autocast_dtype,
)

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values of every block, each (n, tokens, width)."""

NO_DROPOUT = Dropout(0.0)


def read_prompt(policy: PromptingDecisionTransformer, *prompt: Tensor) -> KeysValues:
    """Keys and values of n prompts of K* steps (the parts of `Steps`), K* >= 0."""
    return read_tokens(policy, policy.embed_prompt(Steps(*prompt)))


def read_tokens(policy: PromptingDecisionTransformer, tokens: Tensor) -> KeysValues:
    """Keys and values of embedded tokens (n, tokens, width), as `StepEmbedding` makes them."""
    return _read(policy, tokens)[0]


@torch.no_grad()
def last_hidden_state(policy: PromptingDecisionTransformer, prompt: Steps) -> Tensor:
    """The policy's hidden state (n, width) at the last action token of n prompts."""
    return policy.norm_final(_read(policy, policy.embed_prompt(prompt))[1][:, -1])


def _read(policy: PromptingDecisionTransformer, tokens: Tensor) -> tuple[KeysValues, Tensor]:
    """Keys and values of all blocks, and what the last block leaves (n, tokens, width)."""
    x = policy.norm_embedding(to_autocast_dtype(tokens))  # (n, tokens, width)
    if not x.shape[1]:
        return [(x, x)] * len(policy.blocks), x
    mask, found = causal_mask(x.shape[1], x), []
    for block in policy.blocks:
        found.append(keys_values(block, block.norm_attention(x)))
        x = block(x, mask, NO_DROPOUT)
    return found, x


def stored(policy: PromptingDecisionTransformer, *flat: Tensor) -> KeysValues:
    """Keys and values of every block from a flat list of both."""
    return list(zip(flat[::2], flat[1::2], strict=True))


def keys_values(block: Block, normed: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (n, tokens, width) of normalised tokens."""
    keys, values = block.key_value(normed).chunk(2, dim=-1)
    return keys, values


def predict(policy: PromptingDecisionTransformer, before: KeysValues, window: Steps) -> Tensor:
    """Actions (B, L, d_a) for every step of windows (B, L) behind prefixes `before` of B rows; without dropout.

    Equal to the policy's own forward pass if the prefix is that of a prompt, and differentiable in both.
    """
    x = policy.norm_embedding(to_autocast_dtype(policy.embed_window(window)[:, :-1]))  # (B, 3L - 1, width)
    tokens, own = before[0][0].shape[1], x.shape[1]
    mask = causal_mask(tokens + own, x)[tokens:]  # (3L - 1, tokens + 3L - 1)
    for block, prefix in zip(policy.blocks, before, strict=True):
        normed = block.norm_attention(x)
        keys, values = (torch.cat(pair, dim=1) for pair in zip(prefix, keys_values(block, normed), strict=True))
        x = block.attend(x, normed, keys, values, mask, NO_DROPOUT)
    return policy.act(x[:, 1::3])
