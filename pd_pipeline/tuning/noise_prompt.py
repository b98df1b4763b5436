"""The floor: prompts of Gaussian noise with the mean and deviation of real ones, under real conditions y."""

import numpy as np
import torch

from pd_pipeline.tuning.protocol import FewShot, Pretrained, Run, Tuned, TuningParams, to_prompts


class Params(TuningParams):
    """Nothing to set beyond what every method has."""


def tune(plm: Pretrained, few_shot: FewShot, params: Params, seed: int, run: Run) -> Tuned:
    """Draw the noise; return-to-go and timesteps are those of few-shot segments."""
    rng = np.random.default_rng(seed)
    x0, y = few_shot.tensors(plm)
    rows = torch.from_numpy(rng.choice(len(y), params.prompts))
    noise = torch.from_numpy(rng.standard_normal((params.prompts, *x0.shape[1:]), np.float32))
    return Tuned(to_prompts(noise, y[rows.to(y.device)], plm.normalization, int(few_shot.data.task_id[0])))
