"""An import into the drop zone: data/incoming/<family>/<task>/, for a target, also one with a simulator."""

from pathlib import Path
from typing import Any

from pd_pipeline import graph as graphs
from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.mapping import Asked
from pd_pipeline.incoming import drop_zone
from pd_pipeline.trajectories.schema import limits_of

Limits = dict[str, Any]
"""Sizes, bounds and horizon that a file must state, as `limits_of` gives them; empty: its own."""


def is_dropped(root: Path, folder: Path) -> bool:
    """Whether a folder is in the drop zone."""
    top = (root / drop_zone.FOLDER).resolve()
    return top in (inside := (root / folder).resolve()).parents or inside == top


def for_target(root: Path, family: str, folder: Path, asked: Asked) -> tuple[Asked, Limits]:
    """What is asked of an import into a folder of the drop zone, with the task of the folder; the family's limits.

    Raises PipelineError for what `pd-pipeline ingest` would not take.
    """
    parts = (root / folder).resolve().relative_to((root / drop_zone.FOLDER).resolve()).parts
    task = drop_zone.task_of(parts[1]) if len(parts) == 2 else None
    if task is None or parts[0] != family:
        raise PipelineError(
            f"--out {folder}: not a folder of a target of {family}: {drop_zone.FOLDER}/{family}/TASK is"
        )
    if asked.task not in (None, task):
        raise PipelineError(f"--task {asked.task}: --out {folder} is the folder of task {task}: give one of them alone")
    for name, bound in (("--action-low", asked.action_low), ("--action-high", asked.action_high)):
        if bound is not None:
            raise PipelineError(f"{name}: bounds of new data of a target are those of its family: leave it out")
    found = graphs.load(root).family(family)
    if task in found.train_tasks and task not in found.test_tasks:
        raise PipelineError(
            f"--out {folder}: task {task} is a training task of {family}, not a target: use another number"
        )
    return asked.model_copy(update={"task": task}), limits_of(found)
