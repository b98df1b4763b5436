"""From the drop zone to the accepted data of a target: check a file, then move it as a whole.

A good file goes to data/ingested/ (see `store`), a bad one to data/quarantine/ with its reason beside it. Others are
not held up by it. A file with the content of an accepted one is removed: it is there already.
"""

import errno
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pd_pipeline import locks
from pd_pipeline.alerts import alert
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family
from pd_pipeline.families.registry import BUILT_IN
from pd_pipeline.graph import Graph
from pd_pipeline.incoming import drop_zone, store
from pd_pipeline.incoming.drop_zone import DONE, Dropped, dropped, task_of
from pd_pipeline.storage import atomic_file, file_digest, shown, write_json
from pd_pipeline.trajectories.checking import FileSummary, check_file
from pd_pipeline.trajectories.copies import episode_digests, first_seen
from pd_pipeline.trajectories.reading import read_metadata

QUARANTINE = Path("data/quarantine")
REASON = ".reason.txt"
CHANGED = "it changed while it was read"
MOST_BYTES = 160  # of a name in the quarantine
State = Literal["accepted", "quarantined", "duplicate", "waiting"]


class Outcome(NamedTuple):
    """What became of one file."""

    file: Path
    """Where it was dropped, relative to the project."""
    state: State
    message: str
    """Where it is now, and for a quarantined file the reason."""
    family: str | None = None
    task: int | None = None


def take(graph: Graph, settle_seconds: float | None = None) -> list[Outcome]:
    """Ingest for a project, with an alert for every quarantined file.

    `settle_seconds`: by default that of params.yaml.
    """
    families = {name: graph.family(name) for name in graph.params.run.families}
    settle = graph.params.automation.settle_seconds if settle_seconds is None else settle_seconds
    found = ingest(graph.root, families, settle, others=not_run(graph))
    for outcome in found:
        if outcome.state == "quarantined":
            alert(graph, "quarantine", str(outcome.file), outcome.message)
    return found


def not_run(graph: Graph) -> set[str]:
    """The families that params.yaml could run but does not: their files wait in the drop zone."""
    return {*graph.params.families, *BUILT_IN} - {*graph.params.run.families}


def quarantined(root: Path, target: tuple[str, int] | None = None) -> list[str]:
    """The reasons of the files in quarantine, each with the name of its file; with `target` (family, task) its own."""
    found = sorted((root / QUARANTINE).rglob(f"*{REASON}"))
    found = [path for path in found if os.path.lexists(path.with_name(path.name.removesuffix(REASON)))]
    if target is not None:
        family, task = target
        found = [path for path in found if _target_of(path.relative_to(root / QUARANTINE)) == (family, task)]
    return [reason.read_text().strip() for reason in found]


def _target_of(name: Path) -> tuple[str, int | None] | None:
    """Family and task of a file's name below the drop zone or the quarantine: <family>/<task>/<file>."""
    return (name.parts[0], task_of(name.parts[1])) if len(name.parts) == 3 else None


def ingest(
    root: Path,
    families: Mapping[str, Family],
    settle_seconds: float,
    now: datetime | None = None,
    others: Collection[str] = (),
) -> list[Outcome]:
    """Check and move every complete file in the drop zone; those not complete yet are `waiting`.

    `families`: those of params.yaml that run; files of `others`, which do not, wait too. One process at a time does
    this; a second one waits.
    """
    with locks.held(root, "ingest", ""):
        moment = datetime.now(UTC) if now is None else now
        files = list(dropped(root, settle_seconds, moment.timestamp()))
        return [_one(root, families, others, file, moment) for file in files]


def _one(
    root: Path, families: Mapping[str, Family], others: Collection[str], file: Dropped, moment: datetime
) -> Outcome:
    name = shown(file.path.relative_to(root))
    try:
        if waits := _waits_for(file, others, moment):
            return Outcome(name, "waiting", waits)
        return _taken(root, families, file, moment)
    except FileNotFoundError:
        why = "it was removed while it was read"
    except OSError as error:  # the others go on
        why = f"it cannot be taken: {error}"
    return Outcome(name, "waiting", why)


def _taken(root: Path, families: Mapping[str, Family], file: Dropped, moment: datetime) -> Outcome:
    name = shown(file.path.relative_to(root))
    before = _stamp(file.path)
    try:
        family, task, found = _checked(families, file)
        if damaged := _damaged(root, family, task):
            return Outcome(name, "waiting", damaged, family, task)
        digest = file_digest(file.path).hex()
        copies = _copies(root, families[family], task, file.path)
        said = _nothing_new(root, families[family], task, file.path, digest, found)
        if _stamp(file.path) != before:
            return Outcome(name, "waiting", CHANGED, family, task)
        if copies == found.episodes and not said:
            raise PipelineError(
                "its episodes are in accepted files of another quality already, which are never changed"
            )
    except PipelineError as error:
        if _stamp(file.path) != before:
            return Outcome(name, "waiting", CHANGED)
        outcome = _quarantined(root, file.path, str(error).removeprefix(f"{file.path}: "))
        named = file.family in families and file.target is not None
        return outcome._replace(family=file.family, task=task_of(str(file.target))) if named else outcome
    if said:
        _remove(file.path)
        return Outcome(name, "duplicate", said, family, task)
    place = store.next_name(root, family, task, found.metadata.quality)
    known = store.Received(
        source=name.as_posix(),
        digest=digest,
        quality=found.metadata.quality,
        episodes=found.episodes,
        copies=copies,
        steps=found.steps,
        received=moment.isoformat(timespec="seconds"),
    )
    write_json(place.with_suffix(".json"), known.model_dump(mode="json"))
    _move(file.path, place)
    said = f"{place.relative_to(root)}: {found.episodes} episodes"
    if copies:
        said += f", {copies} of them copies, which are left out"
    return Outcome(name, "accepted", said, family, task)


def _damaged(root: Path, family: str, task: int) -> str:
    """Which accepted file of a target lacks what is known of it; empty if none does."""
    try:
        for accepted in store.files(root, family, task):
            store.received(accepted)
    except PipelineError as error:
        return f"an accepted file of its target must be mended first: {error}"
    return ""


def _nothing_new(root: Path, family: Family, task: int, file: Path, digest: str, found: FileSummary) -> str:
    """Where all that a file holds is already, under the same quality; empty if it holds anything new."""
    if same := _same(root, family, task, file, digest):
        return f"its content is in {same} already"
    if _copies(root, family, task, file, found.metadata.quality) == found.episodes:
        return f"all of its episodes are in accepted files of {family.name}-{task} already"
    return ""


def _same(root: Path, family: Family, task: int, file: Path, digest: str) -> Path | None:
    """The file with this content among those accepted for the target, and those that the family was recorded as."""
    for accepted in store.files(root, family.name, task):
        if store.received(accepted).digest == digest:
            return accepted.relative_to(root)
    size = file.stat().st_size
    recorded = (path for paths in family.recordings.values() for path in paths if path.stat().st_size == size)
    return next((path for path in recorded if file_digest(path).hex() == digest), None)


def _copies(root: Path, family: Family, task: int, file: Path, quality: str | None = None) -> int:
    """How many episodes of a file are copies of each other, or of those in files accepted for the target.

    With `quality`, of files of this quality alone.
    """
    known = set[bytes]()
    for accepted in store.files(root, family.name, task):
        if quality not in (None, store.received(accepted).quality):
            continue
        with suppress(PipelineError):  # damaged since: stage target_data says so
            known |= {*episode_digests(accepted, family=family, new_task=task)}
    return int((~first_seen({file: episode_digests(file, family=family, new_task=task)}, known)[file]).sum())


def _waits_for(file: Dropped, others: Collection[str], moment: datetime) -> str:
    """Why a file is not looked at yet; empty if it is."""
    if not file.complete:
        age = moment.timestamp() - file.path.lstat().st_mtime
        when = f"written {age:.0f} s ago" if age >= 0 else f"its time is {-age:.0f} s ahead of this machine's clock"
        return f"{when}: --settle 0, or {file.path.name}{DONE} beside it, says it is complete"
    return f"'{file.family}' is not among run.families of params.yaml: add it there" if file.family in others else ""


def check_new(root: Path, file: Path, families: Mapping[str, Family], target: str) -> tuple[FileSummary, int]:
    """Check a file that is not in the drop zone as new data of a target such as reach-57. Raises PipelineError.

    Returns what it holds, and how many of its episodes are copies, which would be left out.
    """
    family, _, task = target.rpartition("-")
    if not family or not file.exists():
        wrong = f"{file}: no such file" if family else f"--target {target}: name a family and a task, such as reach-57"
        raise PipelineError(wrong)
    try:
        _, number, found = _checked(families, Dropped(file, family, task, True))
        return found, _copies(root, families[family], number, file)
    except PipelineError as error:
        text = str(error)
        raise PipelineError(text if text.startswith(f"{file}: ") else f"{file}: {text}") from None


def _checked(families: Mapping[str, Family], file: Dropped) -> tuple[str, int, FileSummary]:
    """Family, task and contents of a dropped file. Raises PipelineError if it cannot be accepted."""
    if file.family is None or file.target is None:
        raise PipelineError(f"not in a folder of a target: put it into {drop_zone.FOLDER}/<family>/<task>/")
    if file.family not in families:
        known = ", ".join(sorted(families))
        raise PipelineError(f"'{file.family}' is not among run.families of params.yaml ({known}): add it there")
    task, family = task_of(file.target), families[file.family]
    if task is None:
        raise PipelineError(f"'{file.target}' has no task number: name the folder 57 or {file.family}-57")
    if task in family.train_tasks and task not in family.test_tasks:
        raise PipelineError(f"task {task} is a training task of {family.name}, not a target: use another number")
    if shown(file.path) != file.path:
        raise PipelineError("its name is not valid UTF-8: rename it")
    if file.path.is_symlink():
        raise PipelineError("a link: what it points to could change: copy the file itself")
    if not file.path.is_file():
        raise PipelineError("not a regular file")
    if file.path.suffix != ".parquet":
        where = f"{drop_zone.FOLDER}/{family.name}/{task}"
        raise PipelineError(
            f"not a .parquet file: `pd-pipeline import SOURCE --family {family.name} --task {task} --out {where}` "
            "converts other formats"
        )
    if (goals := read_metadata(file.path).goals) and task not in goals:
        held = ", ".join(map(str, sorted(goals)))
        raise PipelineError(f"holds task {held}, but the target is task {task}: one file per target")
    found = check_file(file.path, {family.name: family}, new_task=task)
    if set(found.tasks) != {task}:
        others = ", ".join(str(other) for other in sorted({*found.tasks} - {task}))
        held = f"tasks {others}" if others else "no episode"
        raise PipelineError(f"holds {held}, but the target is task {task}: one file per target")
    return family.name, task, found


def _quarantined(root: Path, path: Path, reason: str) -> Outcome:
    name = shown(path.relative_to(root))
    wanted = root / QUARANTINE / name.relative_to(drop_zone.FOLDER)
    wanted = wanted.with_name(_shortened(wanted.name))
    place, number = wanted, 1
    while os.path.lexists(place) or os.path.lexists(_reason_of(place)):
        number += 1
        place = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
    with atomic_file(_reason_of(place)) as temporary:
        temporary.write_text(f"{name}: {reason}\n")
    _move(path, place)
    return Outcome(name, "quarantined", f"{reason} (now {place.relative_to(root)})")


def _shortened(name: str) -> str:
    """A file name with room for what the quarantine adds to it: file systems take 255 bytes."""
    if len(name.encode()) <= MOST_BYTES:
        return name
    suffix = Path(name).suffix if len(Path(name).suffix) <= 10 else ""
    return name.encode()[: MOST_BYTES - len(suffix)].decode(errors="ignore") + suffix


def _reason_of(place: Path) -> Path:
    return place.with_name(place.name + REASON)


def _stamp(path: Path) -> tuple[int, int, int]:
    about = path.lstat()
    return about.st_size, about.st_mtime_ns, about.st_ino


def _move(path: Path, place: Path) -> None:
    """Move a file as a whole, also from another file system, and remove its marker."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(path, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if path.is_symlink():
            place.symlink_to(path.readlink())
        else:
            with atomic_file(place) as temporary:
                shutil.copyfile(path, temporary)
        path.unlink()
    path.with_name(path.name + DONE).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    path.unlink()
    path.with_name(path.name + DONE).unlink(missing_ok=True)
