"""Prompt-DT without tuning: prompts are segments drawn from the few-shot trajectories (Xu et al., ICML 2022)."""

import numpy as np

from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams, select


class Params(TuningParams):
    """Only the parameters that every method has."""


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Draw the prompts."""
    drawn = target.draw(np.random.default_rng(run.seed), params.candidate_count)
    x0, y = prompt_tensors(drawn, plm.normalization, plm.device)
    kept, passes = select(plm, target, x0, y, params, run.seed)
    return Prompted(prompts=drawn.select(kept.cpu().numpy()), cost=Cost(plm_forward=passes))
