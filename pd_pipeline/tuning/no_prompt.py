"""No prompt at all: the PLM acts on its window alone.

It can then infer the task only from the target return and how that falls with the rewards; a method's gain over this
is what its prompts are worth. In training the PLM always had a prompt, so it never saw sequences without one:
`noise_prompt` and another task's prompts (`shown: other`) ask the same question with sequences of the usual length.
"""

from typing import Self

import numpy as np
from pydantic import model_validator

from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.tuning.adaptation import Prompted
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams


class Params(TuningParams):
    """The few-shot trajectories set the target return, and `prompts` the number of episodes."""

    @model_validator(mode="after")
    def _nothing_to_choose(self) -> Self:
        if self.candidates is not None or self.shown != "own" or self.held_out is not None:
            raise ValueError("no_prompt gives the policy no prompt: leave out candidates, shown and held_out")
        return self


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Return prompts of zero steps."""
    count, channels = params.prompts, target.prompts.x0.shape[2]
    return Prompted(
        prompts=Prompts(
            x0=np.zeros((count, 0, channels), np.float32),
            y=np.zeros((count, 0, 2), np.float32),
            task_id=np.full(count, target.task, np.int32),
            episode_id=np.full(count, -1, np.int64),
            start=np.zeros(count, np.int32),
        )
    )
