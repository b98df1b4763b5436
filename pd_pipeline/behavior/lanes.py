"""Environments of one process with random goals, from which PPO collects.

Apart from Stable-Baselines3, and so from PyTorch: a process that holds environments loads neither.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from pd_pipeline.families.base import load_family
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.workers import Answer


class Lanes:
    """The environments (lanes) of one process. Episodes follow one another, each with its own goal.

    A lane is a pure function of (seed, round, lane) and the actions: training that resumes at the start of a round
    continues as if it had never stopped.
    """

    def __init__(self, family: Locomotion, lanes: Sequence[int], seed: int):
        self.family, self.lanes, self.seed = family, lanes, seed
        self.environments: list[Any] = [family.with_goal(0.0) for _ in lanes]
        self._rngs: list[np.random.Generator] = []
        self._steps = np.zeros(len(lanes), int)
        self._returns = np.zeros(len(lanes))

    def reset(self, turn: int) -> np.ndarray:
        """Start round `turn`: observations with goals (n, d_s + d_g)."""
        self._rngs = [np.random.default_rng([self.seed, turn, lane]) for lane in self.lanes]
        return np.stack([self._begin(i) for i in range(len(self.lanes))])

    def _begin(self, i: int) -> np.ndarray:
        environment, rng = self.environments[i], self._rngs[i]
        environment.goal = self.family.draw_goal(rng)
        self._steps[i], self._returns[i] = 0, 0.0
        return self._append_goal(environment, environment.reset(seed=int(rng.integers(2**31)))[0])

    def _append_goal(self, environment: gymnasium.Env, observation: np.ndarray) -> np.ndarray:
        return np.concatenate([observation, self.family.goal_features(environment)])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations, rewards (n,), whether an episode ended (n,) and infos; lanes that ended are already reset."""
        count = len(self.lanes)
        observations = np.empty((count, self.family.observation_size + self.family.goal_size), np.float32)
        rewards, done = np.empty(count, np.float32), np.zeros(count, bool)
        infos: list[dict[str, Any]] = [{} for _ in range(count)]
        for i, (environment, action) in enumerate(zip(self.environments, actions, strict=True)):
            observation, reward, terminated, _, _ = environment.step(action)
            rewards[i] = reward
            self._steps[i] += 1
            self._returns[i] += reward
            shown = self._append_goal(environment, observation)
            done[i] = terminated or self._steps[i] == self.family.horizon
            if done[i]:
                infos[i] = {  # the keys that SB3 uses to bootstrap at a time limit and to average episodes
                    "terminal_observation": shown,
                    "TimeLimit.truncated": not terminated,
                    "episode": {"r": float(self._returns[i]), "l": int(self._steps[i]), "t": 0.0},
                }
                shown = self._begin(i)
            observations[i] = shown
        return observations, rewards, done, infos


def lanes_of(name: str, block: str, root: Path, lanes: Sequence[int], seed: int) -> Answer:
    """What a worker process does: a number starts a round, actions are applied."""
    family = load_family(name, json.loads(block), root)
    assert isinstance(family, Locomotion)
    mine = Lanes(family, lanes, seed)
    return lambda message: mine.reset(message) if isinstance(message, int) else mine.step(message)
