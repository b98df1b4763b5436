"""What must hold of trajectories: each file is good in itself and of a known family, expert data reach their bars."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pd_pipeline.config import ParamsFile
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.storage import read_json
from pd_pipeline.trajectories.quality import EXPERT, missed_bars
from pd_pipeline.trajectories.reading import read_metadata, stream
from pd_pipeline.trajectories.schema import TrajectoryMetadata


class FileSummary(NamedTuple):
    """What a valid file holds."""

    metadata: TrajectoryMetadata
    episodes: int
    steps: int
    tasks: tuple[int, ...]
    """Those that have episodes in the file, sorted."""


def check_file(path: Path, families: Mapping[str, Family], new_task: int | None = None) -> FileSummary:
    """Check a whole file as a stream, in constant memory. Raises PipelineError where it is not valid.

    `new_task` may be in it, although the family does not know it.
    """
    metadata = read_metadata(path)
    if metadata.family not in families:
        known = ", ".join(sorted(families)) or "none"
        raise PipelineError(f"{path}: unknown family '{metadata.family}': known are {known}; add it to params.yaml")
    episodes, steps, tasks = 0, 0, set[int]()
    for batch in stream(path, family=families[metadata.family], new_task=new_task):
        episodes += int((batch.step == 0).sum())
        steps += len(batch.step)
        tasks |= {*np.unique(batch.task_id).tolist()}
    return FileSummary(metadata, episodes, steps, tuple(sorted(tasks)))


def valid(out: Path, params: ParamsFile, root: Path) -> dict[str, int]:
    """Steps in each file of an out of trajectories. Raises PipelineError where one is not good."""
    family = load_family(out.name, params.block(out.name, "environment"), root)
    return {file.name: check_file(file, {family.name: family}).steps for file in sorted(out.glob("*.parquet"))}


def expert_quality(out: Path, params: ParamsFile, root: Path) -> dict[str, float]:
    """Figures of an out's expert data. Raises PipelineError where they are below the family's bars."""
    family = load_family(out.name, params.block(out.name, "environment"), root)
    summary = read_json(out / "summary.json")
    if missed := missed_bars(summary, family.expert_bars):
        raise PipelineError(f"{out / 'expert.parquet'}: {'; '.join(missed)}: train or script a better policy")
    names = ("return_mean", "success_rate", "early_ends", "coverage")
    return {name: summary[EXPERT][name] for name in names if summary.get(EXPERT, {}).get(name) is not None}
