"""Pieces of work on a Ray cluster.

Each piece is a task with the resources of its stage, on any node that sees the project under the same path (a shared
file system) and has this package in the same version. A task reads and writes the files of the project, so that nothing
but names is sent to it. The node checks that it sees the same code, parameters and inputs as this process. A task whose
node is lost runs again elsewhere, and work that can resume does so from its folder. Lineage is recorded by this process
alone.
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
from typing import Any

from pd_pipeline.engines.order import Piece, side_by_side
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
        import ray

        if self._cancelled:
            raise PipelineError(f"{address(stage, key)}: interrupted before it started")
        asked = fitting(graph.stages[stage].resources, self.nodes, graph.params.machine.device != "cpu")
        task: Any = ray.remote(_on_node)
        task = task.options(
            name=address(stage, key),
            num_cpus=asked.cpus,
            num_gpus=asked.gpus,
            memory=int(asked.memory * GIB),
            max_retries=RETRIES,
        )
        work = graph.work_digest(stage, key)
        given = (str(graph.root), graph.overrides, dict(graph.base), dict(graph.homes), stage, str(key), work)
        running = task.remote(*given, asked.cpus)
        self._running.add(running)
        try:
            metrics: dict[str, Any] = ray.get(running)
        except ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            if isinstance(cause, PipelineError):
                raise PipelineError(str(error.cause)) from None
            raise
        except ray.exceptions.RayError as error:
            raise PipelineError(
                f"{address(stage, key)}: Ray: {error}: it runs again, and resumes, with the next command"
            ) from error
        finally:
            self._running.discard(running)
        return metrics

    def each(
        self,
        pieces: Sequence[Piece],
        needs: Callable[[str, Key], Iterable[Piece]],
        work: Callable[[str, Key], Any],
    ) -> None:
        """Side by side; one that waits for a node costs no more than a thread."""
        slots = int(sum(node.get("CPU", 0) for node in self.nodes))
        side_by_side(pieces, needs, work, at_once=max(2 * slots, 2), stop=self.cancel)

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


def fitting(asked: Resources, nodes: Iterable[Mapping[str, float]], gpu: bool = True) -> Resources:
    """`asked`, or as much of it as the largest of `nodes` has: with more, a task would wait for ever."""
    has = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU", "memory")}
    return Resources(
        cpus=max(1, min(asked.cpus, int(has["CPU"]))),
        gpus=min(asked.gpus, has["GPU"]) if gpu else 0,
        memory=min(asked.memory, has["memory"] / GIB),
    )


def _on_node(
    root: str,
    overrides: tuple[str, ...],
    base: dict[str, Any],
    homes: dict[tuple[str, str | None, int | None], Path],
    stage: str,
    name: str,
    work: str,
    cpus: int,
) -> dict[str, Any]:
    """One piece of work on the node that Ray chose; `work` is its digest where it was asked for."""
    os.environ[CORES] = str(cpus)
    if "torch" in sys.modules:  # this process has done another piece, perhaps on another number of cores
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cpus)))
    graph = replace(load(Path(root), overrides, base), homes=homes)
    key = graph.key(stage, name)
    if graph.work_digest(stage, key) != work:
        raise PipelineError(
            f"{address(stage, key)}: node {socket.gethostname()} sees other code, parameters or inputs than the "
            f"process that asked for it: install the same version there, and share {root} between all nodes"
        )
    return run_piece(graph, stage, key, LineProgress(lambda line: print(line, flush=True)))
