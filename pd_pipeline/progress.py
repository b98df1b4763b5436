"""Progress with rate and time left: a bar on a terminal, otherwise a line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called by stages to report `done` of `total` units; `figures` are shown beside it (losses, rates)."""

    def __call__(self, description: str, done: int, total: int, figures: str = "") -> None:
        """Report that `done` of `total` units are done."""


def silent(description: str, done: int, total: int, figures: str = "") -> None:
    """Report nothing."""


class LineProgress:
    """Writes a line every few seconds with `write`, for logs, Dagster and pipes; always the first and the last."""

    def __init__(self, write: Callable[[str], object], every_seconds: float = 10.0):
        self._write = write
        self._every = every_seconds
        self._task = ""
        self._started = self._written = 0.0
        self._first = 0

    def __call__(self, description: str, done: int, total: int, figures: str = "") -> None:
        """Write the line if it is due."""
        now = time.monotonic()
        if description != self._task:
            self._task, self._started, self._written, self._first = description, now, now - self._every, done
        if now - self._written < self._every and done < total:
            return
        self._written = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        line = f"{description}: {done:,} of {total:,}"
        if done > self._first:
            line += f", {rate:,.1f}/s, {_duration((total - done) / rate)} left"
        self._write(line + (f", {figures}" if figures else ""))


class BarProgress:
    """A rich progress bar on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self._description = ""
        self._task = self._bar.add_task("", total=None, visible=False, figures="", rate="")

    def __call__(self, description: str, done: int, total: int, figures: str = "") -> None:
        """Update the bar."""
        if description != self._description:
            self._bar.start()
            self._description = description
            self._task = self._bar.add_task(description, total=total, completed=done, figures=figures, rate="")
        speed = self._bar.tasks[-1].speed
        rate = f"{speed:,.1f}/s" if speed else ""
        self._bar.update(self._task, completed=done, total=total, figures=figures, rate=rate)
        if done >= total:
            self._bar.refresh()

    def close(self) -> None:
        """Restore the terminal."""
        self._bar.stop()


@contextmanager
def console() -> Iterator[Progress]:
    """The progress that suits standard error: a bar on a terminal, which is restored at the end, otherwise lines."""
    if not sys.stderr.isatty():
        yield LineProgress(lambda line: print(line, file=sys.stderr, flush=True))
        return
    bar = BarProgress()
    try:
        yield bar
    finally:
        bar.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
