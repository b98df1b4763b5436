"""Many environments with random goals, stepped by a few processes, as a vector environment of Stable-Baselines3."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from pd_pipeline.behavior.lanes import lanes_of
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.workers import Workers, shares


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
        self._workers = Workers(lanes_of, arguments, "behavior_policies", "lower learning.workers")

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
