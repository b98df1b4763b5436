"""SIGINT and SIGTERM: how work that is asked to stop saves what it has and leaves in time."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 3.0  # a step that is under way may take so long to end; then it is abandoned
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """The process was asked to stop: what was finished is kept, and it leaves with the shell's code for the signal."""

    def __init__(self, number: int | None = None) -> None:
        super().__init__(128 + (_Last.signal if number is None else number))


class _Last:
    """The signal that came last."""

    signal: int = signal.SIGTERM


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """A signal's handler: unwind the stack, so that child processes are ended and temporary files removed."""
    raise Interrupted(number)


def unwind_on_signals() -> None:
    """From now on SIGINT and SIGTERM raise Interrupted in the main thread, which must be the caller's."""
    for number in _SIGNALS:
        signal.signal(number, leave)


@contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has come, for loops that save before they leave.

    A loop that does not come to ask within `GRACE_SECONDS`, or a second signal, raises Interrupted wherever it is.
    Outside the main thread, where no signal arrives, it is never so.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise Interrupted(number)
        flag.set()
        _Last.signal = number
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda _, frame: leave(_Last.signal, frame))
    try:
        yield flag.is_set
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
