"""Minari data sets, by id or path, read and written through the `minari` package.

Of observations that are dictionaries or tuples, the parts that are vectors of numbers are put together in the order of
the observation space. Minari keeps one observation more than there are actions, the last one: an import leaves it out,
and an export repeats the one before it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.source import EXTRA, Part, Source, Steps, needed, refuse_discrete, stated_metadata
from pd_pipeline.storage import atomic_directory, read_json
from pd_pipeline.trajectories.episodes import Episode
from pd_pipeline.trajectories.schema import TrajectoryMetadata

FORMAT = "minari"
METADATA = "metadata.json"
EPISODES_AT_ONCE = 100  # what HDF5 remembers of an open file grows with the groups that were read
SUCCESS, TASK, NUMBER = "success", "task_id", "episode_id"
_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")


def detect(source: str) -> bool:
    """Whether a source is the folder of a data set, or the id of one that is not a path."""
    path = Path(source)
    return _data(path) is not None or (not path.exists() and _ID.fullmatch(source) is not None)


def _data(path: Path) -> Path | None:
    """The folder with the data of a data set at a path."""
    return next((folder for folder in (path / "data", path) if (folder / METADATA).is_file()), None)


def open_sources(source: str, without: tuple[str, ...]) -> "list[Source]":
    """The one data set. Raises PipelineError."""
    return [MinariSource(source, without)]


class MinariSource(Source):
    """One data set."""

    format = FORMAT
    packages = ("minari", "h5py")

    def __init__(self, source: str, without: tuple[str, ...]):
        self.name = source
        minari = needed("minari", source)
        needed("h5py", source)
        folder = _data(Path(source)) or self._local(source)
        try:
            self._minari = minari.MinariDataset(folder)
        except (ValueError, KeyError, AssertionError, OSError) as error:
            raise PipelineError(f"{source}: not a Minari data set that can be read: {error}") from None
        self.files = sorted(file for file in folder.rglob("*") if file.is_file())
        actions = self._minari.action_space
        if not isinstance(actions, gymnasium.spaces.Box) or actions.dtype.kind != "f":
            refuse_discrete(source, actions)
        self.action_size = int(np.prod(actions.shape))
        low, high = (bound.reshape(-1).astype(np.float32) for bound in (actions.low, actions.high))
        self.bounds = (low, high) if np.isfinite([low, high]).all() and (low < high).all() else None
        self._parts, self.left_out = _parts(self._minari.observation_space, (), without)
        self.removed = {name for name in without if f"{name} (as asked)" in self.left_out}
        self.observation = [Part("/".join(place) or "observation", size) for place, size in self._parts]
        if not self._parts:
            raise PipelineError(f"{source}: no observation is a vector of numbers: {'; '.join(self.left_out)}")
        about = read_json(folder / METADATA, ": not a Minari data set that can be read")
        self.dataset = str(about["dataset_id"])
        extra = about.get(EXTRA)
        self.stated = stated_metadata(source, None if extra is None else json.dumps(extra))
        self._episodes = self._index()
        self.episode_count = len(self._episodes)
        if not self.episode_count:
            raise PipelineError(f"{source}: holds no episodes")
        self.horizon = max(length for _, _, length in self._episodes)
        goals = {} if self.stated is None else self.stated.goals
        self.goals = {task: goals.get(task, {}) for task in sorted({task for task, _, _ in self._episodes})}
        if self.stated is not None:
            self.horizon = self.stated.horizon
        self.mapped = ["terminations -> terminated, truncations -> truncated"]
        self.left_out = [*self.left_out, "the observation after the last action of each episode"]
        everywhere = range(self.episode_count)
        recorded = (_success(episode) is not None for episode in self._read(everywhere))
        self.has_success = all(recorded)
        if isinstance(self._minari.observation_space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
            order = " + ".join(map(str, self.observation))
            self.mapped = [f"observation = {order}, put together in this order", *self.mapped]

    def _local(self, source: str) -> Path:
        from minari.storage.datasets_root_dir import get_dataset_path

        folder = _data(get_dataset_path(source))
        if folder is None:
            raise PipelineError(
                f"{source}: no such folder, and no Minari data set with this id on this machine: "
                f"`minari download {source}` gets one"
            )
        return folder

    def _index(self) -> list[tuple[int, int, int]]:
        """(task, number, steps) of every episode; task 0 where the data set knows none."""
        found = []
        metadata = self._minari.storage.get_episode_metadata(range(self._minari.total_episodes))
        for index, about in enumerate(metadata):
            task, number = (about.get(name) for name in (TASK, NUMBER))  # others may keep words under these names
            task = int(task) if isinstance(task, int | np.integer) else 0
            number = int(number) if isinstance(number, int | np.integer) else index
            found.append((task, number, int(about["total_steps"])))
        return found

    def _read(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        for first in range(0, len(indices), EPISODES_AT_ONCE):
            yield from self._minari.storage.get_episodes(indices[first : first + EPISODES_AT_ONCE])

    def _episodes_of(self, task: int) -> Iterator[Steps]:
        indices = [index for index, (of, _, _) in enumerate(self._episodes) if of == task]
        for index, episode in zip(indices, self._read(indices), strict=True):
            count = len(episode["rewards"])
            parts = [_vectors(episode["observations"], place, count) for place, _ in self._parts]
            yield Steps(
                self._episodes[index][1],
                np.concatenate(parts, axis=1),
                np.asarray(episode["actions"], np.float32).reshape(count, -1),
                np.asarray(episode["rewards"], np.float32),
                _success(episode) if self.has_success else None,
                bool(episode["terminations"][-1]),
            )


def _success(episode: Mapping[str, Any]) -> np.ndarray | None:
    """Whether each step succeeds, (T,) bool; None where that is not recorded as one flag for each."""
    count, found = len(episode["rewards"]), np.asarray((episode["infos"] or {}).get(SUCCESS))
    if found.dtype.kind not in "biuf" or found.ndim != 1 or len(found) not in (count, count + 1):
        return None
    return found.astype(bool)[-count:]  # infos begin with that of the reset


def _vectors(observations: Any, place: tuple[str, ...], count: int) -> np.ndarray:
    for name in place:
        observations = observations[int(name) if isinstance(observations, tuple) else name]
    return np.asarray(observations[:count], np.float32).reshape(count, -1)


Placed = list[tuple[tuple[str, ...], int]]
"""Place in the observation -> its numbers."""


def _parts(space: gymnasium.Space, place: tuple[str, ...], without: tuple[str, ...]) -> tuple[Placed, list[str]]:
    """The parts of an observation that are vectors of numbers, and descriptions of the others."""
    name = "/".join(place)
    if name and name in without:
        return [], [f"{name} (as asked)"]
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        inner = space.spaces.items() if isinstance(space, gymnasium.spaces.Dict) else enumerate(space.spaces)
        found: Placed = []
        left_out: list[str] = []
        for key, part in inner:
            more, others = _parts(part, (*place, str(key)), without)
            found, left_out = found + more, left_out + others
        return found, left_out
    picture = isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1
    if isinstance(space, gymnasium.spaces.MultiBinary) or (isinstance(space, gymnasium.spaces.Box) and not picture):
        return [(place, int(np.prod(space.shape)))], []
    return [], [f"{name or 'observation'} ({'an image' if picture else space})"]


def write(out: Path, metadata: TrajectoryMetadata, episodes: Iterable[Episode], fps: int) -> None:
    """Write a data set, one episode at a time. To load it by its id, `out` is that id below MINARI_DATASETS_PATH."""
    minari = needed("minari", str(out))
    needed("h5py", str(out))
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    size, low, high = metadata.observation_size, metadata.action_low, metadata.action_high
    identities: list[dict[str, int]] = []

    def buffers() -> Iterator[Any]:
        for episode in episodes:
            steps = episode.steps
            identities.append({TASK: episode.task, NUMBER: episode.number})
            yield EpisodeBuffer(
                observations=np.concatenate((steps.observation, steps.observation[-1:])),
                actions=steps.action,
                rewards=steps.reward,
                terminations=steps.terminated,
                truncations=steps.truncated,
                infos={SUCCESS: np.concatenate(([False], steps.success))},
            )

    with atomic_directory(out) as folder:
        storage = MinariStorage.new(
            folder / "data",
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32),
            action_space=gymnasium.spaces.Box(np.array(low, np.float32), np.array(high, np.float32)),
        )
        storage.update_metadata(
            {
                "dataset_id": dataset_id(out, metadata),
                "minari_version": minari.__version__,
                EXTRA: json.loads(metadata.model_dump_json()),
            }
        )
        storage.update_episodes(buffers())
        storage.update_episode_metadata(identities)


def dataset_id(out: Path, metadata: TrajectoryMetadata) -> str:
    """The id of an export: the last two folders of its path if they can be one, else family/quality-v0."""
    named = "/".join(out.resolve().parts[-2:])
    return named if _ID.fullmatch(named) else f"{metadata.family}/{metadata.quality}-v0"
