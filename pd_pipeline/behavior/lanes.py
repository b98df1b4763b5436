"""Many environments with random goals, stepped by a few processes, from which PPO collects."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from pd_pipeline.families.base import load_family
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.workers import Answer, Workers, shares


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


def _local(name: str, block: str, root: Path, lanes: Sequence[int], seed: int) -> Answer:
    family = load_family(name, json.loads(block), root)
    assert isinstance(family, Locomotion)
    mine = Lanes(family, lanes, seed)
    return lambda message: mine.reset(message) if isinstance(message, int) else mine.step(message)


class WorkerLanes(VecEnv):
    """`count` lanes in `workers` processes as a Stable-Baselines3 VecEnv: one message per process and step.

    `reset` starts the round `turn`, which the caller sets; results do not depend on the number of workers.
    `ending_cost` is subtracted from the reward of a step that terminates its episode.
    """

    def __init__(
        self,
        family: Locomotion,
        block: dict[str, Any],
        root: Path,
        count: int,
        seed: int,
        workers: int,
        ending_cost: float = 0.0,
    ):
        size = family.observation_size + family.goal_size
        super().__init__(
            count,
            gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32),
            gymnasium.spaces.Box(family.action_low, family.action_high, dtype=np.float32),
        )
        self.turn, self._ending_cost = 0, ending_cost
        self._shares = shares(count, workers)
        arguments = [(family.name, json.dumps(block), root, range(count)[part], seed) for part in self._shares]
        self._workers = Workers(_local, arguments, "behavior_policies", "lower learning.workers")

    def reset(self) -> np.ndarray:
        """Observations (n, d) at the start of round `turn`."""
        self._workers.send([self.turn] * len(self._shares))
        return np.concatenate(self._workers.gather())

    def step_async(self, actions: np.ndarray) -> None:
        """Send out actions (n, d_a)."""
        self._workers.send([actions[part] for part in self._shares])

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations (n, d), rewards (n,), ends (n,), infos."""
        observations, rewards, done, infos = zip(*self._workers.gather(), strict=True)
        all_infos = list(chain(*infos))
        terminated = np.array([not info.get("TimeLimit.truncated", True) for info in all_infos])
        net_rewards = np.concatenate(rewards) - np.float32(self._ending_cost) * terminated
        return np.concatenate(observations), net_rewards, np.concatenate(done), all_infos

    def close(self) -> None:
        """End the processes."""
        self._workers.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """SB3 only asks for `render_mode`, which is None."""
        if attr_name != "render_mode":
            raise AttributeError(attr_name)
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not supported: environments live in other processes."""
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Not supported: environments live in other processes."""
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
        """Whether each is wrapped: none is."""
        return [False] * self.num_envs
