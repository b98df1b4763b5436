"""Processes that hold environments and answer message by message.

A worker never outlives the process that started it, whatever ends that; one that dies, refuses or falls silent ends
the work at once with one line. Long answers give a sign of life (`beat`), so that slow and hung can be told apart.
"""

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.foreign import place_in_dump, said, watched_by_parent

Answer = Callable[[Any], Any]
Kind = Literal["answer", "beat", "refusal"]

BEAT_SECONDS = 1.0
LEAVE_SECONDS = 2.0  # that a worker is given to close its environments before it is killed
STACK_SECONDS = 0.5  # that a hanging process is given to say where it is
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


# The worker's side


class _Pulse:
    """Sends a sign of life through a pipe, at most one per second; in the main process there is no pipe."""

    pipe: Connection | None = None
    due = 0.0


def beat() -> None:
    """Say that the work goes on: to be called often by whatever may take longer than a few seconds."""
    if _Pulse.pipe is not None and (now := time.monotonic()) > _Pulse.due:
        _Pulse.due = now + BEAT_SECONDS
        _Pulse.pipe.send(("beat", None))


def _serve(pipe: Connection, stack: Connection, build: Callable[..., Answer], arguments: tuple[Any, ...]) -> None:
    die_with_parent()
    watched_by_parent()
    faulthandler.register(signal.SIGUSR1, stack.fileno())  # works inside compiled code, where no handler of ours would
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    _Pulse.pipe = pipe
    try:
        answer = build(*arguments)
        pipe.send(("answer", None))
        while (message := pipe.recv()) is not None:
            pipe.send(("answer", answer(message)))
    except (EOFError, BrokenPipeError):  # the parent is gone
        return
    except (Exception, SystemExit) as error:  # whatever a user's environment raises becomes the parent's one line
        with suppress(OSError):
            pipe.send(("refusal", explained(error)))


def die_with_parent() -> None:
    """Have the kernel end this process when the one that spawned it dies (Linux); nothing where none did."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent.pid:  # it died before the call
        os._exit(1)


def explained(error: BaseException) -> str:
    """A PipelineError as it is; another error with its type and the place that raised it."""
    if isinstance(error, PipelineError):
        return str(error)
    return said(error)


# The parent's side


class Workers:
    """One process for each of `arguments`: it calls `build(*arguments)` once, and the result with every message.

    `where` names the stage in errors, `advice` what may help where a process died. One that gives no sign of life for
    `patience` seconds is ended. None is no message. Use it as a context: leaving it by an error kills the processes.
    """

    def __init__(
        self,
        build: Callable[..., Answer],
        arguments: Sequence[tuple[Any, ...]],
        where: str,
        advice: str,
        patience: float = 600.0,
    ):
        context = multiprocessing.get_context("spawn")  # a fork would copy threads half-way
        self._where, self._advice, self._patience = where, advice, patience
        self._pipes: list[Connection] = []
        self._stacks: list[Connection] = []
        self._processes: list[Any] = []
        try:
            with one_thread_each():
                for each in arguments:
                    ours, theirs = context.Pipe()
                    reading, writing = context.Pipe(duplex=False)
                    self._pipes.append(ours)
                    self._stacks.append(reading)
                    process = context.Process(target=_serve, args=(theirs, writing, build, each), daemon=True)
                    process.start()
                    theirs.close()
                    writing.close()
                    self._processes.append(process)
            self.gather()
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        """The workers."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Close them, or kill them after an error."""
        if kind is None:
            self.close()
        else:
            self.kill()

    def send(self, messages: Sequence[Any]) -> None:
        """Hand one message to each process. Raises PipelineError where one died."""
        for index, message in enumerate(messages):
            self._send(index, message)

    def gather(self) -> list[Any]:
        """One answer of every process. Raises PipelineError where one died, refused or is silent."""
        return [self._receive(index) for index in range(len(self._pipes))]

    def spread(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """The answers to many messages, each given to whichever process is free; as they come."""
        waiting = deque(jobs)
        idle, busy = list(range(len(self._pipes))), dict[int, float]()
        while waiting or busy:
            while idle and waiting:
                self._send(index := idle.pop(0), waiting.popleft())
                busy[index] = time.monotonic()
            ready = wait([self._pipes[index] for index in busy], timeout=min(1.0, self._patience))
            for index in [index for index in busy if self._pipes[index] in ready]:
                kind, answer = self._next(index)
                busy[index] = time.monotonic()
                if kind == "answer":
                    del busy[index]
                    idle.append(index)
                    yield answer
            for index, since in busy.items():
                if time.monotonic() - since > self._patience:
                    raise PipelineError(self._silent(index))

    def _send(self, index: int, message: Any) -> None:
        try:
            self._pipes[index].send(message)
        except OSError:  # it said why before it left
            self._receive(index)
            raise PipelineError(self._dead()) from None

    def _receive(self, index: int) -> Any:
        while True:
            if not self._pipes[index].poll(self._patience):
                raise PipelineError(self._silent(index))
            kind, answer = self._next(index)
            if kind == "answer":
                return answer

    def _next(self, index: int) -> tuple[Kind, Any]:
        """The next thing a process says; a refusal raises PipelineError."""
        try:
            kind, answer = self._pipes[index].recv()
        except (EOFError, OSError):
            raise PipelineError(self._dead()) from None
        if kind == "refusal":
            raise PipelineError(answer if self._where in answer else f"{self._where}: {answer}")
        return kind, answer

    def _dead(self) -> str:
        return (
            f"{self._where}: a process that runs environments died, killed or out of memory: what it printed stands "
            f"above ({self._advice})"
        )

    def _silent(self, index: int) -> str:
        return (
            f"{self._where}: an environment has not come back for {self._patience:g} seconds"
            f"{place_in_dump(self._stack(index))}, so its process was ended: mend it, or raise `patience` if it is "
            "only slow"
        )

    def _stack(self, index: int) -> str:
        """Where a process is, as faulthandler writes it; empty where it does not get to say."""
        stack, process = self._stacks[index], self._processes[index]
        with suppress(OSError):
            os.kill(process.pid, signal.SIGUSR1)
        text = b""
        while stack.poll(STACK_SECONDS) and (part := os.read(stack.fileno(), 1 << 16)):
            text += part
        return text.decode(errors="replace")

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            with suppress(OSError):  # it died already
                pipe.send(None)
        deadline = time.monotonic() + LEAVE_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End the processes at once."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in [*self._pipes, *self._stacks]:
            pipe.close()
