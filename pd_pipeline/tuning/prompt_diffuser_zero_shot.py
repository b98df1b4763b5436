"""Prompts of the pre-trained diffuser as it is, for a target of which there is no trajectory and no episode.

The diffuser needs a condition y, the returns-to-go and timesteps of a prompt. They are those of training segments, from
the `share` of the training episodes whose return is nearest to the one that is asked for: all of them by default, so
that the prompts are those of any training task. Where the range of returns is known, `target.target_return` says which
is asked for, and a small share keeps conditions that fit it. A diffuser with the condition `task` gets the numbers of
the target instead of those of the training task.
"""

import numpy as np
from pydantic import Field

from pd_pipeline.models.conditions import conditioned, for_target
from pd_pipeline.models.diffuser import generate
from pd_pipeline.models.prompting import to_prompts
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.tuning.adaptation import Prompted
from pd_pipeline.tuning.protocol import Pretrained, Run
from pd_pipeline.tuning.unseen import Unseen, UnseenParams

NEEDS = ("diffuser", "prompts")
DEMONSTRATIONS = False


class Params(UnseenParams):
    """Which conditions, and how prompts are generated."""

    share: float = Field(
        default=1.0, gt=0, le=1, description="share of the training episodes that conditions come from, by their return"
    )
    chain: int = Field(default=10, gt=0, le=100_000, description="DDIM steps of the reverse chain")


def tune(plm: Pretrained, target: Unseen, params: Params, run: Run) -> Prompted:
    """Generate the prompts, each from its own noise and condition."""
    assert plm.diffuser is not None, "NEEDS names the diffuser"
    known = nearest_in_return(target.training, target.target_return, params.share)
    conditions = plm.diffuser[0].config.conditions
    _, y = conditioned(known, conditions, plm.normalization, plm.device)
    y = for_target(y, conditions, target.task)
    x0, drawn = generate(*plm.diffuser, y, params.prompts, params.chain, run.seed)
    return Prompted(prompts=to_prompts(x0, drawn, plm.normalization, target.task))


def nearest_in_return(training: Prompts, target_return: float, share: float) -> Prompts:
    """Segments of the `share` of the episodes whose return, the return-to-go of their first step, is nearest."""
    first = np.flatnonzero(training.start == 0)  # one per episode
    distance = np.abs(training.y[first, 0, 0] - target_return)
    kept = first[np.argsort(distance, kind="stable")[: max(1, round(share * len(first)))]]
    episodes = set(zip(training.task_id[kept].tolist(), training.episode_id[kept].tolist(), strict=True))
    every = zip(training.task_id.tolist(), training.episode_id.tolist(), strict=True)
    return training.select(np.array([episode in episodes for episode in every]).nonzero()[0])
