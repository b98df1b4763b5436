"""Pieces of work on a Ray cluster.

Each piece is a task with the resources of its stage, on any node that sees the project under the same path (a shared
file system) and has this package in the same version. A task reads and writes the files of the project, so that nothing
but names is sent to it. The node checks that it sees the same code, parameters and inputs as this process. A task whose
node is lost runs again elsewhere, and work that can resume does so from its folder. Lineage is recorded by this process
alone.

A piece of a stage that `spreads` starts further tasks, one for some of its parts each, and only puts together what
these leave in its work folder.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pd_pipeline.engines.order import Piece, R, side_by_side
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph, load
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import LineProgress, Progress, silent
from pd_pipeline.rendering import address
from pd_pipeline.stage import Key
from pd_pipeline.stages import Resources
from pd_pipeline.workers import CORES

RETRIES = 3
"""How often a task whose node or process is lost runs again."""
WAITING = Resources(cpus=1, gpus=0, memory=0)
"""Of a task that waits for those of its parts: what it keeps meanwhile (all but cores) these could never get."""
TASKS_PER_SLOT = 4
"""Of a piece that is spread: more would balance the load better, and start more processes."""
CONNECT_SECONDS = 10.0
CANCEL_SECONDS = 30.0
GIB = 1 << 30


class Cluster:
    """A Ray cluster as an engine (see `engines.engine`).

    `nodes` are the resources of each node, as Ray names them: CPU, GPU, memory in bytes.
    """

    def __init__(self, nodes: Iterable[Mapping[str, float]]):
        self.nodes = tuple(nodes)
        self._running: set[Any] = set()
        self._cancelled = False

    def compute(self, graph: Graph, stage: str, key: Key, progress: Progress) -> dict[str, Any]:
        """Do one piece of work on a node, and wait for it. Raises PipelineError as `run_piece` does."""
        title = address(stage, key)
        if self._cancelled:
            raise PipelineError(f"{title}: interrupted before it started")
        asked = fitting(resources(graph, stage, key), self.nodes, graph.params.machine.device != "cpu")
        piece = Asked(
            str(graph.root),
            graph.overrides,
            dict(graph.base),
            dict(graph.homes),
            stage,
            str(key),
            graph.work_digest(stage, key),
        )
        if graph.stages[stage].spreads:
            running = _task(_spread_from_node, title, WAITING).remote(piece, asked, self.nodes)
        else:
            running = _task(_on_node, title, asked).remote(piece, asked.cpus)
        self._running.add(running)
        try:
            metrics: dict[str, Any] = _result(running, title)
        finally:
            self._running.discard(running)
        return metrics

    def results(
        self,
        pieces: Sequence[Piece],
        needs: Callable[[str, Key], Iterable[Piece]],
        work: Callable[[str, Key], R],
    ) -> Iterator[R]:
        """Side by side; one that waits for a node costs no more than a thread."""
        slots = int(sum(node.get("CPU", 0) for node in self.nodes))
        return side_by_side(pieces, needs, work, at_once=max(2 * slots, 2), stop=self.cancel)

    def cancel(self) -> None:
        """Kill what runs, and what is about to. Work that can resume does so from what it last saved."""
        import ray

        self._cancelled = True
        deadline = time.monotonic() + CANCEL_SECONDS
        while self._running and time.monotonic() < deadline:
            for running in tuple(self._running):
                ray.cancel(running, force=True)
            time.sleep(0.2)  # a single call is sometimes lost

    def progress(self) -> AbstractContextManager[Progress]:
        """None here: tasks report theirs where they run, and Ray forwards their lines."""
        return nullcontext(silent)


@contextmanager
def connected(address: str | None = None) -> Iterator[Cluster]:
    """Connect to the cluster at `address`, or RAY_ADDRESS; without either, to one of this machine, new if need be.

    Raises PipelineError where Ray is not installed or there is no such cluster.
    """
    try:
        import ray
    except ImportError:
        raise PipelineError("--engine ray: Ray is not installed: pip install 'pd-pipeline[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry from a cluster that is started here
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _refuse_unreachable(address)
    with _handlers_kept():
        try:
            ray.init(address, include_dashboard=None if address else False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PipelineError(f"--engine ray: {address or 'this machine'}: {error}") from error
    try:
        yield Cluster(node["Resources"] for node in ray.nodes() if node["Alive"])
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Raise PipelineError where nobody listens at `address`: Ray itself would try again for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # such as `auto`
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise PipelineError(
            f"--engine ray: no Ray cluster at {address} ({error}): start one (`ray start --head`), or correct "
            "RAY_ADDRESS"
        ) from error


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put back the handler of SIGTERM, which `ray.init` replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def resources(graph: Graph, stage: str, key: Key) -> Resources:
    """What a piece of work asks for: that of its stage, for each of the processes that its parameters ask for."""
    asked, processes = graph.stages[stage].resources, getattr(graph.stage_params(stage, key), "processes", 1)
    return Resources(max(asked.cpus, processes), asked.gpus * processes, asked.memory * processes)


def fitting(asked: Resources, nodes: Iterable[Mapping[str, float]], gpu: bool = True) -> Resources:
    """`asked`, or as much of it as the largest of `nodes` has: with more, a task would wait for ever."""
    has = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU", "memory")}
    return Resources(
        cpus=max(1, min(asked.cpus, int(has["CPU"]))),
        gpus=min(asked.gpus, has["GPU"]) if gpu else 0,
        memory=min(asked.memory, has["memory"] / GIB),
    )


class Asked(NamedTuple):
    """A piece of work as its graph is rebuilt on a node; `work` is its digest where it was asked for."""

    root: str
    overrides: tuple[str, ...]
    base: dict[str, Any]
    homes: dict[tuple[str, str | None, int | None], Path]
    stage: str
    key: str
    work: str


def _task(function: Callable[..., Any], title: str, asked: Resources) -> Any:
    """`function` as a task of Ray that runs again where it is lost."""
    import ray

    task: Any = ray.remote(function)
    needs = {"num_cpus": asked.cpus, "num_gpus": asked.gpus, "memory": int(asked.memory * GIB)}
    return task.options(name=title, max_retries=RETRIES, **needs)


def _result(running: Any, title: str) -> Any:
    """What a task returns, once it has. Raises PipelineError where it raised that, and where Ray lost it for good."""
    import ray

    try:
        return ray.get(running)
    except ray.exceptions.RayTaskError as error:
        cause = error.as_instanceof_cause()
        if isinstance(cause, PipelineError):
            raise PipelineError(str(error.cause)) from None
        raise
    except ray.exceptions.RayError as error:
        raise PipelineError(f"{title}: Ray: {error}: it runs again, and resumes, with the next command") from error


def _on_node(piece: Asked, cpus: int) -> dict[str, Any]:
    """One piece of work on the node that Ray chose."""
    return run_piece(*_prepared(piece, cpus), LineProgress(_print))


def _spread_from_node(piece: Asked, asked: Resources, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """One piece of work on the node that Ray chose, with its parts in tasks that have the resources `asked`."""
    graph, stage, key = _prepared(piece, 1)

    def spread(work: Callable[[Sequence[Any]], Iterable[Any]], parts: Sequence[Any]) -> Iterator[Any]:
        """See `stage.Spread`."""
        import ray

        title = f"parts of {address(stage, key)}"
        size = max(1, -(-len(parts) // (TASKS_PER_SLOT * slots(asked, nodes))))
        some = [list(parts[first : first + size]) for first in range(0, len(parts), size)]
        running = [_task(_parts_on_node, title, asked).remote(piece, asked.cpus, work, each) for each in some]
        try:
            while running:
                done, running = ray.wait(running)
                for one in done:
                    yield from _result(one, title)
        finally:
            for one in running:
                ray.cancel(one, force=True)

    return run_piece(graph, stage, key, LineProgress(_print), spread)


def slots(asked: Resources, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many tasks with the resources `asked` can run at once, by cores; one at least."""
    return max(1, sum(int(node.get("CPU", 0)) // asked.cpus for node in nodes))


def _parts_on_node(
    piece: Asked, cpus: int, work: Callable[[Sequence[Any]], Iterable[Any]], parts: Sequence[Any]
) -> list[Any]:
    """Some parts of a piece of work on the node that Ray chose."""
    _prepared(piece, cpus)  # with it, the modules of the user's methods can be imported here
    return list(work(parts))


def _prepared(piece: Asked, cpus: int) -> tuple[Graph, str, Key]:
    """The graph on this node, and what is to be made of it, on so many cores.

    Raises PipelineError if this node sees something else than the process that asked.
    """
    os.environ[CORES] = str(cpus)
    if "torch" in sys.modules:  # this process has done another piece, perhaps on another number of cores
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cpus)))
    graph = replace(load(Path(piece.root), piece.overrides, piece.base), homes=piece.homes)
    key = graph.key(piece.stage, piece.key)
    if graph.work_digest(piece.stage, key) != piece.work:
        raise PipelineError(
            f"{address(piece.stage, key)}: node {socket.gethostname()} sees other code, parameters or inputs than the "
            f"process that asked for it: install the same version there, and share {piece.root} between all nodes"
        )
    return graph, piece.stage, key


def _print(line: str) -> None:
    print(line, flush=True)
