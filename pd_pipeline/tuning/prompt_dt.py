"""Prompt-DT without tuning: prompts are segments drawn from the few-shot trajectories (Xu et al., ICML 2022)."""

import numpy as np

from pd_pipeline.tuning.protocol import FewShot, Pretrained, Run, Tuned, TuningParams


class Params(TuningParams):
    """Nothing to set beyond what every method has."""


def tune(plm: Pretrained, few_shot: FewShot, params: Params, seed: int, run: Run) -> Tuned:
    """Draw the prompts."""
    return Tuned(few_shot.draw(np.random.default_rng(seed), params.prompts))
