"""Pieces of work on a Ray cluster.

Each piece is a task with the resources of its stage, on any node that has the project and this package in the same
version. A task reads and writes files, of a file system or a data root that the nodes share, so that nothing but names
is sent to it (see `on_node`). The node checks that it sees the same code, parameters and inputs as this process. A task
whose node is lost runs again elsewhere, and work that can resume does so from its folder. Lineage is recorded by this
process alone.

A piece of a stage that `spreads` starts further tasks, one for some of its parts each, and only puts together what
these leave in its work folder.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pd_pipeline import data_root
from pd_pipeline.engines import on_node
from pd_pipeline.engines.on_node import Asked, asked
from pd_pipeline.engines.order import Piece, R, side_by_side
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import Progress, silent
from pd_pipeline.rendering import address
from pd_pipeline.stage import Key, Spread
from pd_pipeline.stages import Resources

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
        shared = data_root.of(graph)
        if shared is not None and not graph.stages[stage].axes:  # what reads everything is made where everything is
            return run_piece(graph, stage, key, progress)
        needs = fitting(resources(graph, stage, key), self.nodes, graph.params.machine.device != "cpu")
        piece = asked(graph, stage, key)
        if graph.stages[stage].spreads:
            running = _task(_spread_from_node, title, WAITING).remote(piece, needs, self.nodes)
        else:
            running = _task(on_node.compute, title, needs).remote(piece, needs.cpus)
        self._running.add(running)
        try:
            metrics: dict[str, Any] = _result(running, title)
        finally:
            self._running.discard(running)
        if shared is not None and data_root.take(shared, graph, stage, key, silent) is None:
            raise PipelineError(
                f"{title}: made on a node, but not found in {shared.url}: its code, parameters or inputs changed here "
                "during the work, or the node sees another folder there: run it again"
            )
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
    """`asked`, or as much of it as one of `nodes` has: with more, a task would wait for ever.

    That is the node with the most of the GPUs that are asked for, of several that with the most memory, then cores.
    """

    def of(node: Mapping[str, float]) -> Resources:
        return Resources(
            cpus=max(1, min(asked.cpus, int(node.get("CPU", 0)))),
            gpus=min(asked.gpus, node.get("GPU", 0)) if gpu else 0,
            memory=min(asked.memory, node.get("memory", 0) / GIB),
        )

    return max(map(of, nodes), key=lambda fits: (fits.gpus, fits.memory, fits.cpus), default=of({}))


def _task(function: Callable[..., Any], title: str, asked: Resources) -> Any:
    """`function` as a task of Ray that runs again where it is lost."""
    import ray

    # a process that has computed on a card keeps it, and its memory, so that the next task with a card gets a new one
    task: Any = ray.remote(max_calls=1)(function) if asked.gpus else ray.remote(function)
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


def _spread_from_node(piece: Asked, needs: Resources, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """One piece of work on the node that Ray chose, with its parts in tasks that have the resources `needs`."""

    def spread_into(folder: Path, token: str) -> Spread:
        """Has parts leave what they make in this work folder."""

        def spread(work: on_node.Work, parts: Sequence[Any]) -> Iterator[Any]:
            """See `stage.Spread`."""
            import ray

            title = f"parts of {address(piece.stage, piece.key)}"
            size = max(1, -(-len(parts) // (TASKS_PER_SLOT * slots(needs, nodes))))
            some = [list(parts[first : first + size]) for first in range(0, len(parts), size)]
            task = _task(on_node.compute_parts, title, needs)
            running = [task.remote(piece, needs.cpus, work, each, token) for each in some]
            try:
                while running:
                    done, running = ray.wait(running)
                    for one in done:
                        yield from on_node.collected(piece, folder, _result(one, title))
            finally:
                for one in running:
                    ray.cancel(one, force=True)

        return spread

    return on_node.compute(piece, 1, spread_into)


def slots(asked: Resources, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many tasks with the resources `asked` can run at once, by cores; one at least."""
    return max(1, sum(int(node.get("CPU", 0)) // asked.cpus for node in nodes))
