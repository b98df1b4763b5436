"""Stage trajectories: behaviour policies act in worker processes; shards become one Parquet file a quality.

A shard is a few episodes of one task and quality, a pure function of the seed and of what it is: finished shards
survive a kill in the work folder, and the files do not depend on the number of workers. An episode is a pure function
of (seed, task, quality, episode) under a scripted policy; under a learned one, which acts for all episodes of a shard
at once, its last bits depend on how many these are.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from pydantic import Field

from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import BatchPolicy, Family, Policy, load_family
from pd_pipeline.families.goal_policy import located
from pd_pipeline.progress import Progress
from pd_pipeline.storage import load_arrays, read_json, save_arrays
from pd_pipeline.trajectories.reading import return_to_go, write
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns
from pd_pipeline.workers import one_thread_each


class EpisodeCount(Parameters):
    """Episodes per task of one quality."""

    train: int = Field(gt=0)
    test: int = Field(gt=0)


class TrajectoriesParams(Parameters):
    """How much is collected."""

    seed: int = 0
    workers: int | None = Field(default=None, ge=1, description="processes; None: one a core")
    episodes_a_shard: int = Field(default=20, gt=0)
    episodes: dict[str, EpisodeCount] = {
        "expert": EpisodeCount(train=40, test=15),
        "medium": EpisodeCount(train=5, test=5),
        "random": EpisodeCount(train=5, test=5),
    }


class Shard(NamedTuple):
    """A piece of work: episodes first .. first + episodes of one task and quality."""

    quality: str
    task: int
    first: int
    episodes: int

    def file(self, work: Path) -> Path:
        """Where its result is kept until all are done."""
        return work / f"{self.quality}-{self.task}-{self.first}-{self.episodes}.safetensors"


def plan(family: Family, params: TrajectoriesParams) -> list[Shard]:
    """All shards, in the order of the files."""
    shards = []
    for quality, count in params.episodes.items():
        for task in sorted({*family.train_tasks, *family.test_tasks}):
            episodes = count.train if task in family.train_tasks else count.test
            for first in range(0, episodes, params.episodes_a_shard):
                shards.append(Shard(quality, task, first, min(params.episodes_a_shard, episodes - first)))
    return shards


class Pool:
    """Environments of one family, kept from shard to shard where they can change their task."""

    def __init__(self, family: Family):
        self.family = family
        self._kept: list[gymnasium.Env] = []

    def of(self, task: int, count: int) -> list[gymnasium.Env]:
        """`count` environments of a task."""
        if not all([self.family.retarget(environment, task) for environment in self._kept]):
            self.close()
        self._kept += [self.family.make(task) for _ in range(count - len(self._kept))]
        return self._kept[:count]

    def close(self) -> None:
        """Close them all."""
        for environment in self._kept:
            environment.close()
        self._kept = []


def collect_episodes(pool: Pool, behavior: dict[str, Any], shard: Shard, seed: int) -> dict[str, np.ndarray]:
    """Run one shard: arrays named like the columns, episodes one after another."""
    family = pool.family
    policy = family.behavior(behavior)
    environments = pool.of(shard.task, min(family.lanes, shard.episodes))
    # what a reset is told: where resets are deterministic, exploring starts are what makes episodes differ
    options = behavior.get("reset")
    numbers = range(shard.first, shard.first + shard.episodes)
    episodes: list[dict[str, np.ndarray]] = []
    for first in range(0, shard.episodes, len(environments)):
        some = numbers[first : first + len(environments)]
        rngs = [np.random.default_rng([seed, shard.task, *shard.quality.encode(), number]) for number in some]
        for number, steps in zip(
            some, side_by_side(family, policy, environments[: len(some)], rngs, options), strict=True
        ):
            length = len(steps["reward"])
            about: dict[str, np.ndarray] = {
                "task_id": np.full(length, shard.task, np.int32),
                "episode_id": np.full(length, number, np.int64),
                "step": np.arange(length, dtype=np.int32),
                "return_to_go": return_to_go(steps["reward"]),
                "truncated": np.append(np.zeros(length - 1, bool), not steps["terminated"][-1]),
            }
            episodes.append(steps | about)
    return {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}


def side_by_side(
    family: Family,
    policy: Policy,
    environments: Sequence[gymnasium.Env],
    rngs: Sequence[np.random.Generator],
    options: dict[str, Any] | None,
) -> list[dict[str, np.ndarray]]:
    """One episode in each environment, in step; the columns that the environments decide, without what was not run."""
    count, horizon = len(environments), family.horizon
    columns = {
        "observation": np.empty((count, horizon, family.observation_size), np.float32),
        "action": np.empty((count, horizon, family.action_size), np.float32),
        "reward": np.empty((count, horizon), np.float32),
        "terminated": np.zeros((count, horizon), bool),
        "success": np.zeros((count, horizon), bool),
    }
    together = policy.together if isinstance(policy, BatchPolicy) else None
    views = [[column[i] for column in columns.values()] for i in range(count)]  # a row by one index: it is what is fast
    lengths, running = [horizon] * count, list(range(count))
    present = [
        environment.reset(seed=int(rng.integers(2**31)), options=options)[0]
        for environment, rng in zip(environments, rngs, strict=True)
    ]
    for step in range(horizon):
        if together is not None:
            seen = np.stack([present[i] for i in running])
            chosen = together([environments[i] for i in running], seen, [rngs[i] for i in running])
        over = False
        for row, i in enumerate(running):
            environment = environments[i]
            action = chosen[row] if together is not None else policy(environment, present[i], rngs[i])
            observation, actions, rewards, terminated, success = views[i]
            observation[step], actions[step] = present[i], action
            present[i], rewards[step], ended, truncated, info = environment.step(action)
            terminated[step], success[step] = ended, bool(info.get("success", False))
            if ended or truncated:
                lengths[i], over = step + 1, True
        if over:
            running = [i for i in running if lengths[i] > step + 1]
            if not running:
                break
    return [{name: column[i, : lengths[i]] for name, column in columns.items()} for i in range(count)]


@lru_cache(maxsize=1)
def _worker_pool(name: str, block: str, root: Path) -> Pool:
    import json

    return Pool(load_family(name, json.loads(block), root))  # once a process: building a benchmark takes a second


def _work(name: str, block: str, root: Path, behavior: dict[str, Any], shard: Shard, seed: int, file: Path) -> int:
    arrays = collect_episodes(_worker_pool(name, block, root), behavior, shard, seed)
    save_arrays(file, arrays)
    return len(arrays["step"])


def collect(
    family: Family,
    block: dict[str, Any],
    root: Path,
    policies: Path,
    params: TrajectoriesParams,
    out: Path,
    work: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Collect every quality into `out`/<quality>.parquet and return the cost: steps, seconds, workers.

    `block` is the family's `environment` block of params.yaml, from which workers rebuild it; `policies` is the out
    of stage behavior_policies; `work` keeps finished shards.
    """
    behaviors = {quality: located(d, policies) for quality, d in read_json(policies / "policies.json").items()}
    if unknown := set(params.episodes) - set(behaviors):
        raise PipelineError(f"trajectories.episodes names {sorted(unknown)}, but policies are {sorted(behaviors)}")
    shards = plan(family, params)
    todo = [shard for shard in shards if not shard.file(work).exists()]
    work.mkdir(parents=True, exist_ok=True)
    workers = min(params.workers or os.cpu_count() or 1, max(len(todo), 1))
    began, done, steps = time.monotonic(), len(shards) - len(todo), 0
    title = f"trajectories {family.name}"
    progress(title, done, len(shards))
    text = _json(block)
    jobs = [(family.name, text, root, behaviors[s.quality], s, params.seed, s.file(work)) for s in todo]
    for length in _run(jobs, workers):
        done, steps = done + 1, steps + length
        progress(title, done, len(shards), f"{steps / (time.monotonic() - began):,.0f} steps/s")
    seconds = time.monotonic() - began
    goals = {task: family.goal(task) for task in sorted({*family.train_tasks, *family.test_tasks})}
    for quality in params.episodes:
        metadata = TrajectoryMetadata(
            family=family.name,
            quality=quality,
            observation_size=family.observation_size,
            action_low=tuple(family.action_low.tolist()),
            action_high=tuple(family.action_high.tolist()),
            horizon=family.horizon,
            seed=params.seed,
            goals=goals,
            environment=family.params.model_dump(mode="json"),
            versions=family.versions(),
        )
        write(out / f"{quality}.parquet", metadata, _merged(work, [s for s in shards if s.quality == quality]))
    return {"steps": steps, "seconds": seconds, "workers": workers}


def _run(jobs: list[tuple[Any, ...]], workers: int) -> Iterator[int]:
    if workers == 1:
        for job in jobs:
            yield _work(*job)
        return
    # spawn: the parent may hold threads (Dagster, torch) that a fork would copy half-way
    with one_thread_each(), ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_work, *job) for job in jobs]):
            yield future.result()


def _merged(work: Path, shards: list[Shard]) -> Iterator[Columns]:
    """One batch, and so one row group, a task: a reader of one task touches only its rows."""
    for task in sorted({shard.task for shard in shards}):
        parts = [load_arrays(shard.file(work))[0] for shard in shards if shard.task == task]
        yield Columns(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _json(block: dict[str, Any]) -> str:
    import json

    return json.dumps(block, sort_keys=True)
