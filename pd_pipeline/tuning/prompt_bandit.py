"""Prompt tuning by bandits (arXiv 2502.06358): which segments of the few-shot trajectories make the best prompt.

A prompt of K* steps has J slots of K* / J steps; the arms of a slot are all segments of that length. See `bandit` for
how they are chosen. At the end the best prompt acts in every episode that is evaluated.
"""

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prefixes import last_hidden_state
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.prompts.segments import Prompts, cut
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.bandit import BanditParams, assemble, flat_features, play
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams

ONLINE = True


class Params(TuningParams, BanditParams):
    """What the arms are."""

    slots: int = Field(default=1, gt=0, le=1000, description="J, segments per prompt")
    features: Literal["segment", "hidden"] = Field(
        default="segment",
        description="features of an arm: its normalised steps, or the PLM's hidden state at its last action token",
    )

    @model_validator(mode="after")
    def _nothing_to_choose(self) -> Self:
        if self.candidates is not None:
            raise ValueError("prompt_bandit chooses by the episodes' returns: leave out candidates")
        return self


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Run the episodes, then return the best prompt for every evaluated episode."""
    length, rest = divmod(plm.policy.config.prompt_length, params.slots)
    if rest or not length:
        raise PipelineError(
            f"{run.title}: slots: a prompt of {plm.policy.config.prompt_length} steps cannot be split into "
            f"{params.slots} equal parts"
        )
    arms = cut(target.prompts_from, length)
    features = _features(plm, arms, params)
    played = play(plm, arms, features, params.slots, target.target_return, params, run)
    return Prompted(
        prompts=assemble(arms, np.repeat(played.chosen[None], params.prompts, axis=0)),
        history=played.history,
        cost=Cost(tuned_parameters=played.size, plm_forward=len(arms) if params.features == "hidden" else 0),
    )


def _features(plm: Pretrained, arms: Prompts, params: Params) -> Tensor:
    """Features (arms, d), on the CPU: the networks are too small for a GPU."""
    x0, y = prompt_tensors(arms, plm.normalization, plm.device)
    if params.features == "segment":
        return flat_features(x0, y)
    return last_hidden_state(plm.policy, prompt_steps(x0, y, plm.normalization)).cpu()
