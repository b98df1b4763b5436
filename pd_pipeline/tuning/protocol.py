"""The inputs of a tuning method: the pre-trained models, a target, parameters and a `Run`.

A method module defines `Params` (a subclass of `TuningParams`) and

    tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Adaptation

which returns an Adaptation from `adaptation` or its own subclass. Nothing else is needed to add one: see `methods`.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pd_pipeline.acting.simulation import Simulation
from pd_pipeline.config import MAX_STEPS, Name, Parameters
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

SELECTION_WINDOWS = 32  # few-shot windows over which the action loss of a candidate is averaged


class TargetParams(Parameters):
    """The data of a target task that a method gets: the same for all methods unless its own block overrides it."""

    few_shot: int | None = Field(
        default=5, gt=0, le=1_000_000, description="trajectories of the target task; null: all of them"
    )
    quality: Name = Field(default="expert", description="quality of these trajectories")
    choose: Literal["random", "newest", "best"] = Field(
        default="random",
        description="which ones, if there are more: drawn at random by the seed, those that came last, or those with "
        "the highest return",
    )
    prompt_quality: Name | None = Field(
        default=None,
        description="quality of the trajectories that prompts are cut from, as many as few_shot; null: prompts are cut "
        "from the same trajectories",
    )
    target_return: float | None = Field(
        default=None,
        ge=-1e30,
        le=1e30,
        description="return that the policy is asked for; null: the mean return of these trajectories",
    )


class HeldOutParams(Parameters):
    """Few-shot trajectories that tuning does not learn from, and what the action loss on them decides."""

    share: float = Field(default=0.2, gt=0, lt=1, description="share of the few-shot trajectories; at least one")
    stop: bool = Field(
        default=True,
        description="keep what tuning had found when the loss was lowest, not what it ends with; for methods that tune "
        "by their action loss, step by step",
    )
    every: int = Field(default=10, gt=0, le=MAX_STEPS, description="steps between two looks at that loss")
    fall_back: bool = Field(
        default=True, description="keep drawn prompts unless the loss of the adapted policy is lower than under them"
    )

    @model_validator(mode="after")
    def _decides(self) -> Self:
        if not (self.stop or self.fall_back):
            raise ValueError("without stop and fall_back nothing is decided on them: leave out held_out")
        return self


class TuningParams(Parameters):
    """Parameters of every method: its few-shot trajectories and the number of prompts to return."""

    target: TargetParams = TargetParams()
    shown: Literal["own", "other"] = Field(
        default="own",
        description="whose few-shot trajectories the method gets: the target's own, or those of another task, drawn in "
        "the same way; a policy that does equally well with `other` ignores its prompt",
    )
    prompts: int = Field(default=8, gt=0, le=10_000, description="prompts to return for evaluation")
    candidates: int | None = Field(
        default=None,
        gt=0,
        le=100_000,
        description="prompts to generate; the `prompts` with the lowest action loss on the few-shot trajectories are "
        "kept. None: no selection",
    )

    held_out: HeldOutParams | None = Field(
        default=None, description="trajectories kept from tuning, against learning the others by heart; null: none"
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        name, chosen = self.chosen_from_candidates
        if self.candidates is not None and self.candidates < chosen:
            raise ValueError(
                f"candidates ({self.candidates}) must be at least {name} ({chosen}), which are chosen from them"
            )
        if self.held_out is not None and self.target.few_shot == 1:
            raise ValueError(
                "held_out needs two few-shot trajectories, one to tune on and one to hold out: set target.few_shot to "
                "more, or leave out held_out"
            )
        return self

    @property
    def chosen_from_candidates(self) -> tuple[str, int]:
        """Which parameter says how many of the candidates are kept, and its value."""
        return "prompts", self.prompts

    @property
    def candidate_count(self) -> int:
        """Number of prompts to generate: `candidates`, or `prompts` without a selection."""
        return self.prompts if self.candidates is None else self.candidates


@dataclass(frozen=True)
class Pretrained:
    """The frozen PLM and, for methods that need it, the pre-trained diffuser."""

    policy: PromptingDecisionTransformer
    normalization: Normalization
    device: torch.device
    diffuser: "tuple[Denoiser, Diffusion] | None" = None
    outs: Mapping[str, Path] = field(default_factory=dict)
    """Stage -> its out, for every stage that the method reads."""

    @classmethod
    def load(
        cls, plm: Path, diffuser: Path | None, device: torch.device, outs: Mapping[str, Path] | None = None
    ) -> "Pretrained":
        """Load both from the outs of their stages. The code of the diffuser is imported only if there is one."""
        policy, normalization = load_policy(plm, device)
        saved = None if diffuser is None else importlib.import_module(DIFFUSER_MODULE).load_diffuser(diffuser, device)
        return cls(policy, normalization, device, saved, outs or {})


@dataclass(frozen=True)
class Target:
    """A target task as a method sees it: a few trajectories, and the return to condition the policy on."""

    data: Trajectories
    windows: PolicyData  # normalised, on the PLM's device
    prompts_from: Trajectories  # `data`, unless `target.prompt_quality` is set
    prompts: Prompts  # all their segments of K* steps, in task units
    target_return: float
    held_out: PolicyData | None = None
    """Trajectories that are not to be learned from, only to stop by."""

    @classmethod
    def of(
        cls,
        data: Trajectories,
        plm: Pretrained,
        target_return: float | None = None,
        prompts_from: Trajectories | None = None,
        held_out: Trajectories | None = None,
    ) -> "Target":
        """Prepare trajectories for a PLM.

        By default `target_return` is their mean return, and prompts are cut from them.
        """
        prompts_from = data if prompts_from is None else prompts_from
        prompts = cut(prompts_from, plm.policy.config.prompt_length)
        windows = PolicyData(data, plm.normalization, plm.device)
        if target_return is None:
            target_return = float(data.episode_returns.mean())
        kept = None if held_out is None else PolicyData(held_out, plm.normalization, plm.device)
        return cls(data, windows, prompts_from, prompts, target_return, kept)

    @property
    def task(self) -> int:
        """The task of the trajectories."""
        return int(self.data.task_id[0])

    def draw(self, rng: np.random.Generator, count: int) -> Prompts:
        """Draw `count` segments uniformly, without replacement if there are enough."""
        return self.prompts.select(rng.choice(len(self.prompts), count, replace=count > len(self.prompts)))

    def tensors(self, plm: Pretrained) -> tuple[Tensor, Tensor]:
        """All segments, normalised: x0 (n, K*, channels) and y (n, K*, 2)."""
        return prompt_tensors(self.prompts, plm.normalization, plm.device)


@dataclass(frozen=True)
class Run:
    """A method's folders for resumable state and logs, its progress reporter, and its seed."""

    work: Path
    logs: Path
    title: str
    progress: Progress
    seed: int
    simulate: Callable[[int], Simulation] | None = None
    """Budget of episodes -> the target's environment; None for an offline method."""
    task: int | None = None
    """The task to adapt to: with `shown: other`, another than that of the trajectories."""

    def simulation(self, budget: int) -> Simulation:
        """The target's environment for at most `budget` episodes. Raises PipelineError for an offline method."""
        if self.simulate is None:
            raise PipelineError(
                f"{self.title}: an offline method cannot run episodes in the target's environment: if it should, set "
                "`ONLINE = True` in its module"
            )
        return self.simulate(budget)


def draw_few_shot(data: Trajectories, params: TuningParams, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the few-shot episodes and of the others, sorted: the same for all methods with the same seed."""
    episodes = len(data.task_id)
    count = params.target.few_shot or episodes
    if episodes < count:
        raise PipelineError(
            f"task {data.task_id[0]}: {count} few-shot trajectories are needed, but there are only {episodes}: "
            "collect more (trajectories.episodes) or use fewer (target.few_shot)"
        )
    if params.target.choose == "newest":
        order = np.arange(episodes)[::-1]  # episodes are numbered in the order of arrival
    elif params.target.choose == "best":
        order = np.argsort(-data.episode_returns, kind="stable")
    else:
        order = np.random.default_rng([seed, int(data.task_id[0])]).permutation(episodes)
    return np.sort(order[:count]), np.sort(order[count:])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode inside the block, then restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def guidance_loss(plm: Pretrained, x0: Tensor, y: Tensor, window: Steps, valid: Tensor) -> Tensor:
    """L_DT (eq. 7): action loss of the PLM on windows (B, K), each with its own prompt x0, y (B, K*, .)."""
    with evaluating(plm.policy):
        predicted = plm.policy(prompt_steps(x0, y, plm.normalization), window)
    return action_loss(predicted, window.actions, valid)


@torch.no_grad()
def prompt_losses(
    plm: Pretrained, target: Target, x0: Tensor, y: Tensor, seed: int, windows: int = SELECTION_WINDOWS
) -> Tensor:
    """L_DT (n,) of each of n prompts over the same `windows` few-shot windows: the criterion to select prompts."""
    window, valid = target.windows.any_windows(np.random.default_rng(seed), windows, plm.policy.config.acting_window)
    losses = []
    for prompt, condition in zip(x0, y, strict=True):
        repeated = prompt.expand(windows, *prompt.shape), condition.expand(windows, *condition.shape)
        losses.append(guidance_loss(plm, *repeated, window, valid))
    return torch.stack(losses)


def select(
    plm: Pretrained, target: Target, x0: Tensor, y: Tensor, params: TuningParams, seed: int
) -> tuple[Tensor, int]:
    """Select the prompts that a method returns from x0, y (params.candidate_count, K*, .).

    All methods use the same criterion: the action loss of the policy that will act with the prompts, over the same
    few-shot windows. Without candidates, all prompts are returned in their order. Returns the indices, best first, and
    the number of PLM passes.
    """
    if params.candidates is None:
        return torch.arange(params.prompts, device=x0.device), 0
    losses = prompt_losses(plm, target, x0, y, seed)
    return losses.argsort(stable=True)[: params.prompts], SELECTION_WINDOWS * len(x0)
