"""Trajectories that a user brings for a target of point_robot, or of a family like it."""

from pathlib import Path

from pd_pipeline import graph
from pd_pipeline.graph import Graph
from pd_pipeline.incoming.ingest import ingest
from pd_pipeline.trajectories.reading import write
from tests.builders import columns, metadata

ABOUT = {"observation_size": 2, "action_low": (-1.0, -1.0), "action_high": (1.0, 1.0)}


def drop(root: Path, task: int, seed: int, episodes: int = 4, family: str = "other", horizon: int = 6) -> None:
    """Put a file into the drop zone, and say that it is complete."""
    path = root / f"data/incoming/{family}/{task}/{seed}.parquet"
    about = ABOUT | {"family": family, "horizon": horizon, "goals": {task: {"position": [0.5]}}}
    write(path, metadata(**about), [columns(tasks=(task,), d_s=2, seed=seed, episodes=episodes)])
    path.with_name(path.name + ".done").touch()


def accept(root: Path, task: int, episodes: int, family: str = "point_robot", horizon: int = 12) -> Graph:
    """Have a file accepted; returns the graph that knows it."""
    drop(root, task, 1, episodes, family, horizon)
    (outcome,) = ingest(root, {family: graph.load(root).family(family)}, 0)
    assert outcome.state == "accepted", outcome.message
    return graph.load(root)
