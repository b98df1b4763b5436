"""Bandits over prompts (arXiv 2502.06358): which of n arms makes the best prompt, by the returns of episodes.

A prompt has J slots, and each slot is filled by one of the arms. The reward of a choice is the return of an episode in
the target's environment. Each slot has a reward model, which predicts from an arm's features the return of a prompt
with it: an ensemble of small networks, refitted after every episode, each with its own bootstrap weights and added to a
fixed random network of its own (randomised prior functions, Osband, Aslanides and Cassirer 2018), so that they agree
where there is much data and differ where there is little. Arms are chosen by

    epsilon_greedy  the largest ensemble mean, or with probability epsilon a random arm; epsilon falls from 1 to 0
    ucb             the largest mean + c * standard deviation of the ensemble
    thompson        the best arm of one network, drawn for each episode
    round_robin     all arms in turn, without a reward model; further slots in an order of their own

and at the end each slot keeps the arm with the largest mean: of the ensemble, or with round_robin of its own returns.
The slots' models know nothing of each other, so the arms that they would keep may never have acted together. Therefore
the last episodes may be put aside (`confirm`): in these the choices that promise most act in turn, that of the largest
means and of those that were tried the best, and the one with the highest mean return is kept.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.acting.actors import prompted
from pd_pipeline.compute import generator_of
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.training.loop import History, Rate
from pd_pipeline.tuning.confirming import ConfirmParams
from pd_pipeline.tuning.protocol import Pretrained, Run


class BanditParams(ConfirmParams):
    """How arms are chosen, and how their rewards are predicted."""

    strategy: Literal["epsilon_greedy", "ucb", "thompson", "round_robin"] = "thompson"
    episodes: int = Field(default=250, gt=0, le=1_000_000, description="per target, in its environment")
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
    prior: float = Field(default=0.0, ge=0, le=1000, description="scale of each network's fixed random prior")
    finalists: int = Field(default=5, gt=0, le=1000, description="choices that confirm tries, in turn")


class RewardModels:
    """One ensemble of networks per slot: features of an arm -> reward, standardised by the rewards so far."""

    def __init__(self, features: Tensor, slots: int, params: BanditParams, seed: int):
        # (arms, d), each feature standardised; constant ones become 0
        self.features = (features - features.mean(0)) / features.std(0, correction=min(1, len(features) - 1)).clamp(
            min=1e-6
        )
        self.count = slots * params.networks  # networks of all slots, slot by slot
        self._generator = generator_of(seed, 0)
        self._sizes = [self.features.shape[1], params.width, params.width, 1]
        self._weights = [weight.requires_grad_(True) for weight in self._networks()]
        # (count, arms)
        self._prior = torch.zeros(self.count, len(features))
        if params.prior:
            self._prior = params.prior * forward(self._networks(), self.features.expand(self.count, -1, -1))
        self._optimizer = torch.optim.Adam(self._weights, lr=params.learning_rate)
        self._shape = slots, params.networks
        self._steps = params.fit_steps
        self._arms = torch.empty(0, slots, dtype=torch.long)
        self._rewards = torch.empty(0)
        self._bootstrap = torch.empty(self.count, 0)

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self._weights)

    def _networks(self) -> list[Tensor]:
        """Weights (count, inputs, outputs) and biases (count, 1, outputs) of `count` new networks, layer by layer."""
        weights = []
        for inputs, outputs in pairwise(self._sizes):
            drawn = torch.randn(self.count, inputs, outputs, generator=self._generator)
            weights += [drawn * (2 / inputs) ** 0.5, torch.zeros(self.count, 1, outputs)]
        return weights

    @torch.no_grad()
    def predictions(self) -> Tensor:
        """Each network's prediction for each arm: (slots, networks, arms)."""
        said = forward(self._weights, self.features.expand(self.count, -1, -1)) + self._prior
        return said.unflatten(0, self._shape)

    def fit(self, arms: np.ndarray, rewards: np.ndarray) -> float:
        """Add the rewards (n,) of n choices of arms (n, slots) and refit; returns the loss."""
        self._arms = torch.cat((self._arms, torch.from_numpy(arms)))
        self._rewards = torch.cat((self._rewards, torch.from_numpy(rewards).float()))
        added = torch.empty(self.count, len(arms)).exponential_(generator=self._generator)
        self._bootstrap = torch.cat((self._bootstrap, added), dim=1)
        scaled = (self._rewards - self._rewards.mean()) / self._rewards.std(correction=0).clamp(min=1e-6)
        x = self.features[self._arms.T]  # (slots, n, d)
        x = x.repeat_interleave(self._shape[1], dim=0)  # (count, n, d)
        chosen = self._arms.T.repeat_interleave(self._shape[1], dim=0)  # (count, n)
        wanted = scaled - self._prior.gather(1, chosen)
        loss = torch.empty(0)
        for _ in range(self._steps):
            self._optimizer.zero_grad()
            loss = (self._bootstrap * (forward(self._weights, x) - wanted).square()).mean()
            loss.backward()
            self._optimizer.step()
        return float(loss.detach())


def forward(weights: list[Tensor], x: Tensor) -> Tensor:
    """Apply networks with `weights`, as `RewardModels` draws them, to features (count, n, d): (count, n)."""
    for layer in range(0, len(weights), 2):
        x = torch.baddbmm(weights[layer + 1], x, weights[layer])
        x = x.relu() if layer + 2 < len(weights) else x
    return x.squeeze(-1)


class Played(NamedTuple):
    """What the episodes led to."""

    chosen: np.ndarray
    """The arm that each slot keeps, (slots,)."""
    history: History
    size: int
    """Weights of the reward models."""


def play(
    plm: Pretrained,
    arms: Prompts,
    features: Tensor,
    slots: int,
    target_return: float,
    params: BanditParams,
    run: Run,
) -> Played:
    """Run the episodes. `arms` of H steps have `features` (arms, d), and prompts have slots * H steps."""
    rng = np.random.default_rng([run.seed, 1])
    models = None if params.strategy == "round_robin" else RewardModels(features, slots, params, run.seed)
    tried, returns = np.empty((0, slots), int), np.empty(0)
    finalists = tried
    rows: list[dict[str, float]] = []
    with run.simulation(params.episodes) as simulation:
        while (done := simulation.episodes) < params.episodes:
            if done < params.searching:
                count = min(params.first - done if done < params.first else params.together, params.searching - done)
                episodes = range(done, done + count)
                if models is None:
                    chosen = np.stack([in_turn(slots, len(arms), episode, run.seed) for episode in episodes])
                else:
                    chosen = np.stack([choose(models, params, len(arms), episode, rng) for episode in episodes])
            else:
                left = params.episodes - done  # each finalist acts again: one lucky return would beat means of several
                finalists = promising(scores(models, tried, returns, len(arms)), tried, min(params.finalists, left))
                chosen = finalists[np.arange(left) % len(finalists)]
            # chosen: (n, slots)
            made = prompted(plm.policy, assemble(arms, chosen), plm.normalization)
            found = simulation.run(made, target_return).returns
            tried, returns = np.concatenate((tried, chosen)), np.concatenate((returns, found))
            row = {"step": simulation.episodes, "return": float(found.mean()), "best": float(returns.max())}
            if models is not None and not len(finalists):
                row["loss"] = models.fit(chosen, found)
            rows.append(row)
            run.progress(run.title, simulation.episodes, params.episodes, f"return {row['return']:.3f}")
    if len(finalists):
        means = [returns[(tried == finalist).all(1)].mean() for finalist in finalists]
        kept = finalists[int(np.argmax(means))]
    else:
        kept = scores(models, tried, returns, len(arms)).argmax(1)
    return Played(kept, History(rows), 0 if models is None else models.size)


def scores(models: RewardModels | None, tried: np.ndarray, returns: np.ndarray, arms: int) -> np.ndarray:
    """What each slot's arms promise, (slots, arms): the ensemble's mean, or without models that of its own returns.

    `tried` (n, slots) returned `returns` (n,). Without models an arm that was never tried promises -inf.
    """
    if models is not None:
        return models.predictions().mean(1).numpy()
    totals, counts = np.zeros((2, tried.shape[1], arms))
    for slot, picked in enumerate(tried.T):
        np.add.at(totals[slot], picked, returns)
        np.add.at(counts[slot], picked, 1)
    return np.divide(totals, counts, out=np.full_like(totals, -np.inf), where=counts > 0)


def promising(promised: np.ndarray, tried: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` different choices (m, slots): the best arm of each slot, then those tried that promise most.

    A choice promises the sum of what its arms do: `promised` is (slots, arms), `tried` (n, slots).
    """
    best = promised.argmax(1)
    others = np.unique(tried[(tried != best).any(1)], axis=0)
    sums = np.take_along_axis(promised, others.T, axis=1).sum(0)  # (m,)
    return np.concatenate((best[None], others[np.argsort(-sums, kind="stable")[: count - 1]]))


def choose(models: RewardModels, params: BanditParams, arms: int, episode: int, rng: np.random.Generator) -> np.ndarray:
    """One arm per slot (slots,), for episode number `episode`."""
    slots = models.count // params.networks
    at_random = rng.integers(0, arms, slots)
    if episode < params.first:
        return at_random
    predicted = models.predictions()  # (slots, networks, arms)
    if params.strategy == "thompson":
        drawn = rng.integers(0, params.networks, slots)
        return predicted[np.arange(slots), drawn].argmax(1).numpy()
    if params.strategy == "ucb":
        return (predicted.mean(1) + params.confidence * predicted.std(1)).argmax(1).numpy()
    epsilon = max(0.0, 1 - episode / (params.explore * params.episodes))
    return np.where(rng.random(slots) < epsilon, at_random, predicted.mean(1).argmax(1).numpy())


def in_turn(slots: int, arms: int, episode: int, seed: int) -> np.ndarray:
    """One arm per slot (slots,): every arm once per round, by number in the first slot, shuffled in the others.

    So slots do not always show the same arm together.
    """
    turn, place = divmod(episode, arms)
    shuffled = [np.random.default_rng([seed, slot, turn]).permutation(arms)[place] for slot in range(1, slots)]
    return np.array([place, *shuffled])


def flat_features(x0: Tensor, y: Tensor) -> Tensor:
    """The numbers of prompts x0 (n, H, channels), y (n, H, 2) in a row: (n, H (channels + 2)), on the CPU."""
    return torch.cat((x0, y), dim=2).flatten(1).cpu()


def assemble(arms: Prompts, chosen: np.ndarray) -> Prompts:
    """Choices of arms (n, slots) -> n prompts: their segments, concatenated."""
    first = arms.select(chosen[:, 0])
    x0, y = (part[chosen].reshape(len(chosen), -1, part.shape[2]) for part in (arms.x0, arms.y))  # (n, slots H, .)
    return Prompts(x0, y, first.task_id, first.episode_id, first.start)
