"""A method as a user would write one beside params.yaml: embeddings in front of the window, tried in the environment.

It returns tokens instead of a prompt, as an example of an unusual method; it tries a few random ones, keeps the best.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.acting.actors import Actors, Origin
from pd_pipeline.compute import generator_of
from pd_pipeline.models.prefixes import read_tokens
from pd_pipeline.storage import load_arrays, save_arrays
from pd_pipeline.tuning.adaptation import Adaptation, Cost
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams

ONLINE = True


class Params(TuningParams):
    """How many embeddings, and how many random draws of them to try."""

    tokens: int = Field(default=4, gt=0)
    tries: int = Field(default=6, gt=0)


@dataclass(frozen=True, kw_only=True)
class SoftPrompt(Adaptation):
    """Embeddings in front of each actor's window."""

    tokens: Tensor  # (n, tokens, width)

    def actors(self, plm: Pretrained) -> Actors:
        """One actor per row."""
        return Actors(plm.policy, read_tokens, (self.tokens,), (Origin("generated", 0),) * len(self.tokens))

    def save(self, directory: Path) -> None:
        """Write `tokens.safetensors`."""
        save_arrays(directory / "tokens.safetensors", {"tokens": self.tokens.numpy()})

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """Load what `save` wrote."""
        return cls(tokens=torch.from_numpy(load_arrays(directory / "tokens.safetensors")[0]["tokens"]))


load = SoftPrompt.load


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> SoftPrompt:
    """Draw embeddings, try each for an episode and keep the best."""
    shape = params.tries, params.tokens, plm.policy.config.width
    drawn = torch.randn(shape, generator=generator_of(run.seed, 0))
    with run.simulation(params.tries) as simulation:
        returns = simulation.run(SoftPrompt(tokens=drawn).actors(plm), target.target_return).returns
    best = drawn[int(returns.argmax())].expand(params.prompts, -1, -1).contiguous()
    return SoftPrompt(tokens=best, cost=Cost(tuned_parameters=best[0].numel()))
