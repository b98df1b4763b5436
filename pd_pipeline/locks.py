"""One process per piece of work: a second one waits, and logs for whom.

The lock is the kernel's (flock): it is released when its process ends, in whatever way.
"""

import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

FOLDER = Path(".work/locks")
SAY_AFTER_SECONDS = 2.0
SAY_AGAIN_SECONDS = 60.0
_TRY_SECONDS = 0.1
log = logging.getLogger("pd_pipeline")


class Waiting:
    """Logs what the process waits for: after two seconds, then every minute."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SAY_AFTER_SECONDS

    def say(self, message: str) -> None:
        """Log `message` if it is due."""
        if time.monotonic() >= self._next:
            log.warning(message)
            self._next = time.monotonic() + SAY_AGAIN_SECONDS


@dataclass
class PieceLock:
    """The lock of one piece of work."""

    file: IO[str]
    name: str
    waited: bool = False
    """Whether another process held it first."""

    def acquire(self) -> None:
        """Take the lock, waiting for the process that holds it."""
        waiting = Waiting()
        while True:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self.waited = True
                self.file.seek(0)
                holder = self.file.read(300).strip() or "another process"
                waiting.say(f"{self.name}: waiting for {holder}, which is working on it")
                time.sleep(_TRY_SECONDS)
        self.file.seek(0)
        self.file.truncate()
        self.file.write(f"process {os.getpid()} ({command_line()})")
        self.file.flush()

    def release(self) -> None:
        """Release the lock."""
        self.file.seek(0)
        self.file.truncate()
        self.file.flush()
        fcntl.flock(self.file, fcntl.LOCK_UN)


@contextmanager
def held(root: Path, stage: str, key: object) -> Iterator[PieceLock]:
    """Hold the lock of a piece of work in the project at `root`."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{stage}-{str(key) or 'all'}.lock").open("a+") as file:
        lock = PieceLock(file, f"{stage} {key}".strip())
        lock.acquire()
        try:
            yield lock
        finally:
            lock.release()


def is_free(root: Path, stage: str, key: object) -> bool:
    """Whether no process is working on a piece now."""
    path = root / FOLDER / f"{stage}-{str(key) or 'all'}.lock"
    if not path.exists():
        return True
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def command_line() -> str:
    """The command line of this process, shortened."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
