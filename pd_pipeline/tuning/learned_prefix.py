"""Gradient descent on what stands in front of the window, for methods whose prefix is no prompt. The PLM is frozen."""

from abc import ABC, abstractmethod
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pd_pipeline.compute import generator_of
from pd_pipeline.config import MAX_STEPS
from pd_pipeline.models.decision_transformer import Steps
from pd_pipeline.models.prefixes import KeysValues, predict
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.training.loop import History, OptimizationParams, Rate, StepCount, Trainer
from pd_pipeline.training.stopping import passes_of
from pd_pipeline.tuning.adaptation import Cost
from pd_pipeline.tuning.held_out import watch
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams


class LearnedPrefixParams(TuningParams, OptimizationParams):
    """Gradient descent; all prefixes are tuned independently, in one batch."""

    steps: StepCount = 200
    learning_rate: Rate = 3e-3
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    warmup: int = Field(default=10, ge=0, le=MAX_STEPS)
    clip: float | None = Field(default=None, gt=0)
    windows: int = Field(default=16, gt=0, le=100_000, description="few-shot windows per prefix and step")
    log_every: StepCount = 1
    tokens: int | None = Field(
        default=None, gt=0, le=10_000, description="tokens of a prefix; null: as many as a prompt, three per step"
    )
    start: Literal["segment", "noise"] = Field(
        default="segment", description="start from the PLM's own embedding of few-shot segments, or at random"
    )

    @model_validator(mode="after")
    def _nothing_to_choose(self) -> Self:
        if self.candidates is not None:
            raise ValueError("a learned prefix is no prompt that could be selected: leave out candidates")
        return self


class LearnedPrefix(nn.Module, ABC):
    """n prefixes as the only weights."""

    @abstractmethod
    def before(self) -> KeysValues:
        """Keys and values of every block, each (n, tokens, width)."""


def starting_tokens(plm: Pretrained, target: Target, params: LearnedPrefixParams, run: Run) -> Tensor:
    """Embedded tokens (n, tokens, width) to start from: those of few-shot segments, repeated or cut as asked."""
    drawn = target.draw(np.random.default_rng(run.seed), params.prompts)
    x0, y = prompt_tensors(drawn, plm.normalization, plm.device)
    with torch.no_grad():
        embedded = plm.policy.embed_prompt(prompt_steps(x0, y, plm.normalization))  # (n, 3K*, width)
    count = embedded.shape[1] if params.tokens is None else params.tokens
    if params.start == "noise":
        shape = params.prompts, count, embedded.shape[2]
        noise = torch.randn(shape, generator=generator_of(run.seed, 0, plm.device), device=plm.device)
        return noise * embedded.std()
    return embedded[
        :, torch.arange(embedded.shape[1] - count, embedded.shape[1], device=plm.device) % embedded.shape[1]
    ]


def losses(plm: Pretrained, before: KeysValues, window: Steps, valid: Tensor) -> Tensor:
    """L_DT (n,) of each of n prefixes on its own share of the windows (B, K): the first B / n, the next ones, ..."""
    prefixes, windows = len(before[0][0]), len(valid)
    each = torch.arange(prefixes, device=valid.device).repeat_interleave(windows // prefixes)  # (B,)
    predicted = predict(plm.policy, [(keys[each], values[each]) for keys, values in before], window)
    error = (predicted - window.actions).square().mean(-1) * valid  # (B, K)
    return error.view(prefixes, -1).sum(1) / valid.view(prefixes, -1).sum(1)


def descend(
    learned: LearnedPrefix, plm: Pretrained, target: Target, params: LearnedPrefixParams, run: Run
) -> tuple[History, Cost]:
    """Follow the gradient of L_DT (eq. 7) with each prefix in place of a prompt; returns the log and the cost."""
    trainer = Trainer(learned, params, run.work, run.title)
    count = params.prompts * params.windows

    def loss_of_step(step: int) -> Tensor:
        rng = np.random.default_rng([run.seed, step])
        window, valid = target.windows.any_windows(rng, count, plm.policy.config.acting_window)
        return losses(plm, learned.before(), window, valid).sum()  # so that each is updated as if it were alone

    def held_out_losses(window: Steps, valid: Tensor) -> Tensor:
        """Of every prefix on all windows (B, K): (n,)."""
        tiled = Steps(*(part.repeat(params.prompts, *[1] * (part.dim() - 1)) for part in window))  # (n B, K, .)
        return losses(plm, learned.before(), tiled, valid.repeat(params.prompts, 1))

    watched = watch(plm, target, params, run.seed, held_out_losses, params.prompts)
    history = trainer.fit(trainer.backward(loss_of_step), run.progress, run.logs, watch=watched)
    for row in history.rows:
        row["loss"] /= params.prompts
    each_way, size = count * params.steps, sum(weight.numel() for weight in learned.parameters())
    looks = passes_of(watched, params.steps)
    return history, Cost(tuned_parameters=size // params.prompts, plm_forward=each_way + looks, plm_backward=each_way)
