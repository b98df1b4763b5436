"""Conversion of prompts between task units and the normalised tensors that the models read and write."""

import numpy as np
import torch
from torch import Tensor

from pd_pipeline.models.decision_transformer import Steps
from pd_pipeline.prompts.segments import Normalization, Prompts


def prompt_steps(x0: Tensor, y: Tensor, normalization: Normalization) -> Steps:
    """Normalised x0 (B, K*, d_s + d_a + 1) and y (B, K*, 2 or more) as the PLM reads them, without the rewards."""
    size, actions = normalization.observation_size, normalization.action_size
    timesteps = (y[..., 1] * normalization.horizon).round().long().clamp(0, normalization.horizon - 1)
    return Steps(y[..., 0], x0[..., :size], x0[..., size : size + actions], timesteps)


def prompt_tensors(
    prompts: Prompts, normalization: Normalization, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Prompts in task units -> normalised x0 (n, K*, d_s + d_a + 1) and y (n, K*, 2) with timesteps in [0, 1)."""
    x0 = torch.from_numpy(normalization.normalize(prompts.x0)).to(device)
    scale = np.array([normalization.return_scale, normalization.horizon], np.float32)
    return x0, torch.from_numpy(prompts.y / scale).to(device)


def to_prompts(x0: Tensor, y: Tensor, normalization: Normalization, task: int) -> Prompts:
    """Normalised tensors (n, K*, .) -> prompts in task units that come from no episode. The PLM reads y[..., :2]."""
    scale = np.array([normalization.return_scale, normalization.horizon], np.float32)
    condition = y[..., :2].detach().cpu().numpy() * scale
    start = np.rint(condition[:, 0, 1]).astype(np.int32)
    count = len(start)
    values = normalization.denormalize(x0.detach().cpu().numpy().astype(np.float32))
    return Prompts(values, condition, np.full(count, task, np.int32), np.full(count, -1, np.int64), start)
