"""A method's episodes in the environment: counted, bounded, and not run again after a kill."""

from pathlib import Path

import numpy as np
import pytest

from pd_pipeline.acting.actors import Actors, prompted
from pd_pipeline.acting.environments import LocalBatch
from pd_pipeline.acting.rollouts import Rollouts
from pd_pipeline.acting.simulation import Simulation
from pd_pipeline.errors import PipelineError
from tests.acting.test_rollouts import family, normalization, policy, prompts

TASK = 1


class Counted(Simulation):
    """Records the seeds of all episodes."""

    def __init__(self, work: Path, budget: int = 10, seed: int = 0):
        of, _ = family("point_robot")
        self.begun: list[int] = []

        def make(seeds: list[int]) -> LocalBatch:
            batch = LocalBatch(of, [TASK] * len(seeds), seeds)
            reset = batch.reset

            def counted(seeds: list[int] | None = None) -> np.ndarray:
                self.begun += seeds or []
                return reset(seeds)

            batch.reset = counted  # type: ignore[method-assign]
            return batch

        super().__init__(make, normalization(of), budget, seed, work, "tuned_mine x-1-0")


def actors(count: int) -> Actors:
    of, _ = family("point_robot")
    return prompted(policy(of), prompts(of, count), normalization(of))


def same(one: Rollouts, other: Rollouts) -> None:
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, getattr(other, name))


def test_episodes_are_counted_and_start_differently(tmp_path: Path) -> None:
    with Counted(tmp_path) as simulation:
        first = simulation.run(actors(2), 3.0)
        second = simulation.run(actors(2), 3.0)
        simulation.run(actors(1), 3.0)
    assert simulation.episodes == 5
    assert len(set(simulation.begun)) == 5
    assert (first.observations[:, 0] != second.observations[:, 0]).all()


def test_no_episode_is_run_beyond_the_budget(tmp_path: Path) -> None:
    with Counted(tmp_path, budget=3) as simulation:
        simulation.run(actors(2), 3.0)
        with pytest.raises(PipelineError, match=r"tuned_mine x-1-0: asks for 2 more episodes after 2, .* budget is 3"):
            simulation.run(actors(2), 3.0)
        assert (simulation.episodes, len(simulation.begun)) == (2, 2)
        simulation.run(actors(1), 3.0)
    assert simulation.episodes == 3


def test_results_depend_on_the_seed(tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        with Counted(tmp_path / name, seed=seed) as simulation:
            found.append(simulation.run(actors(2), 3.0))
    same(found[0], found[1])
    assert (found[0].observations != found[2].observations).any()


def test_after_a_kill_saved_results_are_returned_without_new_episodes(tmp_path: Path) -> None:
    with Counted(tmp_path) as killed:
        before = [killed.run(actors(2), 3.0), killed.run(actors(1), 3.0)]
    with Counted(tmp_path) as resumed:
        again = [resumed.run(actors(2), 3.0), resumed.run(actors(1), 3.0)]
        assert (resumed.begun, resumed.episodes) == ([], 3)
        last = resumed.run(actors(2), 3.0)
    for one, other in zip(before, again, strict=True):
        same(one, other)
    with Counted(tmp_path / "undisturbed") as whole:
        same([whole.run(actors(n), 3.0) for n in (2, 1, 2)][-1], last)
    assert resumed.begun == whole.begun[3:]


def test_damaged_results_are_computed_again(tmp_path: Path) -> None:
    with Counted(tmp_path) as first:
        before = first.run(actors(2), 3.0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with Counted(tmp_path) as second:
        same(second.run(actors(2), 3.0), before)
    assert len(second.begun) == 2
