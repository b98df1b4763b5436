"""Collection in worker processes against cores x a bare loop of the same environment and policy in one process.

The collection is everything that stage trajectories waits for until the last episode is there: starting the workers,
building the simulators, stepping, keeping the shards.
"""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Figure, alone, at_least, timed
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.progress import silent
from pd_pipeline.storage import write_json
from pd_pipeline.trajectories.collection import TrajectoriesParams, collect

GOAL = 0.75
BLOCKS: dict[str, dict[str, Any]] = {"reach": {"horizon": 200}, "point_robot": {"horizon": 200}}


def bare(family: Family, episodes: int) -> float:
    """Steps a second of one environment in a plain loop, nothing kept."""
    behavior = family.default_behaviors()["expert"]
    policy, options = family.behavior(behavior), behavior.get("reset")
    environment = family.make(family.train_tasks[0])
    rng = np.random.default_rng(0)

    def loop() -> None:
        for episode in range(episodes):
            observation, _ = environment.reset(seed=episode, options=options)  # starts as collection does
            for _ in range(family.horizon):
                observation = environment.step(policy(environment, observation, rng))[0]

    return episodes * family.horizon / timed(loop)


def workers(family: Family, block: dict[str, Any], episodes: int) -> float:
    """Steps a second of the collection with one worker a core."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_json(root / "policies.json", family.default_behaviors())
        (root / "out").mkdir()
        params = TrajectoriesParams.model_validate({"episodes": {"expert": {"train": episodes, "test": episodes}}})
        cost = collect(family, block, root, root, params, root / "out", root / "work", silent)
    return cost["steps"] / cost["seconds"]


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Bare loop, workers, bare loop, for each family."""
    cores = os.cpu_count() or 1
    sizes = {"reach": (1, 1), "point_robot": (5, 5)} if quick else {"reach": (20, 60), "point_robot": (100, 1500)}
    figures, details = [], {"cores": cores}
    for name, (alone_episodes, episodes) in sizes.items():
        family = load_family(name, BLOCKS[name], Path.cwd())
        before = bare(family, alone_episodes)
        found = workers(family, BLOCKS[name], episodes)
        single = statistics.mean((before, bare(family, alone_episodes)))
        figures.append(at_least(f"{name}: workers", found, cores * single, "steps/s", goal=GOAL))
        details[f"{name}: bare loop, steps/s"] = single
    return figures, details


if __name__ == "__main__":
    alone("collection", measure)
