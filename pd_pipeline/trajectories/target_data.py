"""Stage target_data: the trajectories of one target task, those collected and those that users brought.

Only this stage reads what users brought, so that new data of a target concerns this target alone: neither pre-training
nor other targets depend on it.

    <quality>.parquet           the collected episodes, then the accepted ones in the order of arrival, renumbered and
                                without copies of earlier ones
    other/<quality>.parquet     the collected episodes of another task, for methods that are shown these
    origin.json                 the accepted files: their digests, and which episodes are theirs
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from pd_pipeline.trajectories.contents import contents, last_episodes
from pd_pipeline.trajectories.copies import episode_digests, first_seen
from pd_pipeline.trajectories.reading import read_metadata, stream, write
from pd_pipeline.trajectories.schema import TrajectoryMetadata, limits_of
from pd_pipeline.trajectories.validation import Columns

OTHER = "other"
ORIGIN = "origin.json"


class Params(Parameters):
    """There is nothing to set."""


def run(context: StageContext) -> dict[str, Any]:
    """Write the target's trajectories, one file per quality."""
    family, task = context.family, context.task
    collected = {file.stem: file for file in sorted(context.inputs["trajectories"].glob("*.parquet"))}
    of_target = {name: file for name, file in collected.items() if task in read_metadata(file).goals}
    kept = _kept(context.root, family, task, of_target.values())
    accepted: dict[str, list[Path]] = {}
    for file in kept:
        accepted.setdefault(store.received(file).quality, []).append(file)
    origin: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for done, quality in enumerate(qualities := sorted({*of_target, *accepted})):
        context.progress(f"target_data {context.key}", done, len(qualities), quality)
        from_pipeline, from_users = of_target.get(quality), accepted.get(quality, [])
        if from_pipeline is None and not any(kept[file].any() for file in from_users):
            continue  # all are copies of episodes of another quality
        numbered = _numbered(task, from_pipeline, from_users, kept)
        path = context.out / f"{quality}.parquet"
        metadata = _metadata(family, task, from_pipeline or from_users[0])
        write(path, metadata, _parts(family, task, from_pipeline, numbered, kept))
        origin += [_origin(file, first, kept[file]) for file, first in numbered.items()]
        counts[quality] = len(contents(path).lengths[task])
    if (other := other_task(family, task)) is not None:
        for quality, file in collected.items():
            if other not in read_metadata(file).goals:
                continue  # a recorded family need not have every quality of every target
            rows = stream(file, [other], family)
            write(context.out / OTHER / f"{quality}.parquet", _metadata(family, other, file), rows)
    write_json(context.out / ORIGIN, {"accepted": origin})
    copies = sum(int((~each).sum()) for each in kept.values())
    return {f"episodes_{quality}": count for quality, count in counts.items()} | ({"copies": copies} if copies else {})


def other_task(family: Family, task: int) -> int | None:
    """The target after `task`, cyclically; with a single target, the first training task. None if there is no other."""
    targets = family.test_tasks
    following = targets[(targets.index(task) + 1) % len(targets)] if task in targets else targets[0]
    return next((other for other in (following, *family.train_tasks) if other != task), None)


def _kept(root: Path, family: Family, task: int, collected: Iterable[Path]) -> dict[Path, np.ndarray]:
    """Accepted file -> which of its episodes are no copies, neither of collected ones nor of earlier accepted ones.

    Collected ones stay as they are: where nothing is random, a simulator repeats itself.
    """
    files = store.files(root, family.name, task)
    known = (digest for file in collected for digest in episode_digests(file, [task], family)) if files else ()
    return first_seen({file: episode_digests(file, family=family, new_task=task) for file in files}, known)


def _numbered(
    task: int, collected: Path | None, accepted: Sequence[Path], kept: Mapping[Path, np.ndarray]
) -> dict[Path, int]:
    """Accepted file -> the number of its first episode in the out: they follow the collected ones and each other."""
    found: dict[Path, int] = {}
    following = last_episodes(collected)[task] + 1 if collected is not None and accepted else 0
    for file in accepted:
        found[file] = following
        following += int(kept[file].sum())
    return found


def _parts(
    family: Family, task: int, collected: Path | None, numbered: Mapping[Path, int], kept: Mapping[Path, np.ndarray]
) -> Iterator[Columns]:
    """The steps of one quality: the collected episodes as they are, then those kept of accepted files, renumbered."""
    if collected is not None:
        yield from (batch for batch in stream(collected, [task], family) if len(batch.step))
    for file, first in numbered.items():
        begun, number = 0, first - 1 + np.cumsum(kept[file])
        for batch in stream(file, family=family, new_task=task):
            places = begun + np.cumsum(batch.step == 0) - 1  # in the file; an episode may reach over several batches
            begun += int((batch.step == 0).sum())
            if (rows := kept[file][places]).any():
                yield replace(batch, episode_id=number[places]).select(rows)


def _origin(file: Path, first: int, kept: np.ndarray) -> dict[str, Any]:
    """Where an accepted file comes from, and which episodes are its own."""
    known = store.received(file)
    return known.model_dump(include={"quality", "digest", "source", "received"}) | {
        "file": file.name,
        "first_episode": first,
        "episodes": int(kept.sum()),
        "copies": int((~kept).sum()),
    }


def _metadata(family: Family, task: int, file: Path) -> TrajectoryMetadata:
    """The metadata of `file` for one of its tasks, with the family's bounds and horizon.

    Of a recorded family, a file that is joined with it may need more than `file` states.
    """
    metadata = read_metadata(file, family, task)
    if task not in metadata.goals:
        raise PipelineError(f"{file}: holds no goal of task {task}: run stage trajectories again")
    return metadata.model_copy(update={"goals": {task: metadata.goals[task]}} | limits_of(family))
