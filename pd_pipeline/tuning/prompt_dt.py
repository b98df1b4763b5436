"""Prompt-DT without tuning: prompts are segments drawn from the few-shot trajectories (Xu et al., ICML 2022)."""

import numpy as np

from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.tuning.protocol import FewShot, Pretrained, Run, Tuned, TuningParams, select


class Params(TuningParams):
    """Nothing to set beyond what every method has."""


def tune(plm: Pretrained, few_shot: FewShot, params: Params, seed: int, run: Run) -> Tuned:
    """Draw the prompts."""
    drawn = few_shot.draw(np.random.default_rng(seed), params.made)
    x0, y = prompt_tensors(drawn, plm.normalization, plm.device)
    kept, passes = select(plm, few_shot, x0, y, params, seed)
    return Tuned(drawn.select(kept.cpu().numpy()), plm_passes=passes)
