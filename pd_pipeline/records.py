"""What each piece of work made, and what it cost: one small JSON file a piece, beside the outs and in none of them.

    data/records/<stage>/<key>.json
        out       the out, relative to the project
        made      digest of code, parameters and inputs
        files     file of the out -> SHA-256
        replaced  the same of the out before, which stands until the new one takes its place
        seconds   of all processes that worked on it
        device, precision
        parameters of the stage, with the defaults of the code

By its files, a record shows what somebody else put into an out or changed there: that is never replaced or removed.
Wall-clock times are here and not in outs, so that equal results have equal outs.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import file_digest, read_json, read_model, write_json

FOLDER = Path("data/records")
CLOCK_FILE = "seconds.json"  # in the work folder: what earlier processes spent
TICK_SECONDS = 1.0


class Record(Parameters):
    """One record."""

    out: str
    made: str
    files: dict[str, str]
    replaced: dict[str, str] = {}
    seconds: float = Field(ge=0)
    device: str | None = None
    precision: str | None = None
    parameters: dict[str, Any] = {}


def path(root: Path, stage: str, key: object) -> Path:
    """Where the record of a piece of work lies."""
    return root / FOLDER / stage / f"{str(key) or 'all'}.json"


def find(root: Path, stage: str, key: object) -> Record | None:
    """The record of a piece of work; None where there is none, as after a checkout of outs made elsewhere."""
    file = path(root, stage, key)
    return read_model(file, Record) if file.is_file() else None


def listing(out: Path) -> dict[str, str]:
    """The files of an out, their names relative to it, with their SHA-256.

    A link to a file counts as its contents: with `cache.type symlink` DVC turns outs into links to its cache. To
    replace or remove it changes nothing in the file itself. Any other link is only named.
    """
    found = {}
    for file in sorted(out.rglob("*")):
        if file.is_symlink() or file.is_file():
            found[file.relative_to(out).as_posix()] = file_digest(file).hex() if file.is_file() else "link"
    return found


def foreign(out: Path, record: Record | None) -> list[str]:
    """Files of an out that its stage did not make, or that somebody changed since; all of them without a record."""
    if not out.exists():
        return []
    known = set() if record is None else {*record.files.items(), *record.replaced.items()}
    return [name for name, digest in listing(out).items() if (name, digest) not in known]


def refuse_foreign(out: Path, names: list[str], stage: str) -> None:
    """Raise PipelineError where an out holds files that are not the stage's to replace."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise PipelineError(
            f"{out / names[0]}{more}: not what stage {stage} made, so it stays, and {out} is not replaced: "
            "move it elsewhere (data/incoming/ is yours: nothing there is ever removed) or remove it, and run again"
        )


def enter(root: Path, stage: str, key: object, out: Path, new: Path, **figures: Any) -> None:
    """Write the record of `out`, whose place `new` is about to take; the files it replaces are still known."""
    before = find(root, stage, key)
    name = out.relative_to(root).as_posix()
    record = Record(out=name, files=listing(new), replaced=before.files if before else {}, **figures)
    write_json(path(root, stage, key), record.model_dump(exclude_none=True))


@contextmanager
def clock(work: Path) -> Iterator["Clock"]:
    """Count the seconds spent on the work of a folder, those of processes that were killed included."""
    counting = Clock(work / CLOCK_FILE)
    try:
        yield counting
    finally:
        counting.stop()


class Clock:
    """Adds up seconds in a file; a process that is killed loses the last second."""

    def __init__(self, file: Path):
        self._file = file
        self._before = float(read_json(file).get("seconds", 0.0)) if file.is_file() else 0.0
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Spent so far, by all processes."""
        return self._before + time.monotonic() - self._began

    def _tick(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            write_json(self._file, {"seconds": self.seconds})

    def stop(self) -> None:
        """Keep what was spent."""
        self._over.set()
        self._thread.join()
        if self._file.parent.is_dir():
            write_json(self._file, {"seconds": self.seconds})
