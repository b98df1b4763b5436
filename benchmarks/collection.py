"""Collection in worker processes against cores x a bare loop of the same environment in one process.

The collection is everything that stage trajectories waits for until the last episode is there: starting the workers,
building the simulators, acting, stepping, keeping the shards. For the scripted families the bare loop acts too; for
locomotion it is physics and reward alone under a constant action, with no policy.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Figure, alone, at_least, timed
from pd_pipeline.families import goal_policy
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.progress import silent
from pd_pipeline.storage import write_json
from pd_pipeline.trajectories.collection import TrajectoriesParams, collect

GOAL, GOAL_OF_LOCOMOTION = 0.75, 0.6
BLOCK: dict[str, Any] = {"horizon": 200}
WIDTH = 256  # of the policies that stage behavior_policies trains
EPISODES = {"reach": (20, 60), "point_robot": (100, 1500), "cheetah_vel": (100, 60), "ant_dir": (60, 40)}
"""Family -> episodes of the bare loop, episodes of each task."""


def bare(family: Family, episodes: int) -> float:
    """Steps a second of one environment in a plain loop, nothing kept."""
    environment = family.make(family.train_tasks[0])
    rng = np.random.default_rng(0)
    options: dict[str, Any] | None = None
    still = np.zeros(family.action_size, np.float32)
    policy: Any = lambda environment, observation, rng: still  # noqa: E731
    if not isinstance(family, Locomotion):
        behavior = family.default_behaviors()["expert"]
        policy, options = family.behavior(behavior), behavior.get("reset")
    steps = 0

    def loop() -> None:
        nonlocal steps
        for episode in range(episodes):
            observation, _ = environment.reset(seed=episode, options=options)  # starts as collection does
            for _ in range(family.horizon):
                observation, _, terminated, _, _ = environment.step(policy(environment, observation, rng))
                steps += 1
                if terminated:
                    break

    seconds = timed(loop)
    return steps / seconds


def describe(family: Family, folder: Path) -> None:
    """`policies.json`, and for locomotion an untrained policy of the size of trained ones."""
    behaviors = family.default_behaviors()
    write_json(folder / "policies.json", behaviors)
    if isinstance(family, Locomotion):
        rng = np.random.default_rng(0)
        inputs = family.observation_size + family.goal_size
        sizes = [(WIDTH, inputs), (WIDTH, WIDTH), (family.action_size, WIDTH)]
        layers = [(0.05 * rng.standard_normal(size), np.zeros(size[0])) for size in sizes]
        about = {"mean": np.zeros(inputs), "deviation": np.ones(inputs), "log_std": np.full(family.action_size, -1.0)}
        goal_policy.save(folder / behaviors["expert"][goal_policy.WEIGHTS], layers, **about)


def workers(family: Family, block: dict[str, Any], episodes: int) -> float:
    """Steps a second of the collection with one worker a core."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        describe(family, root)
        (root / "out").mkdir()
        params = TrajectoriesParams.model_validate({"episodes": {"expert": {"train": episodes, "test": episodes}}})
        began = time.monotonic()
        steps = collect(family, block, root, root, params, root / "out", root / "work", silent)
        return steps / (time.monotonic() - began)


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Bare loop, workers, bare loop, for each family."""
    cores = os.cpu_count() or 1
    figures, details = [], {"cores": cores}
    for name, sizes in EPISODES.items():
        family = load_family(name, BLOCK, Path.cwd())
        alone_episodes, episodes = (1, 1) if quick else sizes
        before = bare(family, alone_episodes)
        found = workers(family, BLOCK, episodes)
        single = statistics.mean((before, bare(family, alone_episodes)))
        goal = GOAL_OF_LOCOMOTION if isinstance(family, Locomotion) else GOAL
        figures.append(at_least(f"{name}: workers", found, cores * single, "steps/s", goal=goal))
        details[f"{name}: bare loop, steps/s"] = single
    return figures, details


if __name__ == "__main__":
    alone("collection", measure)
