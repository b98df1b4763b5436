"""Any task of Meta-World's ML1, by its name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import load_family
from pd_pipeline.families.meta_world import GOAL
from pd_pipeline.families.ml1 import ML1
from pd_pipeline.trajectories.collection import Pool, Shard, collect_episodes
from tests.builders import with_benchmark

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("meta_world")  # a benchmark is built once


def family(task: str = "push-v3", **changes: Any) -> ML1:
    made = load_family("mine", {"meta_world": task, **changes}, HERE)
    assert isinstance(made, ML1)
    return with_benchmark(made)


def test_the_name_alone_makes_a_family() -> None:
    made = family()
    assert (made.observation_size, made.action_size, made.horizon, made.is_foreign) == (39, 4, 500, False)
    assert made.test_tasks == (10, 16, 24, 35, 40)
    assert len(made.train_tasks) == 45
    assert not set(made.train_tasks) & set(made.test_tasks)
    assert {"metaworld", "mujoco"} <= made.versions().keys()


def test_validation_leaves_the_targets_out_altogether() -> None:
    made = family(split="validation")
    assert made.test_tasks == (3, 12, 21, 30, 44)
    assert not set(made.train_tasks) & {*made.test_tasks, 10, 16, 24, 35, 40}


@pytest.mark.parametrize("task", ["push-v3", "drawer-close-v3"])
def test_the_script_solves_it_without_the_goal_in_the_observations(task: str) -> None:
    made = family(task, benchmark_seed=3)
    arrays = collect_episodes(Pool(made), made.default_behaviors()["expert"], Shard("expert", 10, 0, 1), seed=0)
    assert arrays["success"].any()
    assert not arrays["observation"][:, GOAL].any()
    assert made.goal(10) != made.goal(11), "tasks differ"


def test_a_second_object_is_hidden_with_the_first() -> None:
    shown, hidden = (family("stick-push-v3", mask_object=mask).make(3).reset()[0] for mask in (False, True))
    assert shown[11:18].any()
    assert shown[29:36].any()
    kept = [*range(4), *range(18, 22)]
    np.testing.assert_array_equal(hidden[kept], shown[kept])
    assert np.delete(hidden, kept).tolist() == [0.0] * (39 - len(kept))


def test_weaker_behavior_is_worse() -> None:
    made, returns = family(horizon=150), {}
    for quality, description in made.default_behaviors().items():
        arrays = collect_episodes(Pool(made), description, Shard(quality, 10, 0, 1), seed=0)
        returns[quality] = float(np.sum(arrays["reward"]))
    assert returns["expert"] > returns["medium"] > returns["random"]


def test_targets_of_a_split_that_is_not_used_need_not_exist() -> None:
    assert family(tasks=20, test_tasks=(3, 7)).test_tasks == (3, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "psuh-v3"}, r"meta_world: 'psuh-v3' is not a task of Meta-World: did you mean 'push-v3'\?"),
        ({"task": "xyzzy-v9"}, r"meta_world: 'xyzzy-v9' is not a task of Meta-World: choose one of assembly-v3, "),
        ({"task": "../push"}, r"meta_world: String should match"),
        ({"horizon": 501}, r"horizon: .*less than or equal to 500"),
        ({"tasks": 20}, r"environment\.test_tasks: \[24, 35, 40\] are not among tasks 0 to 19"),
        ({"test_tasks": (3, 5, 3)}, r"environment: tasks \[3\] appear more than once among the test tasks"),
        ({"tasks": 41, "split": "validation"}, r"environment\.validation_tasks: \[44\] are not among tasks 0 to 40"),
        ({"gain": 0}, r"gain"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        family(**changes)
