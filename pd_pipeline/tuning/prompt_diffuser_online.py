"""Prompt Diffuser with a few episodes: the tuned diffuser proposes prompts, and a bandit finds the best by return.

The diffuser is tuned offline first, exactly as by `prompt_diffuser`. Then it generates `arms` prompts, and the episodes
of `bandit` decide among them: Thompson sampling keeps a posterior over what each prompt returns, an ensemble of
networks that read the prompt's numbers, so that what one prompt returned tells of others like it; `round_robin` is the
best of n by mean return. Where few-shot loss and return disagree, returns decide here; with `held_out`, the loss on
trajectories that were kept from tuning then decides whether drawn prompts take its place.
"""

import numpy as np
from pydantic import Field

from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.training.loop import History
from pd_pipeline.tuning import prompt_diffuser
from pd_pipeline.tuning.bandit import BanditParams, assemble, flat_features, play
from pd_pipeline.tuning.generated import Generated
from pd_pipeline.tuning.protocol import Pretrained, Run, Target

NEEDS = ("diffuser",)
ONLINE = True
load = Generated.load


class Trials(BanditParams):
    """How prompts are tried, in fewer episodes than segments are."""

    episodes: int = Field(default=50, gt=0, le=1_000_000, description="per target, in its environment")


class Params(prompt_diffuser.Params):
    """Those of prompt_diffuser, and how prompts are tried."""

    arms: int = Field(default=64, gt=0, le=100_000, description="generated prompts that the episodes decide among")
    candidates: int | None = Field(
        default=None,
        gt=0,
        le=100_000,
        description="prompts generated, of which those `arms` are tried that have the lowest few-shot loss; null: all",
    )
    bandit: Trials = Trials()

    @property
    def chosen_from_candidates(self) -> tuple[str, int]:
        """The arms: the prompts are copies of one of them."""
        return "arms", self.arms


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Generated:
    """Tune the diffuser, try what it generates, and return the best prompt for every evaluated episode."""
    offline = prompt_diffuser.tune(plm, target, params.model_copy(update={"prompts": params.arms}), run)
    features = flat_features(*prompt_tensors(offline.prompts, plm.normalization, plm.device))
    played = play(plm, offline.prompts, features, 1, target.target_return, params.bandit, run)
    cost = offline.cost.model_copy(update={"tuned_parameters": offline.cost.tuned_parameters + played.size})
    return Generated(
        prompts=assemble(offline.prompts, np.repeat(played.chosen[None], params.prompts, axis=0)),
        denoisers=offline.denoisers,
        chain=offline.chain,
        history=History([*offline.history.rows, *({"phase": 3, **row} for row in played.history.rows)]),
        cost=cost,
    )
