"""Adapters (Houlsby et al., ICML 2019, arXiv 1902.00751): a small bottleneck after attention and MLP of every block.

    h' = h + W_up relu(W_down h + b_down) + b_up,    W_down (r, width), W_up (width, r)

Only the adapters are tuned, on the few-shot trajectories; W_up and b_up begin at zero, so that the policy begins as the
PLM.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.acting.actors import Actors, prompted
from pd_pipeline.compute import generator_of
from pd_pipeline.models.adapters import of_adapters, with_adapters
from pd_pipeline.models.decision_transformer import Adapter, PromptingDecisionTransformer
from pd_pipeline.models.weights import as_tensors
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.storage import expect_arrays, load_arrays, save_arrays
from pd_pipeline.training.loop import Rate
from pd_pipeline.tuning.adaptation import Prompted
from pd_pipeline.tuning.fine_tuning import FineTuningParams, fine_tune
from pd_pipeline.tuning.protocol import Pretrained, Run, Target

FILE = "adapters.safetensors"


class Params(FineTuningParams):
    """The size of the adapters."""

    learning_rate: Rate = 3e-3
    bottleneck: int = Field(default=8, gt=0, le=4096, description="r, the width of the bottleneck")


@dataclass(frozen=True, kw_only=True)
class Adapters(Prompted):
    """Adapters for the PLM, and the prompts to act under."""

    tensors: Mapping[str, Tensor]
    """Name in the policy, such as blocks.0.adapt_mlp.up.weight -> the tensor."""

    def actors(self, plm: Pretrained) -> Actors:
        """One actor per prompt."""
        bottleneck = next(len(tensor) for name, tensor in self.tensors.items() if name.endswith("down.bias"))
        policy = with_adapters(plm.policy, bottleneck)
        policy.load_state_dict(self.tensors, strict=False)
        return prompted(policy, self.prompts, plm.normalization)

    def save(self, directory: Path) -> None:
        """Write `prompts.safetensors` and `adapters.safetensors`."""
        super().save(directory)
        save_arrays(directory / FILE, {name: tensor.cpu().numpy() for name, tensor in self.tensors.items()})

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """Load what `save` wrote. Raises PipelineError if it is missing or invalid."""
        path = directory / FILE
        arrays, _ = load_arrays(path)
        first = arrays.get("blocks.0.adapt_mlp.down.bias", np.empty(0))
        shapes = {
            name: tuple(t.shape) for name, t in of_adapters(with_adapters(plm.policy, max(1, len(first)))).items()
        }
        expect_arrays(path, arrays, shapes)
        prompts = Prompts.load(directory / "prompts.safetensors", plm.normalization)
        return cls(prompts=prompts, tensors=as_tensors(arrays, plm.device))


load = Adapters.load


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Adapters:
    """Train adapters that do nothing at first."""
    policy = with_adapters(plm.policy, params.bottleneck)
    generator = generator_of(run.seed, 0, plm.device)
    for module in (module for module in policy.modules() if isinstance(module, Adapter)):
        bound = module.down.in_features**-0.5
        with torch.no_grad():
            module.down.weight.uniform_(-bound, bound, generator=generator)
        for part in (module.down.bias, module.up.weight, module.up.bias):
            torch.nn.init.zeros_(part)
    return train(policy, plm, target, params, run)


def train(
    policy: PromptingDecisionTransformer, plm: Pretrained, target: Target, params: FineTuningParams, run: Run
) -> Adapters:
    """Train the adapters of a frozen policy whose other weights are those of the PLM, and stay so."""
    for module in (module for module in policy.modules() if isinstance(module, Adapter)):
        module.requires_grad_(True)
    prompts, history, cost = fine_tune(policy, plm, target, params, run)
    return Adapters(prompts=prompts, tensors=of_adapters(policy), history=history, cost=cost)
