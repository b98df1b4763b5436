"""Stage target_data: the trajectories of one target task, those collected and those that users brought.

Only this stage reads what users brought, so that new data of a target concerns this target alone: neither pre-training
nor other targets depend on it.

    <quality>.parquet           the collected episodes, then the accepted ones in the order of arrival, renumbered
    other/<quality>.parquet     the collected episodes of another task, for methods that are shown these
    origin.json                 the accepted files: their digests, and which episodes are theirs
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family
from pd_pipeline.incoming import store
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import write_json
from pd_pipeline.trajectories.reading import open_file, stream, write
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns

OTHER = "other"
ORIGIN = "origin.json"


class Params(Parameters):
    """There is nothing to set."""


def run(context: StageContext) -> dict[str, Any]:
    """Write the target's trajectories, one file per quality."""
    family, task = context.family, context.task
    collected = {file.stem: file for file in sorted(context.inputs["trajectories"].glob("*.parquet"))}
    of_target = {name: file for name, file in collected.items() if task in _goals(file)}
    accepted: dict[str, list[Path]] = {}
    for file in store.files(context.root, family.name, task):
        accepted.setdefault(store.received(file).quality, []).append(file)
    origin: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for done, quality in enumerate(qualities := sorted({*of_target, *accepted})):
        context.progress(f"target_data {context.key}", done, len(qualities), quality)
        numbering = _Numbering()
        parts = _parts(family, task, of_target.get(quality), accepted.get(quality, ()), numbering, origin)
        first = of_target.get(quality) or accepted[quality][0]
        write(context.out / f"{quality}.parquet", _metadata(family, task, first), parts)
        counts[quality] = numbering.next
    if (other := other_task(family, task)) is not None:
        for quality, file in collected.items():
            rows = stream(file, [other], family)
            write(context.out / OTHER / f"{quality}.parquet", _metadata(family, other, file), rows)
    write_json(context.out / ORIGIN, {"accepted": origin})
    return {f"episodes_{quality}": count for quality, count in counts.items()}


def other_task(family: Family, task: int) -> int | None:
    """The target after `task`, cyclically; with a single target, the first training task. None if there is no other."""
    targets = family.test_tasks
    following = targets[(targets.index(task) + 1) % len(targets)] if task in targets else targets[0]
    return next((other for other in (following, *family.train_tasks) if other != task), None)


class _Numbering:
    """Numbers episodes in the order in which they come."""

    def __init__(self) -> None:
        self.next = 0

    def renumbered(self, batch: Columns) -> Columns:
        """The batch with running numbers of episodes; an episode may reach over several batches."""
        begun = np.cumsum(batch.step == 0)
        numbers = self.next - 1 + begun
        self.next += int(begun[-1]) if len(begun) else 0
        return replace(batch, episode_id=numbers.astype(np.int64))


def _parts(
    family: Family,
    task: int,
    collected: Path | None,
    accepted: list[Path] | tuple[()],
    numbering: _Numbering,
    origin: list[dict[str, Any]],
) -> Iterator[Columns]:
    """The steps of one quality; adds where they come from to `origin`."""
    if collected is not None:
        for batch in stream(collected, [task], family):
            numbering.next = max(numbering.next, int(batch.episode_id[-1]) + 1) if len(batch.step) else numbering.next
            if len(batch.step):
                yield batch
    for file in accepted:
        first, known = numbering.next, store.received(file)
        for batch in stream(file, family=family, new_task=task):
            yield numbering.renumbered(batch)
        origin.append(
            known.model_dump(include={"quality", "digest", "source", "received"})
            | {"file": file.name, "first_episode": first, "episodes": numbering.next - first}
        )


def _goals(file: Path) -> dict[int, dict[str, Any]]:
    opened = open_file(file)
    opened.file.close()
    return opened.metadata.goals


def _metadata(family: Family, task: int, file: Path) -> TrajectoryMetadata:
    """The metadata of `file`, for one of its tasks."""
    opened = open_file(file, family, task)
    opened.file.close()
    goals = opened.metadata.goals
    if task not in goals:
        raise PipelineError(f"{file}: holds no goal of task {task}: run stage trajectories again")
    return opened.metadata.model_copy(update={"goals": {task: goals[task]}})
