"""A lower bound: prompts of standard Gaussian noise in the units that prompts are normalised to, and real conditions y.

For states and rewards these are the mean and deviation over the training tasks; for actions the centre and half the
width of their bounds, so that a third of the noise lies beyond them.
"""

from typing import Self

import numpy as np
import torch
from pydantic import model_validator

from pd_pipeline.models.prompting import to_prompts
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams, select


class Params(TuningParams):
    """Only the parameters that every method has, without held_out."""

    @model_validator(mode="after")
    def _nothing_tuned(self) -> Self:
        if self.held_out is not None:
            raise ValueError("noise_prompt tunes nothing that held_out could watch or replace: leave it out")
        return self


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Draw the noise; return-to-go and timesteps are those of few-shot segments."""
    rng = np.random.default_rng(run.seed)
    x0, y = target.tensors(plm)
    rows = torch.from_numpy(rng.choice(len(y), params.candidate_count))
    noise = torch.from_numpy(rng.standard_normal((params.candidate_count, *x0.shape[1:]), np.float32)).to(plm.device)
    conditions = y[rows.to(plm.device)]
    kept, passes = select(plm, target, noise, conditions, params, run.seed)
    prompts = to_prompts(noise[kept], conditions[kept], plm.normalization, target.task)
    return Prompted(prompts=prompts, cost=Cost(plm_forward=passes))
