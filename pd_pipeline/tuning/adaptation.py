"""The result of a method: an Adaptation, which acts, saves itself and is loaded again for a PLM.

Nothing downstream asks which method made it. Most methods return prompts (`Prompted`), or weights of the policy and
the prompts it acts under (`Reweighted`). A method that returns something else defines its own class, and in its module
a function `load(directory, plm)`.
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
from pd_pipeline.storage import save_arrays
from pd_pipeline.training.loop import History
from pd_pipeline.tuning.protocol import Pretrained

if TYPE_CHECKING:  # so that methods without a diffuser do not depend on its code
    from pd_pipeline.models.diffuser import Denoiser


class Cost(Parameters):
    """The cost of a method, in units that are the same on every machine; seconds are in the record of its out.

    One sequence (a prompt and a window) through the PLM is one pass: a training step of batch B is B forward and B
    backward passes, and a step of acting is one forward pass. Episodes in the environment, and the passes of acting in
    them, are counted by the simulation.
    """

    tuned_parameters: int = Field(default=0, ge=0)
    plm_forward: int = Field(default=0, ge=0)
    plm_backward: int = Field(default=0, ge=0)


@dataclass(frozen=True, kw_only=True)
class Adaptation(ABC):
    """The policy adapted to one target."""

    cost: Cost = field(default_factory=Cost)
    history: History = field(default_factory=History)
    """The series that tuning logged."""
    frozen: bool = True
    """Whether the PLM's own weights are unchanged."""

    @abstractmethod
    def actors(self, plm: Pretrained) -> Actors:
        """The actors that are evaluated, one per episode."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what `load` needs."""

    def shown(self) -> Prompts | None:
        """The prompts in task units, for pictures of them; None for an adaptation without prompts."""
        return None

    def generators(self) -> "Mapping[str, tuple[Denoiser, int]]":
        """Name -> a generator of prompts and the steps of its reverse chain, for comparison with real prompts."""
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
        """Load what `save` wrote. Raises PipelineError where it is missing or broken."""
        return cls(prompts=Prompts.load(directory / "prompts.safetensors", plm.normalization))

    def shown(self) -> Prompts | None:
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
        """Load what `save` wrote. Raises PipelineError where it is missing or broken."""
        policy = PromptingDecisionTransformer(plm.policy.config)
        load_weights(policy, directory / "policy.safetensors", "the configuration of the PLM")
        policy.to(plm.device).eval()
        return cls(prompts=Prompts.load(directory / "prompts.safetensors", plm.normalization), policy=policy)


def load(module: str, directory: Path, plm: Pretrained) -> Adaptation:
    """Load what the method of a module saved in a directory. Raises PipelineError where it is missing or broken."""
    loaded: Adaptation = getattr(importlib.import_module(module), "load", Prompted.load)(directory, plm)
    return loaded
