"""The floor: prompts of Gaussian noise with the mean and deviation of real ones, under real conditions y."""

import numpy as np
import torch

from pd_pipeline.models.prompting import to_prompts
from pd_pipeline.tuning.protocol import FewShot, Pretrained, Run, Tuned, TuningParams, select


class Params(TuningParams):
    """Nothing to set beyond what every method has."""


def tune(plm: Pretrained, few_shot: FewShot, params: Params, seed: int, run: Run) -> Tuned:
    """Draw the noise; return-to-go and timesteps are those of few-shot segments."""
    rng = np.random.default_rng(seed)
    x0, y = few_shot.tensors(plm)
    rows = torch.from_numpy(rng.choice(len(y), params.made))
    noise = torch.from_numpy(rng.standard_normal((params.made, *x0.shape[1:]), np.float32)).to(plm.device)
    conditions = y[rows.to(plm.device)]
    kept, passes = select(plm, few_shot, noise, conditions, params, seed)
    prompts = to_prompts(noise[kept], conditions[kept], plm.normalization, int(few_shot.data.task_id[0]))
    return Tuned(prompts, plm_passes=passes)
