"""Code that somebody else wrote, called in this process: what it raised and where, and an end to its hanging."""

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

PATIENCE = 600.0  # seconds that an import or a constructor may take
GRACE_SECONDS = 5.0  # for a hanging call to answer the signal; a loop inside compiled code never does

_PACKAGE = str(Path(__file__).parent)
_INSTALLED = ("site-packages", "dist-packages")
_STANDARD = sysconfig.get_paths()["stdlib"]
_DUMPED = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)  # faulthandler's lines


class _Watch:
    """Who ends a call of this process that hangs: its parent (see `workers`), or `limited`, once at a time."""

    by_parent = False
    on = False


def watched_by_parent() -> None:
    """From now on `limited` leaves the watch to the parent, which knows the stage's own patience."""
    _Watch.by_parent = True


def error_text(error: BaseException) -> str:
    """The type, the message and the place of an error that foreign code raised."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [(frame.filename, frame.lineno) for frame in reversed(traceback.extract_tb(error.__traceback__))]
    return text + place(frames)


def place(frames: Iterable[tuple[str, int | None]]) -> str:
    """` (file, line n)` of the user's own code among `frames` (file, line), the innermost first; empty without any.

    Where a library fails that the user's code called, the user's line is the one to look at. Code that is installed
    counts only where there is no other.
    """
    known = [frame for frame in frames if not frame[0].startswith("<")]
    elsewhere = [frame for frame in known if not frame[0].startswith(_PACKAGE)]
    own = [frame for frame in elsewhere if not _is_installed(frame[0])]
    chosen = next(iter(own or elsewhere or known), None)
    return f" ({chosen[0]}, line {chosen[1]})" if chosen else ""


def place_in_dump(text: str) -> str:
    """The same from what faulthandler wrote of a process that hangs."""
    return place((match["file"], int(match["line"])) for match in _DUMPED.finditer(text))


def _is_installed(file: str) -> bool:
    parts = Path(file).parts
    return file.startswith(_STANDARD) or any(name in parts for name in _INSTALLED)


def module_file(module: str, root: Path) -> Path | None:
    """The file of a module beside params.yaml or installed, found without importing it; None where there is none."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, SyntaxError):  # of a package on the way to the module
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


@contextmanager
def limited(what: str, seconds: float | None = None) -> Iterator[None]:
    """End the block with a PipelineError when it takes longer than `seconds` (default `PATIENCE`).

    Python code is interrupted wherever it is. Compiled code that never returns cannot be: then the line is printed
    and the process ends, as if it had been killed. Only code that also keeps Python's global lock escapes.
    """
    if _Watch.by_parent or _Watch.on or threading.current_thread() is not threading.main_thread():
        yield
        return
    limit, main = PATIENCE if seconds is None else seconds, threading.get_ident()
    done = threading.Event()

    def message(frame: FrameType | None) -> str:
        where = place((f.filename, f.lineno) for f in reversed(traceback.extract_stack(frame))) if frame else ""
        return f"{what} has not returned for {limit:g} seconds{where}: fix it and run again"

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
