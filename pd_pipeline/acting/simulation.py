"""Episodes in the target's environment for methods that tune in it, counted against a budget.

Each call is kept in the work folder. A method is a function of its seed and of what it was answered, so that one that
was killed asks the same again, and gets the kept answers without an episode being run twice or counted twice.
"""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pd_pipeline.acting.actors import Actors
from pd_pipeline.acting.environments import LocalBatch, WorkerBatch
from pd_pipeline.acting.rollouts import Group, Rollouts, rollout
from pd_pipeline.errors import PipelineError
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.storage import load_arrays, remove, save_arrays

MakeBatch = Callable[[list[int]], LocalBatch | WorkerBatch]
"""Seeds -> as many environments of the target."""


class Simulation:
    """The target's environment, for at most `budget` episodes. Use it as a context, which ends its processes."""

    def __init__(self, make: MakeBatch, normalization: Normalization, budget: int, seed: int, work: Path, title: str):
        self._make, self._normalization, self._budget, self._seed = make, normalization, budget, seed
        self._work, self._title = work, title
        self._batches: dict[int, LocalBatch | WorkerBatch] = {}
        self._calls = 0
        self.episodes = 0
        """Run so far."""
        self.steps = 0
        """Steps of these episodes: as many windows went through the policy."""

    def __enter__(self) -> Self:
        """The simulation."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """End the environments."""
        for batch in self._batches.values():
            batch.close()
        self._batches = {}

    def run(self, actors: Actors, target_return: float) -> Rollouts:
        """One episode of each of n actors, side by side, each from a start of its own.

        Raises PipelineError beyond the budget.
        """
        count = len(actors)
        if self.episodes + count > self._budget:
            raise PipelineError(
                f"{self._title}: asks for {count} more episodes after {self.episodes}, but its budget is {self._budget}"
            )
        file = self._work / f"episodes-{self._calls:06d}.safetensors"
        found = self._kept(file, count)
        if found is None:
            numbers = range(self.episodes, self.episodes + count)
            seeds = [int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0]) for number in numbers]
            if count not in self._batches:
                self._batches[count] = self._make(seeds)
            found = rollout(
                [Group(np.arange(count), actors)],
                np.full(count, target_return),
                self._normalization,
                self._batches[count],
                silent,
                self._title,
                seeds=seeds,
            )
            save_arrays(file, vars(found))
        self._calls += 1
        self.episodes += count
        self.steps += int(found.lengths.sum())
        return found

    def _kept(self, file: Path, count: int) -> Rollouts | None:
        """What an earlier process was answered at this call."""
        if not file.is_file():
            return None
        try:
            arrays, _ = load_arrays(file)
            kept = Rollouts(**arrays)
        except (PipelineError, TypeError):  # damaged: the episodes are run again
            remove(file)
            return None
        return kept if len(kept.returns) == count else None
