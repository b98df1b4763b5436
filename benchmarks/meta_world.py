"""A step and a reset of each Meta-World task against Meta-World's own, which must give the same numbers.

Both environments of a task go through the same episodes in turn: the script with noise, its beginning once more, and
random actions. Any difference of observation, reward or info ends the benchmark. For some tasks the limit, physics
alone, is measured too: it stays MuJoCo's.
"""

import statistics
import time
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from benchmarks.common import Figure, at_least, command, share_of, timed
from pd_pipeline.families.base import load_family
from pd_pipeline.families.meta_world import MetaWorldEnv
from pd_pipeline.families.ml1 import ML1

GOALS = {"reach-v3": 2.0, "pick-place-v3": 2.0, "push-v3": 2.0, "door-open-v3": 1.0}
"""Task -> the ratio of steps per second that it should reach."""
EPISODES = (("script", 100), ("script", 30), ("random", 50))
TASK = 4


def pair(name: str) -> tuple[ML1, Any, Any]:
    """The family, its environment and Meta-World's, both set to one task."""
    family = load_family("measured", {"meta_world": name}, Path.cwd())
    assert isinstance(family, ML1)
    made = family.make(TASK)
    assert isinstance(made, MetaWorldEnv)
    original = family._benchmark.train_classes[name]()
    original.set_task(family._benchmark.train_tasks[TASK])
    return family, made.simulator, original


def compare(name: str) -> dict[str, float]:
    """Seconds per step and per reset, ours and theirs. Raises RuntimeError where the numbers differ."""
    family, ours, original = pair(name)
    rng, script = np.random.default_rng(0), family.script()
    spent: dict[str, list[float]] = {key: [] for key in ("ours", "theirs", "our reset", "their reset")}

    def both(names: tuple[str, str], act: Any) -> Any:
        results = []
        for key, environment in zip(names, (ours, original), strict=True):
            started = time.perf_counter()
            results.append(act(environment))
            spent[key].append(time.perf_counter() - started)
        if not same(*results):
            raise RuntimeError(f"{name}: numbers differ from Meta-World's")
        return results[1]

    ours.reset()  # the first one simulates the way to the start
    for kind, length in EPISODES:
        observation = both(("our reset", "their reset"), lambda environment: environment.reset())[0]
        for _ in range(length):
            shown = observation.copy()
            shown[36:39] = original._target_pos
            chosen = script.get_action(shown) if kind == "script" else rng.uniform(-1, 1, 4)
            action = np.clip(chosen + 0.1 * rng.standard_normal(4), -1, 1).astype(np.float32)
            observation = both(("ours", "theirs"), lambda environment, action=action: environment.step(action))[0]
    return {key: statistics.median(values) for key, values in spent.items()}


def same(ours: Any, theirs: Any) -> bool:
    """Whether nested results are equal to the bit."""
    if isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in theirs)
    return bool(np.array_equal(ours, theirs))


def physics(name: str, steps: int = 100) -> float:
    """Seconds of a step of MuJoCo alone, from the states that the script comes through: contacts take time."""
    family, simulator, original = pair(name)
    script, spent = family.script(), []
    observation = simulator.reset()[0]
    original.reset()

    def step(data: mujoco.MjData) -> None:
        mujoco.mj_step(simulator.model, data, nstep=simulator.frame_skip)
        mujoco.mj_forward(simulator.model, data)

    for _ in range(steps):
        shown = observation.copy()
        shown[36:39] = original._target_pos
        action = np.clip(script.get_action(shown), -1, 1).astype(np.float32)
        spent.append(timed(partial(step, copy(simulator.data))))
        observation = simulator.step(action)[0]
    return statistics.median(spent)


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Every task of ML1."""
    from metaworld.policies import ENV_POLICY_MAP

    names = ["reach-v3"] if quick else sorted(ENV_POLICY_MAP)
    found = {name: compare(name) for name in names}
    figures = []
    for name, goal in GOALS.items():
        if name in found:
            ours, theirs = 1 / found[name]["ours"], 1 / found[name]["theirs"]
            figures.append(at_least(f"{name}: a step", ours, theirs, "steps/s", goal=goal))
            figures.append(share_of(f"{name}: a step, of physics alone", ours, 1 / physics(name), "steps/s"))
    ours, theirs = 1 / found["reach-v3"]["our reset"], 1 / found["reach-v3"]["their reset"]
    figures.append(at_least("reach-v3: a reset", ours, theirs, "resets/s", goal=10))
    ratios = {name: round(times["theirs"] / times["ours"], 2) for name, times in found.items()}
    return figures, {"tasks with equal numbers": len(found), "steps per second, ratio of each task": ratios}


if __name__ == "__main__":
    command("meta_world", measure)
