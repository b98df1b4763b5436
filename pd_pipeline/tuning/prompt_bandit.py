"""Prompt tuning by bandits (arXiv 2502.06358): which segments of the few-shot trajectories make the best prompt.

A prompt of K* steps has J slots of K* / J steps; the arms of a slot are all segments of that length. The reward of a
choice of arms is the return of an episode in the target's environment. Each slot has a reward model, which predicts
from an arm's features the return of a prompt with it: an ensemble of small networks, refitted after every episode, each
with its own bootstrap weights, so that they agree where there is much data and differ where there is little. Arms are
chosen by

    epsilon_greedy  the largest ensemble mean, or with probability epsilon a random arm; epsilon falls from 1 to 0
    ucb             the largest mean + c * standard deviation of the ensemble
    thompson        the best arm of one network, drawn for each episode

and at the end each slot keeps the arm with the largest mean, for every episode that is evaluated.
"""

from itertools import pairwise
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from pd_pipeline.acting.actors import Actors, prompted
from pd_pipeline.compute import generator_of
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import Dropout, PromptingDecisionTransformer, Steps, causal_mask
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.prompts.segments import Prompts, cut
from pd_pipeline.training.loop import History, Rate
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams

ONLINE = True


class Params(TuningParams):
    """How arms are chosen, and how their rewards are predicted."""

    strategy: Literal["epsilon_greedy", "ucb", "thompson"] = "thompson"
    episodes: int = Field(default=250, gt=0, le=1_000_000, description="per target, in its environment")
    slots: int = Field(default=1, gt=0, le=1000, description="J, segments per prompt")
    features: Literal["segment", "hidden"] = Field(
        default="segment",
        description="features of an arm: its normalised steps, or the PLM's hidden state at its last action token",
    )
    first: int = Field(default=10, gt=0, le=1_000_000, description="episodes with random arms, at the start")
    together: int = Field(default=1, gt=0, le=10_000, description="episodes between two fits, run in parallel")
    explore: float = Field(
        default=0.2, gt=0, le=1, description="share of the episodes over which epsilon falls from 1 to 0"
    )
    confidence: float = Field(default=1.0, ge=0, le=1e6, description="c of ucb")
    networks: int = Field(default=8, gt=1, le=1000, description="networks per slot's ensemble")
    width: int = Field(default=16, gt=0, le=4096, description="width of both hidden layers")
    fit_steps: int = Field(default=30, gt=0, le=100_000, description="steps of Adam per fit")
    learning_rate: Rate = 1e-2

    @model_validator(mode="after")
    def _nothing_to_choose(self) -> Self:
        if self.candidates is not None:
            raise ValueError("prompt_bandit chooses by the episodes' returns: leave out candidates")
        return self


class RewardModels:
    """One ensemble of networks per slot: features of an arm -> reward, standardised by the rewards so far."""

    def __init__(self, features: Tensor, params: Params, seed: int):
        # (arms, d), each feature standardised; constant ones become 0
        self.features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
        self.count = params.slots * params.networks  # networks of all slots, slot by slot
        self._generator = generator_of(seed, 0)
        sizes = [self.features.shape[1], params.width, params.width, 1]
        self._weights = []
        for inputs, outputs in pairwise(sizes):
            weight = torch.randn(self.count, inputs, outputs, generator=self._generator) * (2 / inputs) ** 0.5
            self._weights += [weight.requires_grad_(True), torch.zeros(self.count, 1, outputs, requires_grad=True)]
        self._optimizer = torch.optim.Adam(self._weights, lr=params.learning_rate)
        self._shape = params.slots, params.networks
        self._steps = params.fit_steps
        self._arms = torch.empty(0, params.slots, dtype=torch.long)
        self._rewards = torch.empty(0)
        self._bootstrap = torch.empty(self.count, 0)

    def _predict(self, x: Tensor) -> Tensor:
        """Features (count, n, d) -> rewards (count, n)."""
        for layer in range(0, len(self._weights), 2):
            x = torch.baddbmm(self._weights[layer + 1], x, self._weights[layer])
            x = x.relu() if layer + 2 < len(self._weights) else x
        return x.squeeze(-1)

    @torch.no_grad()
    def predictions(self) -> Tensor:
        """Each network's prediction for each arm: (slots, networks, arms)."""
        return self._predict(self.features.expand(self.count, -1, -1)).unflatten(0, self._shape)

    def fit(self, arms: np.ndarray, rewards: np.ndarray) -> float:
        """Add the rewards (n,) of n choices of arms (n, slots) and refit; returns the loss."""
        self._arms = torch.cat((self._arms, torch.from_numpy(arms)))
        self._rewards = torch.cat((self._rewards, torch.from_numpy(rewards).float()))
        added = torch.empty(self.count, len(arms)).exponential_(generator=self._generator)
        self._bootstrap = torch.cat((self._bootstrap, added), dim=1)
        scaled = (self._rewards - self._rewards.mean()) / self._rewards.std(correction=0).clamp(min=1e-6)
        x = self.features[self._arms.T]  # (slots, n, d)
        x = x.repeat_interleave(self._shape[1], dim=0)  # (count, n, d)
        loss = torch.empty(0)
        for _ in range(self._steps):
            self._optimizer.zero_grad()
            loss = (self._bootstrap * (self._predict(x) - scaled).square()).mean()
            loss.backward()
            self._optimizer.step()
        return float(loss.detach())


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Run the episodes, then return the best prompt for every evaluated episode."""
    length, rest = divmod(plm.policy.config.prompt_length, params.slots)
    if rest or not length:
        raise PipelineError(
            f"{run.title}: slots: a prompt of {plm.policy.config.prompt_length} steps cannot be split into "
            f"{params.slots} equal parts"
        )
    arms = cut(target.data, length)
    passes = len(arms) if params.features == "hidden" else 0
    models = RewardModels(_features(plm, arms, params), params, run.seed)
    rng = np.random.default_rng([run.seed, 1])
    rows: list[dict[str, float]] = []
    with run.simulation(params.episodes) as simulation:
        while simulation.episodes < params.episodes:
            done = simulation.episodes
            count = min(params.first - done if done < params.first else params.together, params.episodes - done)
            chosen = np.stack([_choose(models, params, len(arms), done + i, rng) for i in range(count)])
            returns = simulation.run(_actors(plm, arms, chosen), target.target_return).returns
            loss = models.fit(chosen, returns)
            rows.append({"step": simulation.episodes, "loss": loss, "return": float(returns.mean())})
            run.progress(run.title, simulation.episodes, params.episodes, f"return {rows[-1]['return']:.3f}")
    final = models.predictions().mean(1).argmax(1).numpy()  # (slots,)
    return Prompted(
        prompts=assemble(arms, np.repeat(final[None], params.prompts, axis=0)),
        history=History(rows),
        cost=Cost(tuned_parameters=sum(weight.numel() for weight in models._weights), plm_forward=passes),
    )


def _choose(models: RewardModels, params: Params, arms: int, episode: int, rng: np.random.Generator) -> np.ndarray:
    """One arm per slot (slots,), for episode number `episode`."""
    at_random = rng.integers(0, arms, params.slots)
    if episode < params.first:
        return at_random
    predicted = models.predictions()  # (slots, networks, arms)
    if params.strategy == "thompson":
        drawn = rng.integers(0, params.networks, params.slots)
        return predicted[np.arange(params.slots), drawn].argmax(1).numpy()
    if params.strategy == "ucb":
        return (predicted.mean(1) + params.confidence * predicted.std(1)).argmax(1).numpy()
    epsilon = max(0.0, 1 - episode / (params.explore * params.episodes))
    return np.where(rng.random(params.slots) < epsilon, at_random, predicted.mean(1).argmax(1).numpy())


def assemble(arms: Prompts, chosen: np.ndarray) -> Prompts:
    """Choices of arms (n, slots) -> n prompts: their segments, concatenated."""
    first = arms.select(chosen[:, 0])
    x0, y = (part[chosen].reshape(len(chosen), -1, part.shape[2]) for part in (arms.x0, arms.y))  # (n, slots H, .)
    return Prompts(x0, y, first.task_id, first.episode_id, first.start)


def _actors(plm: Pretrained, arms: Prompts, chosen: np.ndarray) -> Actors:
    return prompted(plm.policy, assemble(arms, chosen), plm.normalization)


def _features(plm: Pretrained, arms: Prompts, params: Params) -> Tensor:
    """Features (arms, d), on the CPU: the networks are too small for a GPU."""
    x0, y = prompt_tensors(arms, plm.normalization, plm.device)
    if params.features == "segment":
        return torch.cat((x0, y), dim=2).flatten(1).cpu()  # (arms, H * (channels + 2))
    return last_hidden_state(plm.policy, prompt_steps(x0, y, plm.normalization)).cpu()


@torch.no_grad()
def last_hidden_state(policy: PromptingDecisionTransformer, prompt: Steps) -> Tensor:
    """The PLM's hidden state (n, width) at the last action token of n prompts."""
    x = policy.norm_embedding(policy.embed_prompt(prompt))  # (n, 3H, width)
    mask, off = causal_mask(x.shape[1], x), Dropout(0.0)
    for block in policy.blocks:
        x = block(x, mask, off)
    return policy.norm_final(x[:, -1])
