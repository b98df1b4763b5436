"""A method as a user would write one beside params.yaml: embeddings in front of the window, tried in the environment.

It leaves no prompt but tokens, so that it proves what a method may be; a few random ones are tried and the best kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.acting.actors import Actors, KeysValues, Origin
from pd_pipeline.compute import generator_of
from pd_pipeline.models.decision_transformer import Dropout, PromptingDecisionTransformer, causal_mask
from pd_pipeline.storage import load_arrays, save_arrays
from pd_pipeline.tuning.adaptation import Adaptation, Cost
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams

ONLINE = True


class Params(TuningParams):
    """How many embeddings, and how many draws of them are tried."""

    tokens: int = Field(default=4, gt=0)
    tries: int = Field(default=6, gt=0)


@torch.no_grad()
def read_tokens(policy: PromptingDecisionTransformer, tokens: Tensor) -> KeysValues:
    """Keys and values of embeddings (n, tokens, width)."""
    x, found = policy.norm_embedding(tokens), []
    mask = causal_mask(x.shape[1], x)
    for block in policy.blocks:
        keys, values = block.key_value(block.norm_attention(x)).chunk(2, dim=-1)
        found.append((keys, values))
        x = block(x, mask, Dropout(0.0))
    return found


@dataclass(frozen=True, kw_only=True)
class SoftPrompt(Adaptation):
    """Embeddings in front of the window, of each actor."""

    tokens: Tensor  # (n, tokens, width)

    def actors(self, plm: Pretrained) -> Actors:
        """One per row."""
        return Actors(plm.policy, read_tokens, (self.tokens,), (Origin("generated", 0),) * len(self.tokens))

    def save(self, directory: Path) -> None:
        """Write `tokens.safetensors`."""
        save_arrays(directory / "tokens.safetensors", {"tokens": self.tokens.numpy()})

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """What `save` wrote."""
        return cls(tokens=torch.from_numpy(load_arrays(directory / "tokens.safetensors")[0]["tokens"]))


load = SoftPrompt.load


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> SoftPrompt:
    """Draw, try each for an episode, keep the best."""
    shape = params.tries, params.tokens, plm.policy.config.width
    drawn = torch.randn(shape, generator=generator_of(run.seed, 0))
    with run.simulation(params.tries) as simulation:
        returns = simulation.run(SoftPrompt(tokens=drawn).actors(plm), target.asked).returns
    best = drawn[int(returns.argmax())].expand(params.prompts, -1, -1).contiguous()
    return SoftPrompt(tokens=best, cost=Cost(tuned_parameters=best[0].numel()))
