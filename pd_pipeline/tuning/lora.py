"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): low-rank weights beside the frozen ones of attention and MLP.

A linear layer with weights W (out, in) becomes (eq. 3 there)

    W' = W + (alpha / r) B A,    A (r, in) initialised at random, B (out, r) at zero,

and only A and B are tuned, on the few-shot trajectories. For acting, W' is computed once, so that it costs nothing.
PEFT, the usual library, expects models of `transformers`; forty lines of our own are simpler here.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from pd_pipeline.acting.actors import Actors, prompted
from pd_pipeline.compute import generator_of
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer
from pd_pipeline.models.weights import as_tensors
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.storage import expect_arrays, load_arrays, save_arrays
from pd_pipeline.training.loop import Rate
from pd_pipeline.tuning.adaptation import Prompted
from pd_pipeline.tuning.fine_tuning import FineTuningParams, fine_tune
from pd_pipeline.tuning.protocol import Pretrained, Run, Target

Layer = Literal["query", "key_value", "project", "up", "down"]
LAYERS: tuple[Layer, ...] = ("query", "key_value", "project", "up", "down")


class Params(FineTuningParams):
    """Rank, scale and the layers that get low-rank weights."""

    learning_rate: Rate = 3e-3
    rank: int = Field(default=4, gt=0, le=4096, description="r")
    alpha: float = Field(default=8.0, gt=0, le=1e6, description="low-rank weights are scaled by alpha / r")
    layers: tuple[Layer, ...] = Field(default=LAYERS, min_length=1)


class LowRank(nn.Module):
    """The low-rank term added to the weights of one linear layer."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        rows, columns = weight.shape
        bound = 1 / math.sqrt(columns)
        a = torch.empty(rank, columns, device=weight.device).uniform_(-bound, bound, generator=generator)
        self.a, self.b = nn.Parameter(a), nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """W (out, in) -> W' (out, in)."""
        return weight + self.scale * (self.b @ self.a)


@dataclass(frozen=True, kw_only=True)
class LowRankWeights(Prompted):
    """Low-rank weights to add to the PLM's own, and the prompts to act under."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    """Name of a linear layer -> A (r, in) and (alpha / r) B (out, r)."""

    def actors(self, plm: Pretrained) -> Actors:
        """One actor per prompt."""
        policy = copy.deepcopy(plm.policy)
        with torch.no_grad():
            for name, layer in _linear(policy, tuple(self.factors)).items():
                a, b = self.factors[name]
                layer.weight.add_(b @ a)
        return prompted(policy, self.prompts, plm.normalization)

    def save(self, directory: Path) -> None:
        """Write `prompts.safetensors` and `lora.safetensors`."""
        super().save(directory)
        named = {f"{name}.{part}": t for name, pair in self.factors.items() for part, t in zip("ab", pair, strict=True)}
        save_arrays(directory / "lora.safetensors", {name: t.cpu().numpy() for name, t in named.items()})

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """Load what `save` wrote. Raises PipelineError where it is missing or does not fit the PLM."""
        path = directory / "lora.safetensors"
        arrays, _ = load_arrays(path)
        shapes = {name: tuple(layer.weight.shape) for name, layer in _linear(plm.policy, LAYERS).items()}
        names = sorted({name.rpartition(".")[0] for name in arrays} & shapes.keys())
        ranks = {name: len(arrays[f"{name}.a"]) for name in names if f"{name}.a" in arrays}
        wanted = {f"{name}.a": (ranks.get(name), shapes[name][1]) for name in names}
        expect_arrays(path, arrays, wanted | {f"{name}.b": (shapes[name][0], ranks.get(name)) for name in names})
        tensors = as_tensors(arrays, plm.device)
        prompts = Prompts.load(directory / "prompts.safetensors", plm.normalization)
        return cls(prompts=prompts, factors={name: (tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in names})


load = LowRankWeights.load


def _linear(policy: PromptingDecisionTransformer, layers: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The blocks' linear layers whose name, in the block or in the model, is among `layers`."""
    return {
        name: module
        for name, module in policy.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("blocks.")
        and {name, name.rpartition(".")[2]} & set(layers)
    }


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> LowRankWeights:
    """Train A and B in a copy of the PLM whose own weights are frozen."""
    policy, scale = copy.deepcopy(plm.policy), params.alpha / params.rank
    added = {}
    for index, (name, layer) in enumerate(_linear(policy, params.layers).items()):
        added[name] = LowRank(layer.weight, params.rank, scale, generator_of(run.seed, index, plm.device))
        register_parametrization(layer, "weight", added[name])
    prompts, history, cost = fine_tune(policy, plm, target, params, run)
    factors = {name: (part.a.detach(), scale * part.b.detach()) for name, part in added.items()}
    return LowRankWeights(prompts=prompts, factors=factors, history=history, cost=cost)
