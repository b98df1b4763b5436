"""SIGTERM, heard by long loops: they save once and leave."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(SystemExit):
    """SIGTERM came: the state is saved, and the process leaves with the shell's code for it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has come; outside the main thread it never does."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: flag.set())
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)
