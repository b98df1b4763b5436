"""Hyper-Decision Transformer (Xu et al., ICLR 2023, arXiv 2304.08487): adapters from a demonstration, then tuned.

A hyper-network, pre-trained on the training tasks, makes the adapters from the segments of the few-shot trajectories;
then the adapters alone are trained on these trajectories, as by `adapter`, which starts from adapters that do nothing.
"""

import torch
from pydantic import Field

from pd_pipeline.models.adapters import with_adapters
from pd_pipeline.models.hyper_network import load_hyper_network
from pd_pipeline.training.loop import Rate
from pd_pipeline.tuning.adapter import Adapters, train
from pd_pipeline.tuning.fine_tuning import FineTuningParams
from pd_pipeline.tuning.protocol import Pretrained, Run, Target

NEEDS = ("hyper_network",)
load = Adapters.load


class Params(FineTuningParams):
    """Those of fine-tuning; the size of the adapters is that of the hyper-network."""

    learning_rate: Rate = 3e-3
    segments: int | None = Field(
        default=None, gt=0, le=100_000, description="few-shot segments that adapters are made from; null: all"
    )


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Adapters:
    """Make the adapters, then train them."""
    network = load_hyper_network(plm.outs["hyper_network"], plm.device)
    x0, y = target.tensors(plm)
    if params.segments is not None:
        shown = torch.linspace(0, len(x0) - 1, min(params.segments, len(x0))).round().long().to(x0.device)
        x0, y = x0[shown], y[shown]
    policy = with_adapters(plm.policy, network.config.bottleneck)
    with torch.no_grad():
        policy.load_state_dict(network(x0, y), strict=False)
    return train(policy, plm, target, params, run)
