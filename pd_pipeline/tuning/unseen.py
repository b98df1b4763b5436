"""Prompts of the training tasks: all that a method gets which sees no demonstration of its target."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import model_validator

from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.prompts.stage import HELD_OUT
from pd_pipeline.tuning.protocol import Pretrained, TargetParams, TuningParams


class UnseenParams(TuningParams):
    """Parameters of a method without demonstrations; `target.quality` is that of the training segments."""

    @model_validator(mode="after")
    def _nothing_to_choose(self) -> Self:
        if self.candidates is not None or self.shown != "own" or self.held_out is not None:
            raise ValueError(
                "without trajectories of the target nothing can be chosen: leave out candidates, shown and held_out"
            )
        return self


@dataclass(frozen=True)
class Unseen:
    """A target task of which a method gets no trajectory."""

    task: int
    training: Prompts  # of the training tasks but this one, and of `target.quality`, in task units
    target_return: float

    @classmethod
    def of(cls, task: int, prompts: Path, plm: Pretrained, params: TargetParams) -> Self:
        """Prepare it from the out of stage prompts. Raises PipelineError if that lacks the quality.

        By default `target_return` is the median return of the training tasks: nothing is known of the target's own.
        """
        training = training_prompts(prompts, params.quality, plm)
        training = training.select(training.task_id != task)  # where targets are trained on
        if not len(training):
            raise PipelineError(
                f"{prompts}: task {task} is the only training task: there are no prompts of another one"
            )
        returns = training.y[training.start == 0, 0, 0]  # (episodes,): the return-to-go of their first step
        asked = params.target_return
        return cls(task, training, float(np.median(returns)) if asked is None else asked)


def training_prompts(prompts: Path, quality: str, plm: Pretrained) -> Prompts:
    """Segments of the training tasks, from the out of stage prompts. Raises PipelineError if that lacks the quality."""
    file = prompts / f"{quality}.safetensors"
    if not file.is_file():
        known = [path.stem.removesuffix(HELD_OUT) for path in sorted(prompts.glob(f"*{HELD_OUT}.safetensors"))]
        raise PipelineError(
            f"{file}: no prompts of quality '{quality}': {suggestion(quality, known)} (or name it in prompts.qualities)"
        )
    return Prompts.load(file, plm.normalization, plm.policy.config.prompt_length)
