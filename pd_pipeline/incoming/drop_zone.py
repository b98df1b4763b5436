"""The drop zone: data/incoming/<family>/<target>/, where users put new trajectories of a target task.

A file counts as complete as soon as a file with its name and `.done` added is beside it, or `.done` alone for all files
of a folder that came before it; without them, after it has not been written to for some seconds. Hidden files and those
that end in .tmp or .part are ignored.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

FOLDER = Path("data/incoming")
DONE = ".done"
UNFINISHED = (".tmp", ".part", DONE)


class Dropped(NamedTuple):
    """A file in the drop zone."""

    path: Path
    family: str | None
    """None if it is not in data/incoming/<family>/<target>/."""
    target: str | None
    complete: bool


def dropped(root: Path, settle_seconds: float, now: float | None = None) -> Iterator[Dropped]:
    """The files in the drop zone of the project at `root`, in the order in which they were written.

    `settle_seconds`: how long a file without a marker must have been left alone. `now`: seconds since the epoch.
    """
    top = root / FOLDER
    moment = time.time() if now is None else now
    found: list[tuple[Path, os.stat_result]] = []
    for path in top.rglob("*"):
        with suppress(FileNotFoundError):  # renamed or removed by its writer
            if _is_data(path, top):
                found.append((path, path.lstat()))
    for path, about in sorted(found, key=lambda each: (each[1].st_mtime_ns, str(each[0]))):
        parts = path.relative_to(top).parts
        family, target = (parts[0], parts[1]) if len(parts) == 3 else (None, None)
        # a clock that is ahead, of a robot or a file server, gives times that are yet to come
        settled = not settle_seconds or moment - about.st_mtime >= settle_seconds
        yield Dropped(path, family, target, settled or _is_marked(path, about))


def task_of(target: str) -> int | None:
    """The number of a target's task from the name of its folder: `5` or `reach-5`; None if it has none."""
    found = re.fullmatch(r"(?:[\w-]+-)?(0|[1-9]\d{0,8})", target)
    return int(found[1]) if found else None


def _is_data(path: Path, top: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(top).parts)
    return not hidden and not path.name.endswith(UNFINISHED) and (path.is_symlink() or not path.is_dir())


def _is_marked(path: Path, about: os.stat_result) -> bool:
    """Whether its own marker is there, or that of its folder, which is not about files that came later."""
    if path.with_name(path.name + DONE).exists():
        return True
    try:
        return about.st_ctime_ns <= (path.parent / DONE).stat().st_ctime_ns  # a copy may keep an old st_mtime
    except FileNotFoundError:
        return False
