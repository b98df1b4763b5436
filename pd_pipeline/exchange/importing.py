"""`pd-pipeline import`: a data set of another program becomes trajectories of a family without a simulator.

With a folder of the drop zone it becomes new data of a target (`exchange.drop`). The source is read episode by episode,
every step is checked as everywhere, and each of its data sets becomes one new file in data/imported/<family>/, complete
or not at all. Files that are there are never changed.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from pd_pipeline import config, locks
from pd_pipeline.config import PARAMS_FILE, Name, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.drop import Limits, for_target, is_dropped
from pd_pipeline.exchange.formats import open_sources
from pd_pipeline.exchange.mapping import ActionBounds, Asked, action_bounds, describe, refuse
from pd_pipeline.exchange.new_episodes import New, columns_of, new_episodes, present_in
from pd_pipeline.exchange.source import Source
from pd_pipeline.families.base import BY_NAME
from pd_pipeline.families.registry import BUILT_IN
from pd_pipeline.incoming import drop_zone, store
from pd_pipeline.parsing import parse
from pd_pipeline.progress import Progress
from pd_pipeline.storage import remove
from pd_pipeline.trajectories.contents import last_episodes
from pd_pipeline.trajectories.copies import episode_digests
from pd_pipeline.trajectories.episodes import row_groups
from pd_pipeline.trajectories.reading import read_metadata, write
from pd_pipeline.trajectories.schema import Origin, TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns

IMPORTED = Path("data/imported")
TASKS_SHOWN = 10
CHANGED = "it changed while it was read: import it when its recording is complete"
Say = Callable[[str], None]


def bring(
    root: Path,
    source: str,
    family: str,
    asked: Asked,
    out: Path | None,
    named: str | None,
    progress: Progress,
    say: Say,
) -> list[Path]:
    """Import a source for a family of the project at `root`; returns the new files. `named`: its format.

    Raises PipelineError for what cannot be mapped, what validation refuses, and what was imported otherwise before.
    """
    folder = _folder(root, family, out)
    limits: Limits = {}
    if is_dropped(root, folder):
        asked, limits = for_target(root, family, folder, asked)
    sources = open_sources(source, named, asked.without)
    with locks.held(root, "import", family):
        waiting = folder / f".import.{os.getpid()}.tmp"
        for left in folder.glob(".import.*.tmp"):  # of killed processes, since we hold the lock
            remove(left)
        known = {} if limits else {path: read_metadata(path) for path in _parquet(folder)}
        there = _of_target(root, family, asked) if limits else known
        present = present_in(there)
        accepted = set() if limits else _accepted(root, family)
        of_family: dict[str, dict[int, int]] = {}  # family of the sources -> task of theirs -> task
        made: list[Path] = []
        try:
            for one in sources:
                origin = _origin(one, asked)
                before = _imported(known, origin)
                refuse(one, asked, known, limits)
                same = of_family.setdefault(one.stated.family, {}) if one.stated else {}
                new = new_episodes(one, asked, there, present, same, accepted)
                if not new.tasks:
                    place = f"accepted files of task {asked.task}" if limits else folder
                    why = f"all of its episodes are in {place} already"
                    say(f"{one.name}: {why if before is None else f'imported already, as {before}'}: nothing to do")
                    _explain_left_out(new, say)
                    continue
                _refuse_targets(root, family, new.tasks, folder)
                bounds = action_bounds(one, asked, known, limits)
                horizon = limits.get("horizon", one.horizon)
                metadata = describe(one, family, asked, origin, known, new.tasks, bounds, horizon)
                _explain(new, metadata, bounds, say)
                path = waiting / _free_name(folder, f"{metadata.quality}-{origin.digest[:12]}")
                _write(path, new, metadata, known, progress)
                known[path] = there[path] = metadata
                made.append(path)
            final = [folder / path.name for path in made]
            for path, place in zip(made, final, strict=True):
                os.replace(path, place)
        finally:
            if waiting.exists():
                remove(waiting)
    return final


def _folder(root: Path, family: str, out: Path | None) -> Path:
    """Where the files of a family go. Raises PipelineError for a family with a simulator."""
    parse(_Named, {"family": family}, "--family")
    path = root / PARAMS_FILE
    params = config.load(root) if path.is_file() else None
    block = params.block(family, "environment") if params is not None else {}
    ways = [way for way in ("entry_point", *BY_NAME) if block.get(way) is not None]
    simulated = "data" not in ways and (ways or family in BUILT_IN)
    if simulated and (out is None or not is_dropped(root, out)):
        raise PipelineError(
            f"--family {family}: this family has a simulator, so that its trajectories are collected: give imported "
            f"ones another name, or bring those of a target by --out {drop_zone.FOLDER}/{family}/TASK"
        )
    return out if out is not None else root / block.get("data", IMPORTED / family)


def _parquet(folder: Path) -> list[Path]:
    """The trajectory files of a folder: hidden ones are none."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def _free_name(folder: Path, stem: str) -> str:
    """A file name that the folder does not have: of a source whose other episodes are there already."""
    names = (f"{stem}{number}.parquet" for number in ("", *(f"-{count}" for count in range(2, 10_000))))
    return next(name for name in names if not (folder / name).exists())


def _refuse_targets(root: Path, family: str, tasks: Mapping[int, int], folder: Path) -> None:
    """Raise PipelineError if data would be pre-trained on whose task is a target with accepted data."""
    taken = sorted(task for task in set(tasks.values()) if store.files(root, family, task))
    if taken and not is_dropped(root, folder):
        raise PipelineError(
            f"task {taken[0]} of {family} is a target with accepted data, and what is in {folder} is pre-trained on: "
            f"bring more of it by --out {drop_zone.FOLDER}/{family}/{taken[0]} and `pd-pipeline ingest`"
        )


def _of_target(root: Path, family: str, asked: Asked) -> dict[Path, TrajectoryMetadata]:
    """The accepted files of the target that an import into the drop zone is for."""
    assert asked.task is not None, "the folder names it"
    return {path: read_metadata(path) for path in store.files(root, family, asked.task)}


def _accepted(root: Path, family: str) -> set[bytes]:
    """Digests of the accepted episodes of a family's targets."""
    found = set[bytes]()
    for file in store.all_files(root, family):
        with suppress(PipelineError):  # damaged since: stage target_data says so
            found |= {*episode_digests(file)}
    return found


def declaration(root: Path, family: str, folder: Path) -> str:
    """What to do next: add the family to params.yaml, if that does not know it, or take the data of a target."""
    if is_dropped(root, folder):
        return "`pd-pipeline ingest` checks and takes it"
    path = root / PARAMS_FILE
    declared = (config.load(root).families if path.is_file() else {}).get(family) or {}
    if (declared.get("environment") or {}).get("data"):
        return ""
    inside = folder.relative_to(root) if root in folder.parents else folder
    block = f"families:\n  {family}:\n    environment: {{data: {inside}}}"
    return f"add to {PARAMS_FILE}, and {family} to run.families:\n{block}"


class _Named(Parameters):
    family: Name


def _origin(source: Source, asked: Asked) -> Origin:
    """What is kept with the data of where they come from."""
    return Origin(
        source=source.name,
        format=source.format,
        dataset=source.dataset,
        digest=source.digest(),
        options=asked.model_dump(mode="json", exclude_defaults=True),
        versions=source.versions,
    )


def _imported(known: Mapping[Path, TrajectoryMetadata], origin: Origin) -> Path | None:
    """The file that was made from the same source in the same way. Raises PipelineError if in another way."""
    for path, metadata in known.items():
        for before in metadata.origin:
            if before.digest != origin.digest:
                continue
            if before.options == origin.options:
                return path
            raise PipelineError(
                f"{origin.source}: imported before with other options ({before.options or 'none'}), as {path}: remove "
                "that file to import it differently"
            )
    return None


def _explain(new: New, metadata: TrajectoryMetadata, bounds: ActionBounds, say: Say) -> None:
    """Say what becomes what, and what is left out."""
    source, asked, tasks = new.source, new.asked, new.tasks
    say(f"{source.name}: {source.format}, {source.episode_count:,} episodes of at most {source.horizon:,} steps")
    say(f"  observation: {' + '.join(map(str, source.observation))}, as float32")
    low, high = bounds.low.min(), bounds.high.max()
    say(f"  action: {source.action_size} numbers between {low:g} and {high:g} ({bounds.origin}), as float32")
    reward = "as recorded" if asked.reward is None else f"{asked.reward}, as asked"
    say(f"  reward: {reward}; success: {'as recorded' if source.has_success else 'not recorded, never'}")
    for line in source.mapped:
        say(f"  {line}")
    for task, of in list(tasks.items())[:TASKS_SHOWN]:
        goal = f" {metadata.goals[of]}" if metadata.goals[of] else ""
        say(f"  task {task} -> task {of} of {metadata.family}, quality {metadata.quality}{goal}")
    if len(tasks) > TASKS_SHOWN:
        say(f"  and {len(tasks) - TASKS_SHOWN} more tasks")
    if new.copies:
        say(f"  left out: {new.copies:,} episodes that are copies of others of their task")
    _explain_left_out(new, say)
    for line in source.left_out:
        say(f"  left out: {line}")


def _explain_left_out(new: New, say: Say) -> None:
    """Say which episodes are left out that are no copies of others of their task."""
    if new.of_targets:
        say(f"  left out: {new.of_targets:,} episodes that are accepted data of a target, which methods are scored on")
    if new.longer:
        say(
            f"  left out: {new.longer:,} episodes whose beginning their task has already, as an episode of a log that "
            "was not complete: remove the file it is in and import again to get all of them whole"
        )


def _write(
    path: Path, new: New, metadata: TrajectoryMetadata, known: Mapping[Path, TrajectoryMetadata], progress: Progress
) -> None:
    last: dict[int, int] = {}
    for file, found in known.items():
        if set(found.goals) & set(new.tasks.values()):
            last |= {task: max(last.get(task, -1), number) for task, number in last_episodes(file).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    by_task = groupby(_episodes(new, last, progress), key=itemgetter(0))
    groups = (group for _, of_task in by_task for group in row_groups(steps for _, steps in of_task))
    try:
        write(path, metadata, groups)
    except PipelineError as error:
        refused = f"{new.source.name}: refused, nothing is imported"
        raise PipelineError(str(error).replace(str(path), refused)) from None


def _episodes(new: New, last: dict[int, int], progress: Progress) -> Iterator[tuple[int, Columns]]:
    """(task of the family, steps) of new episodes; `last`: task -> the largest number of an episode of it so far."""
    done, count = 0, sum(len(of_task) for of_task in new.episodes.values())
    for task in sorted(new.tasks, key=lambda task: (new.tasks[task], task)):
        of, known, place = new.tasks[task], new.episodes[task], -1
        for place, steps in enumerate(new.source.episodes(task)):
            done += 1
            progress(f"import {new.source.name}", done, count)
            if place >= len(known):
                raise PipelineError(f"{new.source.name}: {CHANGED}")
            if known[place]:
                last[of] = max(last.get(of, -1) + 1, steps.number)  # its own number, if that is free
                yield of, columns_of(steps, of, last[of], new.asked)
        if place + 1 < len(known):
            raise PipelineError(f"{new.source.name}: {CHANGED}")
