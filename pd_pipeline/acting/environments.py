"""Many environments stepped together, in worker processes that each hold a share of them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.families import border
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.workers import Answer, Workers, beat, cores, shares


class Outcome(NamedTuple):
    """The results of a step of n environments; zeros for an environment whose episode has ended."""

    observations: np.ndarray  # (n, d_s) float32
    rewards: np.ndarray  # (n,) float32
    success: np.ndarray  # (n,) bool
    ended: np.ndarray  # (n,) bool


def episode_seed(seed: int, task: int, prompt: int, episode: int = 0) -> int:
    """The seed of an episode's reset: the same for every method, so that prompt i of each starts alike."""
    return int(np.random.SeedSequence([seed, task, prompt, episode]).generate_state(1)[0])


class LocalBatch:
    """Environments of this process."""

    def __init__(self, family: Family, tasks: list[int], seeds: list[int]):
        self.family, self.tasks, self.seeds = family, tasks, seeds
        self.observation_size = family.observation_size  # first: some simulators can exist only once in a process
        self.environments: list[gymnasium.Env] = []
        for task in tasks:
            self.environments.append(border.make(family, task))
            beat()
        self._ended = np.zeros(len(tasks), bool)
        self._steps = 0  # in this episode

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """Start an episode, with new `seeds` from now on if given: observations (n, d_s)."""
        self.seeds = seeds or self.seeds
        self._ended[:] = False
        self._steps = 0
        observations = []
        for environment, seed in zip(self.environments, self.seeds, strict=True):
            observations.append(border.reset(self.family, environment, seed=seed))
            beat()
        return self._finite(np.stack(observations), "observation")

    def step(self, actions: np.ndarray) -> Outcome:
        """Apply actions (n, d_a) in task units."""
        count = len(self.environments)
        self._steps += 1
        outcome = Outcome(
            np.zeros((count, self.observation_size), np.float32),
            np.zeros(count, np.float32),
            np.zeros(count, bool),
            self._ended,
        )
        for i in np.flatnonzero(~self._ended):
            step = border.step(self.family, self.environments[i], actions[i])
            outcome.observations[i], outcome.rewards[i] = step.observation, step.reward
            outcome.success[i] = step.success
            self._ended[i] = step.terminated or step.truncated
            beat()
        self._finite(outcome.observations, "observation")
        self._finite(outcome.rewards, "reward")
        return outcome._replace(ended=self._ended.copy())

    def _finite(self, values: np.ndarray, what: str) -> np.ndarray:
        """`values` (n, ...) of n environments, if finite. Raises PipelineError otherwise."""
        if not np.isfinite(values).all():
            broken = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))[0])  # (n, ...) -> (n, k)
            when = f"step {self._steps}" if self._steps else "reset"
            raise PipelineError(
                f"family '{self.family.name}': the environment of task {self.tasks[broken]} returned "
                f"{what} values that are not finite ({when}, seed {self.seeds[broken]}): fix the environment"
            )
        return values

    def close(self) -> None:
        """Close every environment."""
        for environment in self.environments:
            environment.close()


class _Served(LocalBatch):
    """Environments of a worker process: a list of seeds starts an episode, actions are applied."""

    def __call__(self, message: Any) -> Any:
        return self.reset(message) if isinstance(message, list) else self.step(message)


def _serve(name: str, block: str, root: Path, tasks: list[int], seeds: list[int]) -> Answer:
    return _Served(load_family(name, json.loads(block), root), tasks, seeds)


class WorkerBatch:
    """The same environments spread over worker processes; results do not depend on their number."""

    def __init__(
        self,
        family: Family,
        block: dict[str, Any],
        root: Path,
        tasks: list[int],
        seeds: list[int],
        workers: int,
        patience: float = 600.0,
        stage: str = "evaluation",
    ):
        self._shares, self._seeds = shares(len(tasks), workers), seeds
        text = json.dumps(block)
        arguments = [(family.name, text, root, tasks[part], seeds[part]) for part in self._shares]
        self._workers = Workers(_serve, arguments, stage, f"lower {stage}.workers", patience)

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """Start an episode, with new `seeds` from now on if given: observations (n, d_s)."""
        self._seeds = seeds or self._seeds
        self._workers.send([self._seeds[part] for part in self._shares])
        return np.concatenate(self._workers.gather())

    def step(self, actions: np.ndarray) -> Outcome:
        """Apply actions (n, d_a) in task units."""
        self._workers.send([actions[part] for part in self._shares])
        return Outcome(*(np.concatenate(column) for column in zip(*self._workers.gather(), strict=True)))

    def close(self) -> None:
        """End the workers."""
        self._workers.close()


def make_batch(
    family: Family,
    block: dict[str, Any],
    root: Path,
    tasks: list[int],
    seeds: list[int],
    workers: int | None = None,
    patience: float = 600.0,
    stage: str = "evaluation",
) -> LocalBatch | WorkerBatch:
    """One environment per entry of `tasks`, reset with `seeds`; `workers` None: one per core. `stage` is for errors.

    A process that sends no heartbeat for `patience` seconds is killed.
    """
    count = min(workers or cores(), len(tasks))
    if count == 1 and not family.is_foreign:  # foreign code may hang, and only a separate process can be killed
        return LocalBatch(family, tasks, seeds)
    return WorkerBatch(family, block, root, tasks, seeds, count, patience, stage)
