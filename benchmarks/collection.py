"""Collection in worker processes against cores x a bare loop of the same environment in one process.

Collection includes everything that stage trajectories does until its Parquet files are written: starting the workers,
building the simulators, acting, stepping, saving the shards, putting them together and checking them. For the scripted
families the bare loop acts too; for locomotion it is only physics and reward under a constant action, without a policy.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Figure, at_least, command, timed
from pd_pipeline.families import goal_policy
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.progress import silent
from pd_pipeline.storage import write_json
from pd_pipeline.trajectories.collection import TrajectoriesParams, collect
from pd_pipeline.workers import cores

GOAL, GOAL_OF_LOCOMOTION = 0.75, 0.6
BLOCK: dict[str, Any] = {"horizon": 200}
WIDTH = 256  # of the policies that stage behavior_policies trains
EPISODES = {"reach": (20, 60), "point_robot": (100, 1500), "cheetah_vel": (100, 60), "ant_dir": (60, 40)}
"""Family -> episodes of the bare loop, episodes per task."""


def bare(family: Family, episodes: int) -> float:
    """Steps per second of one environment in a plain loop, without saving anything."""
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
    """Write `policies.json`, and for locomotion an untrained policy of the usual size."""
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
    """Steps per second of collection with one worker per core."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        describe(family, root)
        (root / "out").mkdir()
        params = TrajectoriesParams.model_validate({"episodes": {"expert": {"train": episodes, "test": episodes}}})
        started = time.monotonic()
        steps = collect(family, block, root, root, params, root / "out", root / "work", silent)
        return steps / (time.monotonic() - started)


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Bare loop, workers, bare loop, for each family."""
    at_once = cores()
    figures: list[Figure] = []
    details: dict[str, float | None] = {"cores": at_once}
    for name, sizes in EPISODES.items():
        family = load_family(name, BLOCK, Path.cwd())
        alone_episodes, episodes = (1, 1) if quick else sizes
        before = bare(family, alone_episodes)
        found = workers(family, BLOCK, episodes)
        single = statistics.mean((before, bare(family, alone_episodes)))
        goal = GOAL_OF_LOCOMOTION if isinstance(family, Locomotion) else GOAL
        figures.append(at_least(f"{name}: workers", found, at_once * single, "steps/s", goal=goal))
        details[f"{name}: bare loop, steps/s"] = single
    return figures, details


if __name__ == "__main__":
    command("collection", measure)
