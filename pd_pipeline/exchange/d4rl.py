"""HDF5 in the layout of D4RL: flat arrays of N steps, episodes one after another.

    observations (N, d_s), actions (N, d_a), rewards (N,)
    terminals, timeouts (N,)              whether the episode ended with the step; the last one may lack its end
    infos/success (N,)                    if there is one

An export adds infos/task_id, infos/episode_id (N,) and metadata/pd_pipeline, which an import reads; where one of these
numbers changes, an episode ends too.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.source import EXTRA, Part, Source, Steps, needed, refuse_discrete, stated_metadata
from pd_pipeline.storage import atomic_file
from pd_pipeline.trajectories.episodes import Episode
from pd_pipeline.trajectories.schema import TrajectoryMetadata

FORMAT = "d4rl"
ROWS = 1 << 16
ENDINGS = (".hdf5", ".h5")
SIGNATURE = b"\x89HDF\r\n\x1a\n"
READ = ("observations", "actions", "rewards", "terminals", "timeouts")
INFOS = {"success": "infos/success", "task": "infos/task_id", "number": "infos/episode_id"}


def detect(source: str) -> bool:
    """Whether a path is an HDF5 file."""
    path = Path(source)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return source.endswith(ENDINGS) or file.read(len(SIGNATURE)) == SIGNATURE


def open_sources(source: str, without: tuple[str, ...]) -> "list[Source]":
    """The one data set of the file. Raises PipelineError."""
    return [D4RLSource(Path(source))]


class D4RLSource(Source):
    """One HDF5 file."""

    format = FORMAT
    packages = ("h5py",)

    def __init__(self, path: Path):
        self.name, self.files = str(path), [path]
        with self._open() as file:
            for name in ("observations", "actions"):
                if not hasattr(file.get(name), "shape"):
                    raise PipelineError(f"{path}: no array '{name}': a D4RL file holds {', '.join(READ)} of all steps")
            observations, actions = file["observations"], file["actions"]
            if actions.dtype.kind != "f" or actions.ndim != 2:
                refuse_discrete(str(path), f"{actions.dtype} of shape {actions.shape}")
            if observations.ndim != 2 or observations.dtype.kind not in "fiu":
                raise PipelineError(
                    f"{path}: observations are {observations.dtype} of shape {observations.shape}: each must be a "
                    "vector of numbers; images cannot be imported"
                )
            steps = len(observations)
            _refuse_other_shapes(path, file, steps)
            self.observation = [Part("observations", observations.shape[1])]
            self.action_size = actions.shape[1]
            self.has_reward, self.has_success = "rewards" in file, INFOS["success"] in file
            text = file.get(f"metadata/{EXTRA}")
            self.stated = stated_metadata(str(path), None if text is None else text[()])
            if not any(name in file for name in ("terminals", "timeouts", INFOS["task"], INFOS["number"])):
                raise PipelineError(f"{path}: no terminals and no timeouts: they say where an episode ends")
            self._ends = _ends(file, steps)  # (m,) row after the last of each episode
            if not len(self._ends):
                raise PipelineError(f"{path}: holds no steps")
            self._starts = np.concatenate(([0], self._ends[:-1]))
            self._tasks, self._numbers = self._identities(file)
            self.left_out = [*_left_out(file), *self._without_end(file)]
        self.horizon = int((self._ends - self._starts).max())
        self.episode_count = len(self._ends)
        goals = {} if self.stated is None else self.stated.goals
        self.goals = {task: goals.get(task, {}) for task in np.unique(self._tasks).tolist()}
        if self.stated is not None:
            self.horizon = self.stated.horizon
            self.bounds = tuple(np.array(b, np.float32) for b in (self.stated.action_low, self.stated.action_high))  # type: ignore[assignment]
        self.mapped = ["terminals -> terminated, timeouts -> truncated"]

    def _open(self) -> Any:
        h5py = needed("h5py", self.name)
        try:
            return h5py.File(self.files[0], "r")
        except OSError as error:
            raise PipelineError(f"{self.name}: not a readable HDF5 file: {error}") from None

    def _identities(self, file: Any) -> tuple[np.ndarray, np.ndarray]:
        """Task and number (m,) of every episode."""
        if INFOS["task"] not in file:
            return np.zeros(len(self._ends), np.int64), np.arange(len(self._ends))
        tasks = _picked(file[INFOS["task"]], self._starts)
        numbered = INFOS["number"] in file
        numbers = _picked(file[INFOS["number"]], self._starts) if numbered else np.arange(len(self._ends))
        return tasks.astype(np.int64), numbers.astype(np.int64)

    def _without_end(self, file: Any) -> list[str]:
        last = int(self._ends[-1]) - 1
        ended = any(bool(file[name][last]) for name in ("terminals", "timeouts") if name in file)
        missing = [name for name in ("terminals", "timeouts") if name not in file]
        found = [f"no {name} in the file: an episode ends where the others say so" for name in missing]
        return found + ([] if ended else ["the end of the last episode is not recorded: it is taken as truncated"])

    def _episodes_of(self, task: int) -> Iterator[Steps]:
        with self._open() as file:
            for row in np.flatnonzero(self._tasks == task):
                part = slice(int(self._starts[row]), int(self._ends[row]))
                yield Steps(
                    int(self._numbers[row]),
                    file["observations"][part].astype(np.float32),
                    file["actions"][part].astype(np.float32),
                    file["rewards"][part].astype(np.float32).reshape(-1) if self.has_reward else None,
                    file[INFOS["success"]][part].astype(bool).reshape(-1) if self.has_success else None,
                    "terminals" in file and bool(file["terminals"][part.stop - 1]),
                )

    def _actions(self) -> Iterator[np.ndarray]:
        with self._open() as file:
            for first in range(0, int(self._ends[-1]), ROWS):
                yield file["actions"][first : first + ROWS].astype(np.float32)


def _refuse_other_shapes(path: Path, file: Any, steps: int) -> None:
    """Raise PipelineError for an array that has not one row for each step, or not the numbers that it should."""
    for name in (name for name in (*READ, *INFOS.values()) if name in file):
        shape, kind = getattr(file[name], "shape", ()), getattr(getattr(file[name], "dtype", None), "kind", "")
        if not shape or shape[0] != steps:
            found = f"{shape[0]:,} steps" if shape else "no steps"
            raise PipelineError(f"{path}: {name} has {found}, but observations {steps:,}")
        if name not in ("observations", "actions") and shape not in ((steps,), (steps, 1)):
            raise PipelineError(f"{path}: {name} has shape {shape}: one number for each step is needed")
        integers = name in (INFOS["task"], INFOS["number"])
        if kind not in ("iu" if integers else "biuf"):
            wanted = "whole numbers" if integers else "numbers"
            raise PipelineError(f"{path}: {name} holds {file[name].dtype}, but {wanted} are needed")
        if integers and steps and int(_least(file[name])) < 0:
            raise PipelineError(f"{path}: {name} holds {_least(file[name])}: tasks and episodes are numbered from 0 on")


def _least(array: Any) -> int:
    return min(int(array[first : first + ROWS].min()) for first in range(0, len(array), ROWS))


def _ends(file: Any, steps: int) -> np.ndarray:
    """(m,) row after the last of each episode, where it ends or where the next row is of another one."""
    found = []
    for first in range(0, steps, ROWS):
        part = slice(first, min(first + ROWS, steps))
        ended = np.zeros(part.stop - part.start, bool)
        for name in ("terminals", "timeouts"):
            if name in file:
                ended |= file[name][part].astype(bool).reshape(-1)
        for name in (INFOS["task"], INFOS["number"]):
            if name in file:
                values = file[name][first : part.stop + 1].reshape(-1)  # with the row after these, if there is one
                changes = values[1:] != values[:-1]
                ended[: len(changes)] |= changes
        found.append(np.flatnonzero(ended) + first + 1)
    ends = np.concatenate(found) if found else np.empty(0, np.int64)
    return ends if not steps or (len(ends) and ends[-1] == steps) else np.append(ends, steps)


def _picked(array: Any, rows: np.ndarray) -> np.ndarray:
    """The values at sorted rows, read in pieces."""
    found = []
    for first in range(0, len(array), ROWS):
        inside = rows[(rows >= first) & (rows < first + ROWS)]
        found.append(array[first : first + ROWS][inside - first])
    return np.concatenate(found)


def _left_out(file: Any) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    known = {*READ, *INFOS.values(), f"metadata/{EXTRA}"}
    return [name for name in names if hasattr(file[name], "shape") and name not in known]


def write(out: Path, metadata: TrajectoryMetadata, episodes: Iterable[Episode], fps: int) -> None:
    """Write a file, one episode at a time."""
    h5py = needed("h5py", str(out))
    widths = {"observations": (metadata.observation_size,), "actions": (metadata.action_size,)}
    types: dict[str, Any] = {"terminals": bool, "timeouts": bool, INFOS["success"]: bool}
    types |= {INFOS["task"]: np.int32, INFOS["number"]: np.int64}
    with atomic_file(out) as temporary, h5py.File(temporary, "w") as file:
        for name in (*READ, *INFOS.values()):
            width = widths.get(name, ())
            chunk = max(1, ROWS // max(1, sum(width)))
            kind = types.get(name, np.float32)
            file.create_dataset(name, (0, *width), kind, maxshape=(None, *width), chunks=(chunk, *width))
        for episode in episodes:
            steps = episode.steps
            columns = dict(zip(READ, (steps.observation, steps.action, steps.reward), strict=False))
            timeouts = steps.truncated.copy()
            timeouts[-1] |= not steps.terminated[-1]  # else the file would not say that the episode ends here
            columns |= {"terminals": steps.terminated, "timeouts": timeouts, INFOS["success"]: steps.success}
            columns |= {INFOS["task"]: steps.task_id, INFOS["number"]: steps.episode_id}
            for name, values in columns.items():
                array = file[name]
                array.resize(len(array) + len(values), axis=0)
                array[-len(values) :] = values
        file[f"metadata/{EXTRA}"] = metadata.model_dump_json()
