"""Calling foreign code in this process: descriptions of its errors, and a time limit."""

import importlib.util
import os
import re
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pd_pipeline.errors import PipelineError

TIMEOUT_SECONDS = 600.0  # seconds that an import or a constructor may take
GRACE_SECONDS = 5.0  # for a hanging call to react to the signal; a loop in compiled code never does

_PACKAGE = str(Path(__file__).parent)
_INSTALLED = ("site-packages", "dist-packages")
_STANDARD = sysconfig.get_paths()["stdlib"]
_DUMPED = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)  # faulthandler's lines


class _Watch:
    """Who stops a hanging call in this process: its parent (see `workers`), or one active `time_limit`."""

    by_parent = False
    on = False


def leave_timeouts_to_parent() -> None:
    """Disable `time_limit` in this process: the parent watches it, with the time limit of the stage."""
    _Watch.by_parent = True


def error_text(error: BaseException) -> str:
    """Type, message and location of an error that foreign code raised."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [(frame.filename, frame.lineno) for frame in reversed(traceback.extract_tb(error.__traceback__))]
    return text + place(frames)


def place(frames: Iterable[tuple[str, int | None]]) -> str:
    """` (file, line n)` of the innermost frame in the user's code, or else in installed code; empty without either.

    `frames` are (file, line), innermost first. If a library fails that the user's code called, the user's line is the
    one to look at. Neither this package nor the standard library is what to mend.
    """
    known = [frame for frame in frames if not frame[0].startswith("<")]
    elsewhere = [frame for frame in known if not frame[0].startswith(_PACKAGE)]
    own = [frame for frame in elsewhere if not _is_installed(frame[0])]
    installed = [frame for frame in elsewhere if any(name in Path(frame[0]).parts for name in _INSTALLED)]
    chosen = next(iter(own or installed), None)
    return f" ({chosen[0]}, line {chosen[1]})" if chosen else ""


def place_in_dump(text: str) -> str:
    """Like `place`, from the text that faulthandler wrote about a hanging process."""
    return place((match["file"], int(match["line"])) for match in _DUMPED.finditer(text))


def _is_installed(file: str) -> bool:
    parts = Path(file).parts
    return file.startswith(_STANDARD) or any(name in parts for name in _INSTALLED)


def module_file(module: str, root: Path) -> Path | None:
    """The file of a module next to params.yaml or installed, found without importing it; None if not found."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        spec = importlib.util.find_spec(module)
    except (Exception, SystemExit):  # importing a parent package failed: it may raise anything
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


@contextmanager
def time_limit(what: str, seconds: float | None = None) -> Iterator[None]:
    """Stop the block with a PipelineError if it takes longer than `seconds` (default `TIMEOUT_SECONDS`).

    Python code is interrupted. Compiled code that never returns cannot be interrupted: then the message is printed and
    the process exits, as if killed. Compiled code that also holds the global interpreter lock cannot be stopped.
    """
    if _Watch.by_parent or _Watch.on or threading.current_thread() is not threading.main_thread():
        yield
        return
    limit, main = TIMEOUT_SECONDS if seconds is None else seconds, threading.get_ident()
    done = threading.Event()

    def message(frame: FrameType | None) -> str:
        where = place((f.filename, f.lineno) for f in reversed(traceback.extract_stack(frame))) if frame else ""
        return f"{what} has not returned after {limit:g} seconds{where}: fix it and run again"

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not done.is_set():
            raise PipelineError(message(frame))

    def watch() -> None:
        if done.wait(limit):
            return
        signal.pthread_kill(main, signal.SIGUSR2)
        if not done.wait(GRACE_SECONDS):
            print(message(sys._current_frames().get(main)), file=sys.stderr, flush=True)
            os._exit(1)

    before = signal.signal(signal.SIGUSR2, interrupt)
    _Watch.on = True
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        _Watch.on = False
        watcher.join()
        signal.signal(signal.SIGUSR2, before)
