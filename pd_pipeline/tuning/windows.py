"""Action losses of many prompts on the same windows, for methods that only compare prompts and take no gradient."""

import torch
from torch import Tensor

from pd_pipeline.models.decision_transformer import Steps
from pd_pipeline.models.prompting import prompt_steps
from pd_pipeline.tuning.protocol import Pretrained, evaluating

SEQUENCES = 512
"""Sequences in one forward pass, at most, unless one prompt has more windows."""


@torch.no_grad()
def window_losses(plm: Pretrained, x0: Tensor, y: Tensor, window: Steps, valid: Tensor) -> Tensor:
    """Action loss of each of n prompts x0, y (n, K*, .) on each of B windows (B, K): (n, B).

    Windows count alike, also those that are shorter at the start of an episode; in L_DT (eq. 7) steps do.
    """
    windows = len(valid)
    at_once, found = max(1, SEQUENCES // windows), []
    weight = valid / valid.sum(1, keepdim=True)  # (B, K)
    with evaluating(plm.policy):
        for first in range(0, len(x0), at_once):
            part = slice(first, first + at_once)
            n = len(x0[part])
            prompts, conditions = (values[part].repeat_interleave(windows, dim=0) for values in (x0, y))  # (n B, K*, .)
            prompt = prompt_steps(prompts, conditions, plm.normalization)
            repeated = Steps(*(values.repeat(n, *[1] * (values.dim() - 1)) for values in window))  # (n B, K, .)
            error = (plm.policy(prompt, repeated) - repeated.actions).square().mean(-1)  # (n B, K)
            found.append((error.view(n, windows, -1) * weight).sum(-1))  # (n, B)
    return torch.cat(found)
