"""All of point_robot on a Ray cluster of one node on this machine, against `pd-pipeline run all`.

The node has one core, and the command alone uses one, so that both work on one piece at a time: what the cluster takes
longer is what Ray costs, which is processes, scheduling, and a second copy of every import.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Figure, at_most, command, timed
from benchmarks.projects import call, project
from pd_pipeline import graph
from pd_pipeline.workers import CORES

RUN = "pd-pipeline", "run", "all"


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        alone, shared = (project(Path(folder) / name, quick) for name in ("alone", "shared"))
        call(alone, "pd-pipeline", "run", "behavior_policies")  # what imports read is in memory from here on
        by_hand = timed(lambda: call(alone, *RUN, **{CORES: "1"}))
        idle = timed(lambda: call(alone, *RUN, **{CORES: "1"}))
        nodes = Cluster()
        try:
            starting = timed(lambda: _start(nodes, (0, 1)))  # the head computes nothing
            on_ray = timed(lambda: call(shared, *RUN, "--engine", "ray", RAY_ADDRESS=nodes.address))
            idle_on_ray = timed(lambda: call(shared, *RUN, "--engine", "ray", RAY_ADDRESS=nodes.address))
        finally:
            nodes.shutdown()
        made = graph.load(alone)
        pieces = sum(len(made.keys(stage)) for stage in made.stages)
        load = os.getloadavg()[0]
    figures = [
        at_most(f"run all, {pieces} pieces: a node of one core / one process", on_ray, by_hand, "s", goal=1.5),
        at_most("the same, all up to date", idle_on_ray, idle, "s", goal=2.0),
    ]
    return figures, {"seconds to start the cluster": starting, "load after": load}


def _start(nodes: Any, cores: tuple[int, ...]) -> None:
    for count in cores:
        nodes.add_node(num_cpus=count, object_store_memory=80 << 20, include_dashboard=False)


if __name__ == "__main__":
    command("cluster", measure)
