"""What an import reads, whatever the format: tasks, and whole episodes task by task."""

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from pd_pipeline import __version__
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import digest
from pd_pipeline.trajectories.reading import DAMAGE
from pd_pipeline.trajectories.schema import TrajectoryMetadata, parse_metadata

EXTRA = "pd_pipeline"
"""Under this name an export keeps what its format has no place for: the metadata, as JSON."""


@dataclass(frozen=True)
class Steps:
    """One episode of T steps, as its source has it."""

    number: int
    """Its number among those of its task."""
    observation: np.ndarray  # (T, d_s) before the action
    action: np.ndarray  # (T, d_a)
    reward: np.ndarray | None  # (T,)
    success: np.ndarray | None  # (T,) bool
    terminated: bool
    """Whether the task ended the episode, and not its recording or a time limit."""


class Part(NamedTuple):
    """Numbers that are a part of every observation."""

    name: str
    size: int

    def __str__(self) -> str:
        """`joints [7]`."""
        return f"{self.name} [{self.size}]"


class Source(ABC):
    """One data set of one quality."""

    format: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    """That read it, besides NumPy."""
    name: str
    """As the user named it."""
    dataset: str | None = None
    """Its id, if it has one."""
    files: Sequence[Path]
    """All that is read of it."""
    observation: Sequence[Part]
    """Parts of an observation, in the order in which they are put together."""
    action_size: int
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    """Lower and upper bounds (d_a,) of actions, if the source states them."""
    horizon: int
    """Steps of the longest episode, or what the source states."""
    goals: dict[int, dict[str, Any]]
    """Task, as the source numbers it, -> its goal; may be empty."""
    episode_count: int
    has_reward: bool = True
    has_success: bool = False
    mapped: Sequence[str] = ()
    """What becomes what, in words."""
    left_out: Sequence[str] = ()
    """What the source holds beyond that, in words."""
    removed: Collection[str] = ()
    """Parts of an observation that were asked to be left out."""
    stated: TrajectoryMetadata | None = None
    """The metadata of trajectories of this pipeline that were exported."""

    @property
    def observation_size(self) -> int:
        """Width d_s of an observation."""
        return sum(part.size for part in self.observation)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what reads it."""
        return {"pd-pipeline": __version__, "numpy": np.__version__} | {name: version(name) for name in self.packages}

    def digest(self) -> str:
        """SHA-256 of the names and contents of its files."""
        folder = Path(os.path.commonpath([file.parent for file in self.files]))
        parts: list[str | Path] = []
        for file in self.files:
            parts += [file.relative_to(folder).as_posix(), file]
        return digest(*parts)

    def episodes(self, task: int) -> Iterator[Steps]:
        """The episodes of a task, one at a time, their numbers rising. Raises PipelineError for damaged ones."""
        with reading(self.name):
            yield from self._episodes_of(task)

    @abstractmethod
    def _episodes_of(self, task: int) -> Iterator[Steps]: ...

    def actions(self) -> Iterator[np.ndarray]:
        """All actions, in pieces (n, d_a). Raises PipelineError for damaged ones."""
        with reading(self.name):
            yield from self._actions()

    def _actions(self) -> Iterator[np.ndarray]:
        for task in self.goals:
            for steps in self._episodes_of(task):
                yield steps.action


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn what readers of other programs' data raise where these are damaged into one line."""
    try:
        yield
    except PipelineError:
        raise
    except (*DAMAGE, AttributeError, AssertionError, NotImplementedError, StopIteration) as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PipelineError(f"{source}: damaged, or not as its format says it is: {said}") from None


def needed(package: str, source: str) -> Any:
    """Import an optional package. Raises PipelineError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise PipelineError(
            f"{source}: {package} is not installed: pip install 'pd-pipeline[data]', or in a checkout "
            "pip install -c constraints.txt -e '.[data]'"
        ) from None


def stated_metadata(source: str, text: str | bytes | None) -> TrajectoryMetadata | None:
    """The metadata that an export kept as JSON. Raises PipelineError if it is damaged."""
    return None if text is None else parse_metadata(source, text.encode() if isinstance(text, str) else text)


def refuse_discrete(source: str, found: object) -> None:
    """Raise PipelineError: actions are no vectors of real numbers."""
    raise PipelineError(
        f"{source}: actions are {found}: this pipeline learns continuous actions, vectors of numbers within bounds; "
        "data sets with discrete actions cannot be imported"
    )
