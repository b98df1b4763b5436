"""Trajectories to export, and imports of tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pd_pipeline.exchange.formats import WRITERS, module
from pd_pipeline.exchange.importing import bring
from pd_pipeline.exchange.mapping import Asked
from pd_pipeline.progress import silent
from pd_pipeline.trajectories.episodes import Episode, episodes
from pd_pipeline.trajectories.reading import read_metadata, return_to_go, stream, write
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns
from tests.builders import metadata

FAMILY = "robot"
OUTS = {"minari": "robot/expert-v0", "lerobot": "robot_lerobot", "d4rl": "robot.hdf5"}
"""Format -> where its export goes."""


def steps(task: int, number: int, length: int, terminated: bool, d_s: int = 3, d_a: int = 2) -> Columns:
    """One episode, a pure function of its task and number."""
    rng = np.random.default_rng([task, number])
    reward = rng.normal(size=length).astype(np.float32)
    last = np.arange(length) == length - 1
    return Columns(
        task_id=np.full(length, task, np.int32),
        episode_id=np.full(length, number, np.int64),
        step=np.arange(length, dtype=np.int32),
        observation=rng.normal(size=(length, d_s)).astype(np.float32),
        action=rng.uniform(-1, 1, (length, d_a)).astype(np.float32),
        reward=reward,
        return_to_go=return_to_go(reward),
        terminated=last & terminated,
        truncated=last & (not terminated),
        success=rng.random(length) < 0.2,
    )


ALL = [steps(2, 0, 5, False), steps(2, 7, 9, True), steps(2, 8, 1, True), steps(5, 0, 4, False), steps(5, 3, 7, False)]
"""Tasks and episodes with gaps in their numbers, ends of both kinds, and an episode of one step."""


def about(**changes: Any) -> TrajectoryMetadata:
    """Metadata of `ALL`."""
    values = {"quality": "medium", "goals": {2: {"position": [0.1, 2.0]}, 5: {"words": "stack"}}, "seed": 3}
    return metadata(**(values | {"environment": {"tasks": 6, "split": None}} | changes))


def trajectory_file(path: Path, **changes: Any) -> Path:
    """`ALL` as a file of this pipeline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, about(**changes), ALL)
    return path


def exported(named: str, folder: Path, source: Path) -> Path:
    """A trajectory file in another format."""
    out = folder / OUTS[named]
    out.parent.mkdir(parents=True, exist_ok=True)
    module(WRITERS[named]).write(out, read_metadata(source), episodes(source), 10)
    return out


class Said(list[str]):
    """The lines that an import says."""

    def __contains__(self, text: object) -> bool:
        return any(str(text) in line for line in self)


def imported(root: Path, source: Path | str, family: str = FAMILY, **asked: Any) -> tuple[list[Path], Said]:
    """Import a source for a family; returns the new files and what was said."""
    said = Said()
    named, out = asked.pop("format", None), asked.pop("out", None)
    made = bring(root, str(source), family, Asked.model_validate(asked), out, named, silent, said.append)
    return made, said


def every(path: Path) -> Columns:
    """All steps of a file."""
    batches = list(stream(path))
    return Columns(**{n: np.concatenate([getattr(b, n) for b in batches]) for n in Columns.__dataclass_fields__})


def assert_same(one: Columns, other: Columns) -> None:
    """All columns are equal, to the bit."""
    for name in Columns.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def many(count: int, length: int = 1000) -> Iterator[Episode]:
    """Episodes of one task, made one at a time."""
    for number in range(count):
        yield Episode(0, number, Path(), steps(0, number, length, False, 10, 2))
