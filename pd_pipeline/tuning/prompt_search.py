"""Search for a prompt by return, without a demonstration of the target: a few episodes and a frozen PLM.

The pre-trained diffuser is a prior over the prompts of all tasks. Its DDIM chain is a function from noise z and a
condition y to a prompt, and the cross-entropy method (Rubinstein 1999) searches z for the prompt with the best return:

    first     segments of different training tasks act for an episode each; the chain run backwards gives their z
    rounds    `population` new ones are drawn around the `elites` best so far, z = mean + their spread + sigma * noise,
              and act for an episode each

All episodes so far compete for a place among the elites, so a bad round loses nothing. The prompt with the best return
is kept. As that may be luck, the last episodes (`confirm`) come one after the other: the best on average acts again
until it has acted `sure` times, and if it is the best even then, what is left goes on searching. Where starts hardly
matter that takes few of them. y is that of the best segment, and the target return the median return of the training
tasks: nothing is known of the target. `space` says what is searched: with `prompt` the numbers of the prompt itself;
`segments` only tries more training segments, one after the other, and `bandit` those that promise most (Thompson
sampling, see `bandit`). With `update: ranking` the new ones are drawn around a centre that moves along the direction of
Prompt-Tuning DT (see `ranking`), without its momentum.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.acting.actors import prompted
from pd_pipeline.compute import generator_of
from pd_pipeline.models.conditions import conditioned, for_target
from pd_pipeline.models.diffuser import encode, sample
from pd_pipeline.models.prompting import prompt_tensors, to_prompts
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.training.loop import History
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.bandit import BanditParams, assemble, flat_features, play
from pd_pipeline.tuning.confirming import ConfirmParams
from pd_pipeline.tuning.protocol import Pretrained, Run
from pd_pipeline.tuning.ranking import direction
from pd_pipeline.tuning.unseen import Unseen, UnseenParams

NEEDS = ("diffuser", "prompts")
ONLINE = True
DEMONSTRATIONS = False


class Params(UnseenParams, ConfirmParams):
    """What is searched, and how."""

    space: Literal["noise", "prompt", "segments", "bandit"] = Field(
        default="noise",
        description="what is searched: the diffuser's noise, the prompt itself, or training segments, one after the "
        "other or by a bandit",
    )
    first: int = Field(default=10, ge=0, le=1_000_000, description="training segments that are tried before the search")
    phase: float = Field(
        default=1.0, ge=0, le=1, description="where in its episode a training segment is: 0 the first one, 1 the last"
    )
    population: int = Field(default=10, gt=0, le=100_000, description="episodes between two updates, run in parallel")
    elites: int = Field(default=5, gt=1, le=100_000, description="best prompts so far that the next ones come from")
    sigma: float = Field(default=1.0, ge=0, le=100, description="standard deviation of the noise added")
    update: Literal["elites", "ranking"] = Field(
        default="elites", description="where the next ones come from: the elites, or a centre that ranking moves"
    )
    step_size: float = Field(default=1.0, gt=0, le=1e6, description="how far ranking moves its centre along g")
    chain: int = Field(default=10, gt=0, le=100_000, description="DDIM steps of the reverse chain")
    confirm: float = Field(
        default=0.2, ge=0, lt=1, description="share of the episodes, the last ones, that try the best prompt again"
    )
    sure: int = Field(
        default=4, gt=0, le=1_000_000, description="episodes of a prompt after which confirm does not try it again"
    )


class Tried(NamedTuple):
    """m prompts that have acted, normalised."""

    x0: Tensor  # (m, K*, channels)
    y: Tensor  # (m, K*, 2 or more): as the diffuser reads it
    z: Tensor  # (m, K*, channels): where they are in the space that is searched
    drawn: Tensor  # (m,): returns of their first episodes
    returns: Tensor  # (m,): means over their episodes
    episodes: Tensor  # (m,)

    def and_then(self, x0: Tensor, y: Tensor, z: Tensor, returns: Tensor) -> "Tried":
        """These, and others that acted for an episode each."""
        more = Tried(x0, y, z, returns, returns, torch.ones_like(returns))
        return Tried(*(torch.cat(pair) for pair in zip(self, more, strict=True)))

    def again(self, row: int, found: Tensor) -> "Tried":
        """After one of them has acted once more, with the return `found` (1,)."""
        returns, episodes = self.returns.clone(), self.episodes.clone()
        returns[row] = (returns[row] * episodes[row] + found[0]) / (episodes[row] + 1)
        episodes[row] += 1
        return self._replace(returns=returns, episodes=episodes)

    def best(self, sure: int = 1) -> int:
        """The one with the highest mean, of those that acted `sure` times, or of those that acted most."""
        enough = self.episodes >= min(sure, float(self.episodes.max()))
        return int(torch.where(enough, self.returns, -torch.inf).argmax())


def tune(plm: Pretrained, target: Unseen, params: Params, run: Run) -> Prompted:
    """Try training segments, search, and return the best prompt for every evaluated episode."""
    rows_of_phase = at_phase(target.training, params.phase)
    order = spread_over_tasks(target.training.task_id[rows_of_phase], np.random.default_rng([run.seed, 1]))
    segments = rows_of_phase[order]
    if params.space == "bandit":
        return try_arms(plm, target, target.training.select(segments), params, run)
    pool = start_from(plm, target, segments, params)
    tried = Tried(pool[0][:0], pool[1][:0], pool[0][:0], *pool[0].new_empty(3, 0))
    rows: list[dict[str, float]] = []
    with run.simulation(params.episodes) as simulation:

        def act(x0: Tensor, y: Tensor) -> Tensor:
            made = to_prompts(x0, y, plm.normalization, target.task)
            found = simulation.run(prompted(plm.policy, made, plm.normalization), target.target_return).returns
            best = max(rows[-1]["best"] if rows else -np.inf, float(found.max()))
            rows.append({"step": simulation.episodes, "return": float(found.mean()), "best": best})
            run.progress(run.title, simulation.episodes, params.episodes, f"best return {best:.3f}")
            return torch.from_numpy(found).to(x0)

        while (done := simulation.episodes) < params.searching:
            count = min(params.first - done if done < params.first else params.population, params.searching - done)
            x0, y, z = propose(plm, pool, tried, count, params, run.seed)
            tried = tried.and_then(x0, y, z, act(x0, y))
        while simulation.episodes < params.episodes:
            row = tried.best()
            if tried.episodes[row] < params.sure:
                tried = tried.again(row, act(tried.x0[row : row + 1], tried.y[row : row + 1]))
            else:
                x0, y, z = propose(plm, pool, tried, 1, params, run.seed)
                tried = tried.and_then(x0, y, z, act(x0, y))
    kept = torch.full((params.prompts,), tried.best(params.sure), device=plm.device)
    return Prompted(
        prompts=to_prompts(tried.x0[kept], tried.y[kept], plm.normalization, target.task),
        history=History(rows),
        cost=Cost(tuned_parameters=searched_numbers(tried, params)),
    )


def searched_numbers(tried: Tried, params: Params) -> int:
    """Numbers that a search can change: of the noise, or of a prompt without its rewards, which no policy reads."""
    if params.space == "segments":
        return 0
    return (tried.z[0] if params.space == "noise" else tried.z[0, :, :-1]).numel()


def try_arms(plm: Pretrained, target: Unseen, arms: Prompts, params: Params, run: Run) -> Prompted:
    """Let a bandit choose among training segments, and return the one that it expects most of."""
    features = flat_features(*prompt_tensors(arms, plm.normalization, plm.device))
    rounds = {"first": max(1, params.first), "together": params.population}
    budget = params.model_dump(include=set(ConfirmParams.model_fields))
    played = play(plm, arms, features, 1, target.target_return, BanditParams.model_validate(budget | rounds), run)
    return Prompted(
        prompts=assemble(arms, np.repeat(played.chosen[None], params.prompts, axis=0)),
        history=played.history,
        cost=Cost(tuned_parameters=played.size),
    )


def propose(
    plm: Pretrained, pool: tuple[Tensor, Tensor], tried: Tried, count: int, params: Params, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The next x0 (count, K*, channels), y (count, K*, 2) and z: segments of the `pool` first, then the search."""
    done = len(tried.returns)
    if done < params.first or params.space == "segments":
        rows = torch.arange(done, done + count, device=plm.device) % len(pool[0])
        x0, y = (part[rows] for part in pool)
        return x0, y, _encoded(plm, x0, y, params) if params.space == "noise" else x0
    best = tried.y[tried.returns[: params.first].argmax()] if params.first else pool[1][0]
    y = best.expand(count, -1, -1)
    z = draw(tried, count, params, generator_of(seed, done, plm.device))
    return _decoded(plm, z, y, params) if params.space == "noise" else z, y, z


def draw(tried: Tried, count: int, params: Params, generator: torch.Generator) -> Tensor:
    """New z (count, K*, channels) = mean + sum_j w_j (z_j - mean) / sqrt(e) + sigma * noise of e elites, w_j ~ N(0, 1).

    Their covariance is that of the elites, which five points in hundreds of dimensions hold exactly and a diagonal does
    not: prompts of neighbouring tasks differ in few directions. Before anything was tried, z ~ N(0, I). With ranking,
    z = centre + sigma * noise.
    """
    noise = torch.randn((count, *tried.z.shape[1:]), generator=generator, device=tried.z.device)
    if params.update == "ranking":
        return centre(tried, params) + params.sigma * noise
    if not len(tried.z):
        return noise
    elites = tried.z[tried.returns.argsort(descending=True, stable=True)[: params.elites]]  # (e, K*, channels)
    weights = torch.randn((count, len(elites)), generator=generator, device=noise.device) / len(elites) ** 0.5
    mean = elites.mean(0)
    return mean + torch.einsum("ne,ekc->nkc", weights, elites - mean) + params.sigma * noise


def centre(tried: Tried, params: Params) -> Tensor:
    """Where ranking is (K*, channels): from the best of the first, or from 0, moved along g of each round since.

    Those that `confirm` drew one by one are no round, and those that it tried again count with the returns that they
    had when they were drawn around it: neither moves it any more.
    """
    first, since = tried.z[: params.first], slice(params.first, max(params.first, params.searching))
    found = first[tried.drawn[: params.first].argmax()] if len(first) else torch.zeros(tried.z.shape[1:]).to(tried.z)
    rounds = tried.z[since].split(params.population), tried.drawn[since].split(params.population)
    for z, returns in zip(*rounds, strict=True):
        if len(z) > 1:
            found = found + params.step_size * direction((z - found)[None], -returns[None])[0]
    return found


def start_from(plm: Pretrained, target: Unseen, segments: np.ndarray, params: Params) -> tuple[Tensor, Tensor]:
    """x0 (n, K*, channels) and y (n, K*, 2 or more) of training segments, as the diffuser reads it if that is used."""
    if params.space != "noise":
        return prompt_tensors(target.training.select(segments), plm.normalization, plm.device)
    assert plm.diffuser is not None, "NEEDS names the diffuser"
    conditions = plm.diffuser[0].config.conditions
    x0, y = conditioned(target.training, conditions, plm.normalization, plm.device)  # of whole episodes, for the phase
    rows = torch.from_numpy(segments).to(plm.device)
    return x0[rows], for_target(y[rows], conditions, target.task)


def at_phase(prompts: Prompts, phase: float) -> np.ndarray:
    """One segment per training episode, the one that begins at `phase` of those that there are of it: rows (n,)."""
    chosen = []
    episodes = np.stack((prompts.task_id, prompts.episode_id), axis=1)
    for rows in np.split(np.arange(len(prompts)), np.flatnonzero((np.diff(episodes, axis=0) != 0).any(1)) + 1):
        chosen.append(rows[round(phase * (len(rows) - 1))])
    return np.array(chosen)


def spread_over_tasks(task_id: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order (n,) of prompts of these tasks (n,) in which every task comes once before any comes again."""
    order = rng.permutation(len(task_id))
    turn = np.zeros(len(order), np.int64)
    for task in np.unique(task_id):
        of_task = np.flatnonzero(task_id[order] == task)
        turn[of_task] = np.arange(len(of_task))
    return order[np.argsort(turn, kind="stable")]


@torch.no_grad()
def _decoded(plm: Pretrained, z: Tensor, y: Tensor, params: Params) -> Tensor:
    assert plm.diffuser is not None, "NEEDS names the diffuser"
    return sample(*plm.diffuser, z, y, params.chain)


@torch.no_grad()
def _encoded(plm: Pretrained, x0: Tensor, y: Tensor, params: Params) -> Tensor:
    assert plm.diffuser is not None, "NEEDS names the diffuser"
    return encode(*plm.diffuser, x0, y, params.chain)
