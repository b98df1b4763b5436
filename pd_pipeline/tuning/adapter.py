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
from pd_pipeline.models.decision_transformer import Adapter, PromptingDecisionTransformer
from pd_pipeline.models.weights import as_tensors
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.storage import expect_arrays, load_arrays, save_arrays
from pd_pipeline.tuning.adaptation import Prompted
from pd_pipeline.tuning.fine_tuning import FineTuningParams, fine_tune
from pd_pipeline.tuning.protocol import Pretrained, Run, Target

FILE = "adapters.safetensors"


class Params(FineTuningParams):
    """The size of the adapters."""

    bottleneck: int = Field(default=8, gt=0, le=4096, description="r, the width of the bottleneck")


@dataclass(frozen=True, kw_only=True)
class Adapters(Prompted):
    """Adapters for the PLM, and the prompts to act under."""

    tensors: Mapping[str, Tensor]
    """Name in the policy, such as blocks.0.adapt_mlp.up.weight -> the tensor."""

    def actors(self, plm: Pretrained) -> Actors:
        """One actor per prompt."""
        bottleneck = next(len(tensor) for name, tensor in self.tensors.items() if name.endswith("down.bias"))
        policy = with_adapters(plm, bottleneck)
        policy.load_state_dict(self.tensors, strict=False)
        return prompted(policy.eval().requires_grad_(False), self.prompts, plm.normalization)

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
        shapes = {name: tuple(t.shape) for name, t in of_adapters(with_adapters(plm, max(1, len(first)))).items()}
        expect_arrays(path, arrays, shapes)
        prompts = Prompts.load(directory / "prompts.safetensors", plm.normalization)
        return cls(prompts=prompts, tensors=as_tensors(arrays, plm.device))


load = Adapters.load


def with_adapters(plm: Pretrained, bottleneck: int) -> PromptingDecisionTransformer:
    """A copy of the PLM with adapters in every block, not yet initialised."""
    with torch.random.fork_rng([]):  # the weights that are drawn here are replaced
        policy = PromptingDecisionTransformer(plm.policy.config.model_copy(update={"bottleneck": bottleneck}))
    policy.load_state_dict(plm.policy.state_dict(), strict=False)
    return policy.to(plm.device)


def of_adapters(policy: PromptingDecisionTransformer) -> dict[str, Tensor]:
    """The weights of a policy's adapters, by their names in it."""
    return {name: tensor.detach() for name, tensor in policy.state_dict().items() if ".adapt_" in name}


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Adapters:
    """Train the adapters in a copy of the PLM whose own weights are frozen."""
    policy = with_adapters(plm, params.bottleneck).requires_grad_(False)
    generator = generator_of(run.seed, 0, plm.device)
    for module in policy.modules():
        if isinstance(module, Adapter):
            module.requires_grad_(True)
            bound = module.down.in_features**-0.5
            with torch.no_grad():
                module.down.weight.uniform_(-bound, bound, generator=generator)
            for part in (module.down.bias, module.up.weight, module.up.bias):
                torch.nn.init.zeros_(part)
    prompts, history, cost = fine_tune(policy, plm, target, params, run)
    return Adapters(prompts=prompts, tensors=of_adapters(policy), history=history, cost=cost)
