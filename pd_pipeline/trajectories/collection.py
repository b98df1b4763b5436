"""Stage trajectories: behaviour policies act in worker processes; shards become one Parquet file per quality.

A shard is a few episodes of one task and quality, and a pure function of these and the seed: finished shards survive
a kill in the work folder, and the files do not depend on the number of workers. An episode is a pure function of
(seed, task, quality, episode) under a scripted policy. A learned policy acts for all episodes of a shard at once, so
there the last bits depend on their number.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from pydantic import Field

from pd_pipeline.config import PARAMS_FILE, Name, Parameters, Seed
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.families import border
from pd_pipeline.families.base import BatchPolicy, Family, Policy, load_family
from pd_pipeline.families.goal_policy import located
from pd_pipeline.progress import Progress
from pd_pipeline.storage import load_arrays, read_json, save_arrays
from pd_pipeline.trajectories.reading import return_to_go, write
from pd_pipeline.trajectories.schema import TrajectoryMetadata, metadata_of
from pd_pipeline.trajectories.validation import Columns, Validator
from pd_pipeline.workers import Workers, beat, cores


class EpisodeCount(Parameters):
    """Episodes per task of one quality."""

    train: int = Field(gt=0, le=1_000_000)
    test: int = Field(gt=0, le=1_000_000)


class TrajectoriesParams(Parameters):
    """How much is collected."""

    seed: Seed = 0
    workers: int | None = Field(default=None, ge=1, le=1024, description="processes; None: one per core")
    patience: float = Field(
        default=600.0, gt=0, le=86_400, description="seconds after which a worker that takes no step is killed"
    )
    episodes_per_shard: int = Field(default=20, gt=0, le=10_000)
    episodes: dict[Name, EpisodeCount] = {
        "expert": EpisodeCount(train=40, test=15),
        "medium": EpisodeCount(train=5, test=5),
        "random": EpisodeCount(train=5, test=5),
    }


class Shard(NamedTuple):
    """A unit of work: `episodes` episodes of one task and quality, numbered from `first`."""

    quality: str
    task: int
    first: int
    episodes: int

    def file(self, work: Path) -> Path:
        """Where its result is kept until all shards are done."""
        return work / f"{self.quality}-{self.task}-{self.first}-{self.episodes}.safetensors"


def plan(family: Family, params: TrajectoriesParams) -> list[Shard]:
    """All shards, in the order of the files."""
    shards = []
    for quality, count in params.episodes.items():
        for task in sorted({*family.train_tasks, *family.test_tasks}):
            episodes = count.train if task in family.train_tasks else count.test
            for first in range(0, episodes, params.episodes_per_shard):
                shards.append(Shard(quality, task, first, min(params.episodes_per_shard, episodes - first)))
    return shards


def refuse_without_policy(family: str, collected: Iterable[str], policies: Iterable[str]) -> None:
    """Raise PipelineError for a quality of `trajectories.episodes` that no policy of the family has."""
    known, where = list(policies), f"families.{family}"
    for quality in collected:
        if quality not in known:
            raise PipelineError(
                f"{PARAMS_FILE}: {where}.trajectories.episodes.{quality}: {where}.behavior_policies has no policy of "
                f"this quality: {suggestion(quality, known)} (or describe one in "
                f"{where}.behavior_policies.levels.{quality})"
            )


class Pool:
    """Environments of one family, reused from shard to shard where they can change their task."""

    def __init__(self, family: Family):
        self.family = family
        self._kept: list[gymnasium.Env] = []

    def of(self, task: int, count: int) -> list[gymnasium.Env]:
        """`count` environments of a task."""
        if not all([self.family.retarget(environment, task) for environment in self._kept]):
            self.close()
        while len(self._kept) < count:
            self._kept.append(border.make(self.family, task))
            beat()
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
    # where resets are deterministic, exploring starts make the episodes differ
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
    """Run one episode per environment, in lockstep; returns its columns up to each episode's end."""
    count, horizon = len(environments), family.horizon
    columns = {
        "observation": np.empty((count, horizon, family.observation_size), np.float32),
        "action": np.empty((count, horizon, family.action_size), np.float32),
        "reward": np.empty((count, horizon), np.float32),
        "terminated": np.zeros((count, horizon), bool),
        "success": np.zeros((count, horizon), bool),
    }
    together = policy if isinstance(policy, BatchPolicy) else None
    views = [
        [column[i] for column in columns.values()] for i in range(count)
    ]  # views, since indexing a row once is faster
    lengths, running = [horizon] * count, list(range(count))
    present = []
    for environment, rng in zip(environments, rngs, strict=True):
        present.append(border.reset(family, environment, seed=int(rng.integers(2**31)), options=options))
        beat()
    for step in range(horizon):
        if together is not None:
            seen = np.stack([present[i] for i in running])
            some = [environments[i] for i in running]
            chosen = border.act_together(family, together, some, seen, [rngs[i] for i in running])
        over = False
        for row, i in enumerate(running):
            environment = environments[i]
            alone = together is None
            action = border.act(family, policy, environment, present[i], rngs[i]) if alone else chosen[row]
            observation, actions, rewards, terminated, success = views[i]
            observation[step], actions[step] = present[i], action
            present[i], rewards[step], ended, truncated, success[step] = border.step(family, environment, action)
            terminated[step] = ended
            if ended or truncated:
                lengths[i], over = step + 1, True
        beat()
        if over:
            running = [i for i in running if lengths[i] > step + 1]
            if not running:
                break
    return [{name: column[i, : lengths[i]] for name, column in columns.items()} for i in range(count)]


class _Collector:
    """Collects one shard after another into files in `work`; answers with the number of steps of each."""

    def __init__(self, name: str, block: str, root: Path, params: TrajectoriesParams, work: Path, behaviors: str):
        family = load_family(name, json.loads(block), root)
        self._described, self._params, self._work = json.loads(behaviors), params, work
        # before the pool makes an environment: some simulators can exist only once in a process
        self._metadata = {quality: _metadata(family, quality, params) for quality in params.episodes}
        self._pool = Pool(family)

    def __call__(self, shard: Shard) -> int:
        arrays = collect_episodes(self._pool, self._described[shard.quality], shard, self._params.seed)
        # checked before it is saved: otherwise every later attempt would read the bad episode from the work folder
        validator = Validator(f"policy '{shard.quality}'", self._metadata[shard.quality])
        validator.feed(Columns(**arrays))
        validator.finish(np.array([shard.task]))
        save_arrays(shard.file(self._work), arrays)
        return len(arrays["step"])

    def close(self) -> None:
        """Close its environments."""
        self._pool.close()


def _metadata(family: Family, quality: str, params: TrajectoriesParams) -> TrajectoryMetadata:
    """The metadata of a quality's file."""
    return metadata_of(family, quality, {*family.train_tasks, *family.test_tasks}, params.seed)


def collect(
    family: Family,
    block: dict[str, Any],
    root: Path,
    policies: Path,
    params: TrajectoriesParams,
    out: Path,
    work: Path,
    progress: Progress,
    elsewhere: Callable[[Sequence[Shard]], Iterable[int]] | None = None,
) -> int:
    """Collect every quality into `out`/<quality>.parquet; returns the number of newly collected steps.

    `block` is the family's `environment` block of params.yaml, from which workers rebuild it; `policies` is the out
    of stage behavior_policies; `work` holds finished shards. Shards are collected by `elsewhere` if that is given, as
    they are by `collect_shards`.
    """
    refuse_without_policy(family.name, params.episodes, _behaviors(policies))
    shards = plan(family, params)
    todo = [shard for shard in shards if not shard.file(work).exists()]
    work.mkdir(parents=True, exist_ok=True)
    started, done, steps = time.monotonic(), len(shards) - len(todo), 0
    title = f"trajectories {family.name}"
    progress(title, done, len(shards))
    for length in (elsewhere or partial(collect_shards, family, block, root, policies, params, work))(todo):
        done, steps = done + 1, steps + length
        progress(title, done, len(shards), f"{steps / (time.monotonic() - started):,.0f} steps/s")
    for quality in params.episodes:
        some = [shard for shard in shards if shard.quality == quality]
        write(out / f"{quality}.parquet", _metadata(family, quality, params), _merged(work, some))
    return steps


def _behaviors(policies: Path) -> dict[str, Any]:
    """Quality -> what describes its policy."""
    return {quality: located(d, policies) for quality, d in read_json(policies / "policies.json").items()}


def collect_shards(
    family: Family,
    block: dict[str, Any],
    root: Path,
    policies: Path,
    params: TrajectoriesParams,
    work: Path,
    shards: Sequence[Shard],
) -> Iterator[int]:
    """Collect shards into files in `work`, in worker processes; yields the steps of each as it is done."""
    arguments = (family.name, json.dumps(block, sort_keys=True), root, params, work, json.dumps(_behaviors(policies)))
    workers = min(params.workers or cores(), max(len(shards), 1))
    if workers == 1 and not family.is_foreign:  # foreign code may hang, and only a separate process can be killed
        with closing(_Collector(*arguments)) as collector:
            yield from map(collector, shards)
        return
    with Workers(
        _Collector, [arguments] * workers, "trajectories", "lower trajectories.workers", params.patience
    ) as processes:
        yield from processes.spread(shards)


def _merged(work: Path, shards: list[Shard]) -> Iterator[Columns]:
    """One batch, and so one row group, per task: a reader of one task reads only its rows."""
    for task in sorted({shard.task for shard in shards}):
        parts = [load_arrays(shard.file(work))[0] for shard in shards if shard.task == task]
        yield Columns(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
