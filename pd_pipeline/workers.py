"""Processes that each hold a share of many things and answer message by message."""

import multiprocessing
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pd_pipeline.errors import PipelineError

Answer = Callable[[Any], Any]


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
        for each in arguments:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, build, each), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self.gather()

    def send(self, messages: Sequence[Any]) -> None:
        """Hand one message to each process."""
        for pipe, message in zip(self._pipes, messages, strict=True):
            pipe.send(message)

    def gather(self) -> list[Any]:
        """One answer of every process. Raises PipelineError where one died."""
        try:
            return [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise PipelineError(self._error) from None

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send(None)
            process.join()
