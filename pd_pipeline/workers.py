"""Processes that hold environments and answer one message at a time.

A worker never outlives the process that started it, whatever ends that. One that dies, reports an error or hangs ends
the work at once with one line. Long answers send heartbeats (`beat`), so that slow and hung can be distinguished.
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
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.foreign import error_text, leave_timeouts_to_parent, place_in_dump
from pd_pipeline.interruption import held_back

Answer = Callable[[Any], Any]
Kind = Literal["answer", "beat", "error"]

BEAT_SECONDS = 1.0
START_SECONDS = 120.0  # for an interpreter and its imports, which on a busy machine take longer than a step
CLOSE_SECONDS = 2.0  # for a worker to close its environments before it is killed
STACK_SECONDS = 0.5  # for a hanging process to report its stack
CORES = "PD_PIPELINE_CORES"
"""Variable with the number of cores that a piece of work may use, where that is not all of the machine."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def cores() -> int:
    """How many processes may compute side by side."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(os.environ.get(CORES, "0")) or allowed or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside compute on one thread each: with more, all of them would compete for the cores."""
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
    """Split `count` items into at most `workers` slices of nearly equal size."""
    bounds = np.linspace(0, count, min(workers, count) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


# The worker's side


class _Heartbeat:
    """Where heartbeats go and when the next is due; in the main process there is no pipe."""

    pipe: Connection | None = None
    due = 0.0


def beat() -> None:
    """Send a heartbeat, at most one per second; call it often in work that may take longer than a few seconds."""
    if _Heartbeat.pipe is not None and (now := time.monotonic()) > _Heartbeat.due:
        _Heartbeat.due = now + BEAT_SECONDS
        _Heartbeat.pipe.send(("beat", None))


def _serve(pipe: Connection, stack: Connection, build: Callable[..., Answer], arguments: tuple[Any, ...]) -> None:
    die_with_parent()
    leave_timeouts_to_parent()
    faulthandler.register(
        signal.SIGUSR1, stack.fileno()
    )  # works inside compiled code, where a Python handler would not
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group, and the parent decides
        signal.signal(number, signal.SIG_IGN)
    _Heartbeat.pipe = pipe
    answer: Answer | None = None
    try:
        pipe.send(("beat", None))  # it has started: from here on, its patience counts
        answer = build(*arguments)
        pipe.send(("answer", None))
        while (message := pipe.recv()) is not None:
            pipe.send(("answer", answer(message)))
    except (EOFError, BrokenPipeError):  # the parent is gone
        return
    except (Exception, SystemExit) as error:  # whatever a user's environment raises becomes one line in the parent
        with suppress(OSError):
            pipe.send(("error", message_of(error)))
    finally:
        with suppress(Exception, SystemExit):  # the work is done, and the process ends in any case
            getattr(answer, "close", lambda: None)()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (Linux); does nothing without a parent."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent.pid:  # the parent died before the call
        os._exit(1)


def message_of(error: BaseException) -> str:
    """The text of a PipelineError; of another error, its type and the place that raised it too."""
    if isinstance(error, PipelineError):
        return str(error)
    return error_text(error)


# The parent's side


class Workers:
    """One process per entry of `arguments`: it calls `build(*arguments)` once, and the result with every message.

    If the result has a method `close`, the process calls it before it ends, unless it is killed.
    Errors name the stage `where`, and give `advice` where a process died. A process that sends no heartbeat for
    `patience` seconds is killed. A message must not be None. A context manager: an error inside kills the processes.
    """

    def __init__(
        self,
        build: Callable[..., Answer],
        arguments: Sequence[tuple[Any, ...]],
        where: str,
        advice: str,
        patience: float = 600.0,
    ):
        context = multiprocessing.get_context("spawn")  # a fork would copy threads in an inconsistent state
        self._where, self._advice, self._patience = where, advice, patience
        self._pipes: list[Connection] = []
        self._stacks: list[Connection] = []
        self._processes: list[Any] = []
        # a worker ignores SIGTERM, by which multiprocessing would end it and wait for it at the end of this process
        self._at_exit = Finalize(None, _kill, args=(self._processes,), exitpriority=0)
        try:
            with one_thread_each(), held_back():  # a process that is half started would end with a traceback
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
            for index in range(len(self._pipes)):
                self._await_start(index, max(patience, START_SECONDS))
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
        """Send one message to each process. Raises PipelineError where one died."""
        for index, message in enumerate(messages):
            self._send(index, message)

    def gather(self) -> list[Any]:
        """One answer from every process. Raises PipelineError where one died, reported an error or hangs."""
        return [self._receive(index) for index in range(len(self._pipes))]

    def spread(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """Send each job to whichever process is free; yields the answers as they arrive."""
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
                    raise PipelineError(self._hung(index))

    def _send(self, index: int, message: Any) -> None:
        try:
            self._pipes[index].send(message)
        except OSError:  # its last message says why
            self._receive(index)
            raise PipelineError(self._dead()) from None

    def _receive(self, index: int) -> Any:
        while True:
            if not self._pipes[index].poll(self._patience):
                raise PipelineError(self._hung(index))
            kind, answer = self._next(index)
            if kind == "answer":
                return answer

    def _await_start(self, index: int, seconds: float) -> None:
        if not self._pipes[index].poll(seconds):
            raise PipelineError(
                f"{self._where}: one of its processes has not started within {seconds:g} seconds: if a script of "
                'yours runs the stage, its work belongs under `if __name__ == "__main__":`, since every process '
                "imports it"
            )
        self._next(index)

    def _next(self, index: int) -> tuple[Kind, Any]:
        """The next message of a process. Raises PipelineError where it is an error, or the process died."""
        try:
            kind, answer = self._pipes[index].recv()
        except (EOFError, OSError):
            raise PipelineError(self._dead()) from None
        if kind == "error":
            raise PipelineError(answer if self._where in answer else f"{self._where}: {answer}")
        return kind, answer

    def _dead(self) -> str:
        return (
            f"{self._where}: one of its processes died, killed or out of memory: see its output above ({self._advice})"
        )

    def _hung(self, index: int) -> str:
        return (
            f"{self._where}: an environment has not returned for {self._patience:g} seconds"
            f"{place_in_dump(self._stack(index))}, so its process was killed: fix it, or raise `patience` if it is "
            "only slow"
        )

    def _stack(self, index: int) -> str:
        """The stack of a process as faulthandler writes it; empty where it does not respond."""
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
        deadline = time.monotonic() + CLOSE_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End the processes at once."""
        self._at_exit()
        for pipe in [*self._pipes, *self._stacks]:
            pipe.close()


def _kill(processes: Iterable[Any]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
