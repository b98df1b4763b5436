"""The result of a method: an Adaptation, which can act, save itself and be loaded again for a PLM.

Nothing downstream depends on which method returned it. Most methods return prompts (`Prompted`), or weights of the
policy and prompts (`Reweighted`). A method that returns something else defines its own class, and a function
`load(directory, plm)` in its module.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field

from pd_pipeline.acting.actors import Actors, prompted
from pd_pipeline.config import Parameters
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer
from pd_pipeline.models.weights import load_weights, weights
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.storage import read_model, save_arrays, write_json
from pd_pipeline.training.loop import History
from pd_pipeline.tuning.protocol import Pretrained

if TYPE_CHECKING:  # so that methods without a diffuser do not depend on its code
    from pd_pipeline.models.diffuser import Denoiser


FELL_BACK = "fell_back.json"
"""Beside drawn prompts in the place of what a method left; see `held_out`."""


class Cost(Parameters):
    """The cost of a method, in machine-independent units; seconds are in the record of its out.

    One sequence (a prompt and a window) through the PLM is one pass: a training step with batch size B is B forward and
    B backward passes, and an acting step is one forward pass. The simulation counts the episodes in the environment and
    the acting steps in them.
    """

    tuned_parameters: int = Field(default=0, ge=0)
    plm_forward: int = Field(default=0, ge=0)
    plm_backward: int = Field(default=0, ge=0)


@dataclass(frozen=True, kw_only=True)
class Adaptation(ABC):
    """The policy adapted to one target."""

    cost: Cost = field(default_factory=Cost)
    history: History = field(default_factory=History)
    """Values logged during tuning."""
    frozen: bool = True
    """Whether the PLM's weights are unchanged."""

    @abstractmethod
    def actors(self, plm: Pretrained) -> Actors:
        """The actors to evaluate, one per episode."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what `load` needs."""

    def prompts_to_show(self) -> Prompts | None:
        """The prompts in task units, for figures; None for an adaptation without prompts."""
        return None

    def generators(self) -> "Mapping[str, tuple[Denoiser, int]]":
        """Name -> (generator of prompts, steps of its reverse chain), for comparison with real prompts."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Prompted(Adaptation):
    """The unchanged PLM with prompts."""

    prompts: Prompts

    def actors(self, plm: Pretrained) -> Actors:
        """One actor per prompt."""
        return prompted(plm.policy, self.prompts, plm.normalization)

    def save(self, directory: Path) -> None:
        """Write `prompts.safetensors`."""
        self.prompts.save(directory / "prompts.safetensors")

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """Load what `save` wrote. Raises PipelineError if it is missing or invalid."""
        return cls(prompts=Prompts.load(directory / "prompts.safetensors", plm.normalization))

    def prompts_to_show(self) -> Prompts | None:
        """The prompts."""
        return self.prompts


@dataclass(frozen=True, kw_only=True)
class Reweighted(Prompted):
    """A policy of the PLM's shape with its own weights, and prompts."""

    policy: PromptingDecisionTransformer
    frozen: bool = False

    def actors(self, plm: Pretrained) -> Actors:
        """One actor per prompt."""
        return prompted(self.policy, self.prompts, plm.normalization)

    def save(self, directory: Path) -> None:
        """Write `prompts.safetensors` and `policy.safetensors`."""
        super().save(directory)
        save_arrays(directory / "policy.safetensors", weights(self.policy))

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """Load what `save` wrote. Raises PipelineError if it is missing or invalid."""
        policy = PromptingDecisionTransformer(plm.policy.config)
        load_weights(policy, directory / "policy.safetensors", "the configuration of the PLM")
        policy.to(plm.device).eval()
        return cls(prompts=Prompts.load(directory / "prompts.safetensors", plm.normalization), policy=policy)


class _Losses(Parameters):
    """`fell_back.json`."""

    tuned: float
    drawn: float


@dataclass(frozen=True, kw_only=True)
class FellBack(Prompted):
    """Drawn prompts in the place of what a method left; see `held_out`."""

    tuned: float
    """Action loss of the adapted policy on the trajectories that tuning did not see."""
    drawn: float
    """The same of the PLM under the drawn prompts."""

    def save(self, directory: Path) -> None:
        """Write `prompts.safetensors` and `fell_back.json`, by which it is loaded as prompts whatever the method."""
        super().save(directory)
        write_json(directory / FELL_BACK, {"tuned": self.tuned, "drawn": self.drawn})

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """Load what `save` wrote. Raises PipelineError if it is missing or invalid."""
        losses = read_model(directory / FELL_BACK, _Losses)
        prompts = Prompts.load(directory / "prompts.safetensors", plm.normalization)
        return cls(prompts=prompts, tuned=losses.tuned, drawn=losses.drawn)


def load(module: str, directory: Path, plm: Pretrained) -> Adaptation:
    """Load the result that the method in `module` saved. Raises PipelineError if it is missing or invalid."""
    if (directory / FELL_BACK).is_file():
        return FellBack.load(directory, plm)
    loaded: Adaptation = getattr(importlib.import_module(module), "load", Prompted.load)(directory, plm)
    return loaded
