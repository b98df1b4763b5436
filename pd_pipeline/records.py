"""The files and the cost of each piece of work: one small JSON file per piece, not part of any out.

    data/records/<stage>/<key>.json
        out         path of the out, relative to the project
        made        digest of code, parameters and inputs
        files       file of the out -> SHA-256
        replaced    the same for the previous out, valid until the new one has replaced it
        seconds     total of all processes that worked on it
        device      what it was computed on
        precision   of the computation
        parameters  of the stage, with defaults filled in
        environment parameters of the family, with defaults filled in
        inputs      upstream stage -> digest of what was read from it
        code        digest of the code, as in digests.json
        version     of this package
        packages    those that compute -> their versions
        revision    git revision of the project

`files` shows which files of an out a user added or changed: these are never replaced or removed. Wall-clock times are
here and not in outs, so equal results have equal outs.
"""

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import file_digest, read_json, read_model, write_json

FOLDER = Path("data/records")
CLOCK_FILE = "seconds.json"  # in the work folder: seconds spent by earlier processes
TICK_SECONDS = 1.0
LINK = "link"


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
    environment: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    code: str | None = None
    version: str | None = None
    packages: dict[str, str] = {}
    revision: str | None = None


def path(root: Path, stage: str, key: object) -> Path:
    """The path of the record of a piece of work."""
    return root / FOLDER / stage / f"{str(key) or 'all'}.json"


def find(root: Path, stage: str, key: object) -> Record | None:
    """Read the record of a piece of work; None if there is none, such as after `dvc checkout`."""
    file = path(root, stage, key)
    return read_model(file, Record) if file.is_file() else None


def listing(out: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of the files of an out.

    A link to a file counts as its contents: with `cache.type symlink` DVC turns outs into links to its cache. To
    replace or remove it changes nothing in the file itself. Any other link is listed as `link`.
    """
    found = {}
    for file in sorted(out.rglob("*")):
        if file.is_symlink() or file.is_file():
            found[file.relative_to(out).as_posix()] = file_digest(file).hex() if file.is_file() else LINK
    return found


def digest_of(files: Mapping[str, str]) -> str:
    """The digest of an out with these files (as `listing` gives them), equal to `storage.digest` of its folder."""
    total = hashlib.sha256()
    for name in sorted(files, key=PurePosixPath):
        if files[name] != LINK:
            total.update(name.encode() + b"\0" + bytes.fromhex(files[name]))
    return total.hexdigest()


def foreign(out: Path, record: Record | None) -> list[str]:
    """Files of an out that its stage did not write, or that changed since; all files if there is no record."""
    if not out.exists():
        return []
    known = set() if record is None else {*record.files.items(), *record.replaced.items()}
    return [name for name, digest in listing(out).items() if (name, digest) not in known]


def refuse_foreign(out: Path, names: list[str], stage: str) -> None:
    """Raise PipelineError if an out contains files `names` that the stage did not write."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise PipelineError(
            f"{out / names[0]}{more}: not written by stage {stage}, so {out} is not replaced: move the file elsewhere "
            "(nothing in data/incoming/ is ever removed) or delete it, and run again"
        )


def write(root: Path, stage: str, key: object, out: Path, new: Path, **figures: Any) -> None:
    """Write the record of the folder `new`, which is about to replace `out`, with the files of both.

    Nothing in `out` may be foreign.
    """
    name = out.relative_to(root).as_posix()
    replaced = listing(out) if out.exists() and out != new else {}
    record = Record(out=name, files=listing(new), replaced=replaced, **figures)
    write_json(path(root, stage, key), record.model_dump(exclude_none=True))


@contextmanager
def clock(work: Path) -> Iterator["Clock"]:
    """Count the seconds spent on a piece of work, including those of processes that were killed."""
    counting = Clock(work / CLOCK_FILE)
    try:
        yield counting
    finally:
        counting.stop()


class Clock:
    """Adds up seconds in a file; a killed process loses at most the last second."""

    def __init__(self, file: Path):
        self._file = file
        self._before = float(read_json(file).get("seconds", 0.0)) if file.is_file() else 0.0
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Seconds spent so far, by all processes."""
        return self._before + time.monotonic() - self._began

    def _tick(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self._save()

    def _save(self) -> None:
        with suppress(OSError):  # of a full disk the stage itself speaks
            write_json(self._file, {"seconds": self.seconds})

    def stop(self) -> None:
        """Stop counting and save the total."""
        self._over.set()
        self._thread.join()
        if self._file.parent.is_dir():
            self._save()
