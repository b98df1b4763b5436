"""SIGINT and SIGTERM: how work that is asked to stop saves its state and exits in time."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 3.0  # how long the current step may take to end before it is abandoned
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """The process was asked to stop: finished work is kept, and the exit status is the shell's for the signal."""

    def __init__(self, number: int | None = None) -> None:
        super().__init__(128 + (_Last.signal if number is None else number))


class _Last:
    """The last signal received."""

    signal: int = signal.SIGTERM


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """Signal handler: unwind the stack, so that child processes are ended and temporary files removed."""
    raise Interrupted(number)


def unwind_on_signals() -> None:
    """From now on SIGINT and SIGTERM raise Interrupted in the main thread, from which this must be called."""
    for number in _SIGNALS:
        signal.signal(number, leave)


@contextmanager
def held_back() -> Iterator[None]:
    """Handle signals that are received meanwhile at the end: for what must not be interrupted halfway, and is short.

    The handlers are replaced; a mask of the thread would be inherited by the processes that it starts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


@contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM was received, for loops that save before they exit.

    If the loop does not call it within `GRACE_SECONDS`, or at a second signal, Interrupted is raised wherever it is.
    Outside the main thread, which receives no signals, the function always returns False.
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
