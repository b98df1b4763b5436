"""What a tuning method is given and what it gives: one protocol, one file per method, one stage per method.

A method module `tuning/<method>.py` defines `Params` (a subclass of `TuningParams`) and

    tune(plm, few_shot, params, seed, run) -> Tuned

and is listed with what it reads in `graph.METHODS`. Nothing else is needed to add one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pd_pipeline.config import Name, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer, Steps, action_loss
from pd_pipeline.models.diffuser import Denoiser
from pd_pipeline.models.diffusion import Diffusion
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.progress import Progress
from pd_pipeline.prompts.segments import Normalization, Prompts, cut
from pd_pipeline.training.loop import History
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories

SELECTION_WINDOWS = 32  # few-shot windows that every candidate's action loss is the mean of


class TuningParams(Parameters):
    """What every method is given: the same few-shot trajectories, and how many prompts it must leave."""

    few_shot: int | None = Field(
        default=5, gt=0, le=1_000_000, description="trajectories of the target task; None: all there are"
    )
    quality: Name = Field(default="expert", description="quality of these trajectories")
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
    diffuser: tuple[Denoiser, Diffusion] | None = None


@dataclass(frozen=True)
class FewShot:
    """The few trajectories of the target task."""

    data: Trajectories
    windows: PolicyData  # normalised, on the PLM's device
    prompts: Prompts  # every segment of K* steps, in task units

    @classmethod
    def of(cls, data: Trajectories, plm: Pretrained) -> "FewShot":
        """Prepare trajectories for a PLM."""
        prompts = cut(data, plm.policy.config.prompt_length)
        return cls(data, PolicyData(data, plm.normalization, plm.device), prompts)

    def draw(self, rng: np.random.Generator, count: int) -> Prompts:
        """`count` segments, uniformly, without repetition while there are enough."""
        return self.prompts.select(rng.choice(len(self.prompts), count, replace=count > len(self.prompts)))

    def tensors(self, plm: Pretrained) -> tuple[Tensor, Tensor]:
        """All segments, normalised: x0 (n, K*, channels) and y (n, K*, 2)."""
        return prompt_tensors(self.prompts, plm.normalization, plm.device)


@dataclass(frozen=True)
class Run:
    """Where a method keeps its resumable state, its logs, and what it reports progress to."""

    work: Path
    logs: Path
    title: str
    progress: Progress


@dataclass(frozen=True)
class Tuned:
    """What a method leaves: prompts, and a policy where it changed the PLM's weights."""

    prompts: Prompts
    policy: PromptingDecisionTransformer | None = None
    denoisers: Mapping[str, Denoiser] = field(default_factory=dict)
    """Name -> denoiser, for a method that tunes one."""
    history: History = field(default_factory=History)
    tuned_parameters: int = 0
    plm_passes: int = 0
    """Sequences that went through the PLM: a training step of batch B counts 2 B (forward and backward), the selection
    `SELECTION_WINDOWS` per candidate."""
    environment_episodes: int = 0
    chain: int | None = None
    """Steps of the reverse chain that the prompts come from, for a method that generates them."""


def draw_few_shot(data: Trajectories, params: TuningParams, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the few-shot episodes and of the others: the same draw for every method of a seed."""
    episodes = len(data.task_id)
    count = params.few_shot or episodes
    if episodes < count:
        raise PipelineError(
            f"task {data.task_id[0]}: {count} few-shot trajectories are asked for, {episodes} are there: "
            "collect more (trajectories.episodes) or ask for fewer (few_shot)"
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
    plm: Pretrained, few_shot: FewShot, x0: Tensor, y: Tensor, seed: int, windows: int = SELECTION_WINDOWS
) -> Tensor:
    """L_DT of each of n prompts over the same `windows` few-shot windows, (n,): the measure to choose prompts by."""
    window, valid = few_shot.windows.any_windows(np.random.default_rng(seed), windows, plm.policy.config.acting_window)
    losses = []
    for prompt, condition in zip(x0, y, strict=True):
        repeated = prompt.expand(windows, *prompt.shape), condition.expand(windows, *condition.shape)
        losses.append(guidance_loss(plm, *repeated, window, valid))
    return torch.stack(losses)


def select(
    plm: Pretrained, few_shot: FewShot, x0: Tensor, y: Tensor, params: TuningParams, seed: int
) -> tuple[Tensor, int]:
    """Which of the prompts x0, y (params.made, K*, .) a method leaves, best first, and the PLM's passes that it took.

    The same for every method: over the same few-shot windows, by the policy that will act under the prompts. Without
    candidates all prompts are left, in the order they were made in.
    """
    if params.candidates is None:
        return torch.arange(params.prompts, device=x0.device), 0
    losses = prompt_losses(plm, few_shot, x0, y, seed)
    return losses.argsort(stable=True)[: params.prompts], SELECTION_WINDOWS * len(x0)
