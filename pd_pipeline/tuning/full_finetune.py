"""All weights of the PLM are tuned on the few-shot trajectories: what can be reached without freezing it."""

import copy

from pd_pipeline.tuning.adaptation import Reweighted
from pd_pipeline.tuning.fine_tuning import FineTuningParams, fine_tune
from pd_pipeline.tuning.protocol import Pretrained, Run, Target

load = Reweighted.load


class Params(FineTuningParams):
    """Steps and learning rate were chosen on validation tasks: results/studies/full_finetune_budget.json."""


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Reweighted:
    """Train a copy of the PLM."""
    policy = copy.deepcopy(plm.policy).requires_grad_(True)
    prompts, history, cost = fine_tune(policy, plm, target, params, run)
    return Reweighted(prompts=prompts, policy=policy, history=history, cost=cost)
