"""The accepted files of users: data/ingested/<family>/<task>/, kept as they came and never changed or removed.

    0001-expert.parquet     the file, numbered in the order of arrival
    0001-expert.json        what it holds and where it came from (`Received`)

The JSON is written first and the file moved last, so a file is there with its JSON or not at all.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from pd_pipeline.config import Name, Parameters
from pd_pipeline.storage import read_model

FOLDER = Path("data/ingested")
NEW = "-new"
"""Ends the name of the folder with the outs of new targets: those that only accepted files make known."""
_FILE = re.compile(r"\d{4,}-[\w-]+\.parquet")


class Received(Parameters):
    """What is known of an accepted file."""

    source: str = Field(max_length=4096, description="where it was dropped, relative to the project")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of its content")
    quality: Name
    episodes: int = Field(gt=0)
    copies: int = Field(default=0, ge=0, description="episodes that are copies of earlier ones of this target")
    steps: int = Field(gt=0)
    received: str = Field(max_length=40, description="UTC time of arrival, ISO 8601")


def folder(root: Path, family: str, task: int) -> Path:
    """Where the accepted files of a target are."""
    return root / FOLDER / family / str(task)


def files(root: Path, family: str, task: int) -> list[Path]:
    """The accepted files of a target in the order of arrival."""
    found = [path for path in folder(root, family, task).glob("*.parquet") if _FILE.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[0]))


def all_files(root: Path, family: str) -> list[Path]:
    """The accepted files of all targets of a family, by target."""
    folders = sorted((root / FOLDER / family).glob("*"))
    return [file for each in folders if each.name.isdecimal() for file in files(root, family, int(each.name))]


def received(file: Path) -> Received:
    """What is known of an accepted file. Raises PipelineError if its JSON is missing or damaged."""
    about = file.with_suffix(".json")
    move = f": move {file.name} back to the drop zone, where `pd-pipeline ingest` checks it again"
    return read_model(about, Received, move)


def targets(root: Path, family: str) -> dict[int, dict[str, int]]:
    """Task -> quality -> number of accepted episodes without copies, for all tasks of a family with accepted files."""
    found: dict[int, dict[str, int]] = {}
    tasks = [path.name for path in (root / FOLDER / family).glob("*") if re.fullmatch(r"0|[1-9]\d*", path.name)]
    for task in sorted(int(name) for name in tasks):
        counts: dict[str, int] = {}
        for file in files(root, family, task):
            known = received(file)
            counts[known.quality] = counts.get(known.quality, 0) + known.episodes - known.copies
        if counts:
            found[task] = counts
    return found


def lacking(target: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Quality -> (accepted, needed) trajectories, for those that a method still lacks for a new target.

    `target`: the `target` block of the method, complete; `counts`: quality -> number of accepted trajectories.
    """
    needed = target["few_shot"] or 1
    qualities = {target["quality"], target["prompt_quality"] or target["quality"]}
    return {name: (counts.get(name, 0), needed) for name in sorted(qualities) if counts.get(name, 0) < needed}


def next_name(root: Path, family: str, task: int, quality: str) -> Path:
    """The path for the next accepted file of a target."""
    numbers = [int(path.name.split("-")[0]) for path in files(root, family, task)]
    return folder(root, family, task) / f"{max(numbers, default=0) + 1:04d}-{quality}.parquet"
