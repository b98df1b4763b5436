"""What a tuning method is given: the pre-trained models, a target, parameters and a run.

A method module defines `Params` (a subclass of `TuningParams`) and

    tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Adaptation

with an Adaptation of `adaptation` or one of its own. Nothing else is needed to add one: see `methods`.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pd_pipeline.acting.simulation import Simulation
from pd_pipeline.config import Name, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer, Steps, action_loss
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.models.saved_policy import load_policy
from pd_pipeline.progress import Progress
from pd_pipeline.prompts.segments import Normalization, Prompts, cut
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories
from pd_pipeline.tuning.methods import DIFFUSER_MODULE

if TYPE_CHECKING:
    from pd_pipeline.models.diffuser import Denoiser
    from pd_pipeline.models.diffusion import Diffusion

SELECTION_WINDOWS = 32  # few-shot windows that every candidate's action loss is the mean of


class TargetParams(Parameters):
    """The data of a target task that a method gets, the same for every method unless its own block differs."""

    few_shot: int | None = Field(
        default=5, gt=0, le=1_000_000, description="trajectories of the target task; null: all there are"
    )
    quality: Name = Field(default="expert", description="quality of these trajectories")


class TuningParams(Parameters):
    """What every method is given: the same few-shot trajectories, and how many prompts it must leave."""

    target: TargetParams = TargetParams()
    shown: Literal["own", "other"] = Field(
        default="own",
        description="whose few-shot trajectories the method gets: the target's own, or, drawn by the same rule, those "
        "of another task; a policy that does as well with `other` does not read its prompt",
    )
    prompts: int = Field(default=8, gt=0, le=10_000, description="prompts to leave for evaluation")
    candidates: int | None = Field(
        default=None,
        gt=0,
        le=100_000,
        description="prompts made, of which the `prompts` of least action loss on the few-shot trajectories are kept; "
        "None: as many as are left, without a selection",
    )

    @model_validator(mode="after")
    def _enough_candidates(self) -> Self:
        if self.candidates is not None and self.candidates < self.prompts:
            raise ValueError(
                f"candidates ({self.candidates}) must be at least prompts ({self.prompts}), chosen among them"
            )
        return self

    @property
    def made(self) -> int:
        """Prompts to make: the candidates, or just those to leave."""
        return self.prompts if self.candidates is None else self.candidates


@dataclass(frozen=True)
class Pretrained:
    """The frozen PLM and, for methods that read it, the pre-trained diffuser."""

    policy: PromptingDecisionTransformer
    normalization: Normalization
    device: torch.device
    diffuser: "tuple[Denoiser, Diffusion] | None" = None

    @classmethod
    def load(cls, plm: Path, diffuser: Path | None, device: torch.device) -> "Pretrained":
        """From the outs of their stages. The diffuser's code is imported only where there is one."""
        policy, normalization = load_policy(plm, device)
        saved = None if diffuser is None else importlib.import_module(DIFFUSER_MODULE).load_diffuser(diffuser, device)
        return cls(policy, normalization, device, saved)


@dataclass(frozen=True)
class Target:
    """A target task as a method sees it: few trajectories, and the return that the policy is asked for."""

    data: Trajectories
    windows: PolicyData  # normalised, on the PLM's device
    prompts: Prompts  # every segment of K* steps, in task units
    asked: float

    @classmethod
    def of(cls, data: Trajectories, plm: Pretrained, asked: float | None = None) -> "Target":
        """Prepare trajectories for a PLM; without `asked`, their mean return is asked for."""
        prompts = cut(data, plm.policy.config.prompt_length)
        windows = PolicyData(data, plm.normalization, plm.device)
        return cls(data, windows, prompts, float(data.episode_returns.mean()) if asked is None else asked)

    @property
    def task(self) -> int:
        """The task that the trajectories are of."""
        return int(self.data.task_id[0])

    def draw(self, rng: np.random.Generator, count: int) -> Prompts:
        """`count` segments, uniformly, without repetition while there are enough."""
        return self.prompts.select(rng.choice(len(self.prompts), count, replace=count > len(self.prompts)))

    def tensors(self, plm: Pretrained) -> tuple[Tensor, Tensor]:
        """All segments, normalised: x0 (n, K*, channels) and y (n, K*, 2)."""
        return prompt_tensors(self.prompts, plm.normalization, plm.device)


@dataclass(frozen=True)
class Run:
    """Where a method keeps its resumable state and its logs, what it reports progress to, and its seed."""

    work: Path
    logs: Path
    title: str
    progress: Progress
    seed: int
    simulate: Callable[[int], Simulation] | None = None
    """Budget -> the target's environment; None for an offline method."""

    def simulation(self, budget: int) -> Simulation:
        """The target's environment for at most `budget` episodes. Raises PipelineError for an offline method."""
        if self.simulate is None:
            raise PipelineError(
                f"{self.title}: the method asks for a simulation, but it is an offline one: set `ONLINE = True` in its "
                "module where it is meant to run episodes in the target's environment"
            )
        return self.simulate(budget)


def draw_few_shot(data: Trajectories, params: TuningParams, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the few-shot episodes and of the others: the same draw for every method of a seed."""
    episodes = len(data.task_id)
    count = params.target.few_shot or episodes
    if episodes < count:
        raise PipelineError(
            f"task {data.task_id[0]}: {count} few-shot trajectories are asked for, {episodes} are there: "
            "collect more (trajectories.episodes) or ask for fewer (target.few_shot)"
        )
    order = np.random.default_rng([seed, int(data.task_id[0])]).permutation(episodes)
    return np.sort(order[:count]), np.sort(order[count:])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def guidance_loss(plm: Pretrained, x0: Tensor, y: Tensor, window: Steps, valid: Tensor) -> Tensor:
    """L_DT (eq. 7): action loss of the PLM on windows (B, K), each under its own prompt x0, y (B, K*, .)."""
    with evaluating(plm.policy):
        predicted = plm.policy(prompt_steps(x0, y, plm.normalization), window)
    return action_loss(predicted, window.actions, valid)


@torch.no_grad()
def prompt_losses(
    plm: Pretrained, target: Target, x0: Tensor, y: Tensor, seed: int, windows: int = SELECTION_WINDOWS
) -> Tensor:
    """L_DT of each of n prompts over the same `windows` few-shot windows, (n,): the measure to choose prompts by."""
    window, valid = target.windows.any_windows(np.random.default_rng(seed), windows, plm.policy.config.acting_window)
    losses = []
    for prompt, condition in zip(x0, y, strict=True):
        repeated = prompt.expand(windows, *prompt.shape), condition.expand(windows, *condition.shape)
        losses.append(guidance_loss(plm, *repeated, window, valid))
    return torch.stack(losses)


def select(
    plm: Pretrained, target: Target, x0: Tensor, y: Tensor, params: TuningParams, seed: int
) -> tuple[Tensor, int]:
    """Which of the prompts x0, y (params.made, K*, .) a method leaves, best first, and the PLM's passes that it took.

    The same for every method: over the same few-shot windows, by the policy that will act under the prompts. Without
    candidates all prompts are left, in the order they were made in.
    """
    if params.candidates is None:
        return torch.arange(params.prompts, device=x0.device), 0
    losses = prompt_losses(plm, target, x0, y, seed)
    return losses.argsort(stable=True)[: params.prompts], SELECTION_WINDOWS * len(x0)
