"""Episodes in the target's environment for online tuning methods, counted against a budget.

The results of each call are saved in the work folder. A method is a function of its seed and of these results: after a
kill it makes the same calls again and gets the saved results, so that no episode is run or counted twice.
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
"""Seeds -> one environment of the target per seed."""


class Simulation:
    """The target's environment, for at most `budget` episodes. A context manager that ends its processes."""

    def __init__(self, make: MakeBatch, normalization: Normalization, budget: int, seed: int, work: Path, title: str):
        self._make, self._normalization, self._budget, self._seed = make, normalization, budget, seed
        self._work, self._title = work, title
        self._batches: dict[int, LocalBatch | WorkerBatch] = {}
        self._calls = 0
        self.episodes = 0
        """Episodes so far."""
        self.steps = 0
        """Steps of these episodes, which is the number of windows that passed through the policy."""

    def __enter__(self) -> Self:
        """The simulation."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """End the environments."""
        for batch in self._batches.values():
            batch.close()
        self._batches = {}

    def run(self, actors: Actors, target_return: float) -> Rollouts:
        """Run one episode per actor, in parallel, each from its own start. Raises PipelineError beyond the budget."""
        count = len(actors)
        if self.episodes + count > self._budget:
            raise PipelineError(
                f"{self._title}: asks for {count} more episodes after {self.episodes}, but its budget is {self._budget}"
            )
        file = self._work / f"episodes-{self._calls:06d}.safetensors"
        found = self._saved(file, count)
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

    def _saved(self, file: Path, count: int) -> Rollouts | None:
        """The results that an earlier process saved for this call, or None."""
        if not file.is_file():
            return None
        try:
            arrays, _ = load_arrays(file)
            saved = Rollouts(**arrays)
        except (PipelineError, TypeError):  # damaged: the episodes are run again
            remove(file)
            return None
        return saved if len(saved.returns) == count else None
