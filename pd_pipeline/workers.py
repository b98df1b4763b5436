"""Processes that each hold a share of many things and answer message by message."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pd_pipeline.errors import PipelineError

Answer = Callable[[Any], Any]


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started meanwhile compute on one thread each, or theirs and those of all others fight for the cores."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def shares(count: int, workers: int) -> list[slice]:
    """`count` things in at most `workers` parts of nearly equal size."""
    bounds = np.linspace(0, count, min(workers, count) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


def _serve(pipe: Connection, build: Callable[..., Answer], arguments: tuple[Any, ...]) -> None:
    answer = build(*arguments)
    pipe.send(None)
    while (message := pipe.recv()) is not None:
        pipe.send(answer(message))


class Workers:
    """One process for each of `arguments`: it calls `build(*arguments)` once, and the result with every message.

    `where` names what died in the error that a dead process becomes, `advice` what may help. None is no message.
    """

    def __init__(self, build: Callable[..., Answer], arguments: Sequence[tuple[Any, ...]], where: str, advice: str):
        context = multiprocessing.get_context("spawn")  # a fork would copy threads half-way
        self._error = f"{where}: a process that runs environments died: its own error stands above, or memory ran out"
        self._error += f" ({advice})"
        self._pipes, self._processes = [], []
        with one_thread_each():
            for each in arguments:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, build, each), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        try:
            self.gather()
        except PipelineError:
            self.close()
            raise

    def send(self, messages: Sequence[Any]) -> None:
        """Hand one message to each process. Raises PipelineError where one died."""
        try:
            for pipe, message in zip(self._pipes, messages, strict=True):
                pipe.send(message)
        except OSError:
            raise PipelineError(self._error) from None

    def gather(self) -> list[Any]:
        """One answer of every process. Raises PipelineError where one died."""
        try:
            return [pipe.recv() for pipe in self._pipes]
        except (EOFError, OSError):
            raise PipelineError(self._error) from None

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            with suppress(OSError):  # it died already
                pipe.send(None)
            process.join()
