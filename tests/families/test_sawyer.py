"""The faster form of Meta-World's environments gives Meta-World's numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import transform

from benchmarks.meta_world import same
from pd_pipeline.families.base import load_family
from pd_pipeline.families.meta_world import GOAL
from pd_pipeline.families.ml1 import ML1
from pd_pipeline.families.sawyer import quaternion
from tests.builders import with_benchmark

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("meta_world")  # a benchmark is built once
TASKS = ["reach-v3", "pick-place-v3", "assembly-v3", "door-open-v3", "hand-insert-v3", "stick-pull-v3"]
"""A goal alone; grasping; a reward of rotations; a model that each reset changes; contacts; two objects."""


def family(task: str) -> ML1:
    made = load_family("mine", {"meta_world": task}, HERE)
    assert isinstance(made, ML1)
    return with_benchmark(made)


def original(made: ML1, task: int) -> Any:
    """Meta-World's own environment of the task."""
    found = made._benchmark.train_classes[made.environment]()
    found.set_task(made._benchmark.train_tasks[task])
    return found


def saved(model: Any) -> bytes:
    """All of a scene."""
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def scripted(made: ML1, simulator: Any) -> Callable[[np.ndarray], np.ndarray]:
    script, rng = made.script(), np.random.default_rng(0)

    def act(observation: np.ndarray) -> np.ndarray:
        shown = observation.copy()
        shown[GOAL] = simulator._target_pos
        return np.clip(script.get_action(shown) + 0.1 * rng.standard_normal(4), -1, 1).astype(np.float32)

    return act


@pytest.mark.parametrize("task", TASKS)
def test_episodes_are_those_of_meta_world_to_the_bit(task: str) -> None:
    made = family(task)
    theirs, ours = original(made, 3), made.make(3).simulator  # type: ignore[attr-defined]
    for length in (70, 20):  # the second episode starts from the saved start
        expected, found = theirs.reset(), ours.reset()
        assert same(found, expected)
        act = scripted(made, theirs)
        observation = expected[0]
        for _ in range(length):
            action = act(observation)
            expected, found = theirs.step(action), ours.step(action)
            assert same(found, expected)
            observation = expected[0]
    assert not np.array_equal(observation[:3], theirs.reset()[0][:3]), "the arm has moved"


def test_another_task_has_another_start() -> None:
    made = family("push-v3")
    ours = made.make(3).simulator  # type: ignore[attr-defined]
    before = ours.reset()[0]
    ours.set_task(made._benchmark.train_tasks[7])
    assert same(ours.reset(), original(made, 7).reset())
    assert not np.array_equal(ours.reset()[0], before)


def test_a_reset_shows_the_start_and_can_be_changed_by_its_caller() -> None:
    made = family("reach-v3")
    ours = made.make(3).simulator  # type: ignore[attr-defined]
    first, hand = ours.reset()[0].copy(), ours.get_endeff_pos().copy()
    for _ in range(20):
        ours.step(np.ones(4, np.float32))
    assert not np.array_equal(ours.get_endeff_pos(), hand)
    ours.reset()[0][:] = 7.0
    again = ours.reset()[0]
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(ours.get_endeff_pos(), hand)


def test_an_instance_has_a_scene_of_its_own() -> None:
    made = family("push-v3")
    ours, other = made.make(3).simulator, made.make(7).simulator  # type: ignore[attr-defined]
    assert not np.array_equal(ours._target_pos, other._target_pos)
    mass = ours.model.body_mass.sum()
    other.model.body_mass[:] *= 2
    assert ours.model.body_mass.sum() == mass
    assert made.make(3).simulator.model.body_mass.sum() == mass  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", TASKS)
def test_instances_of_a_task_share_a_scene_that_steps_do_not_change(task: str) -> None:
    made = family(task)
    ours, other = (made.make(3).simulator for _ in range(2))  # type: ignore[attr-defined]
    assert ours.model is other.model
    before = saved(ours.model)
    theirs = original(made, 3)
    for _ in range(2):
        expected = theirs.reset()
        assert same(ours.reset(), expected)
        act = scripted(made, theirs)
        observation = expected[0]
        for _ in range(60):
            other.step(np.ones(4, np.float32))
            action = act(observation)
            expected = theirs.step(action)
            assert same(ours.step(action), expected)
            observation = expected[0]
        other.reset()
    assert same(made.make(3).simulator.reset(), theirs.reset())  # type: ignore[attr-defined]
    assert saved(ours.model) == before


def test_another_task_is_set_for_one_instance_alone() -> None:
    made = family("push-v3")
    ours, other = (made.make(3).simulator for _ in range(2))  # type: ignore[attr-defined]
    before = saved(other.model)
    ours.set_task(made._benchmark.train_tasks[7])
    assert same(ours.reset(), original(made, 7).reset())
    assert saved(other.model) == before != saved(ours.model)
    assert same(made.make(3).simulator.reset(), original(made, 3).reset())  # type: ignore[attr-defined]


def test_the_maximum_of_steps_is_named() -> None:
    made = family("reach-v3")
    ours = made.make(3).simulator  # type: ignore[attr-defined]
    ours.reset()
    ours.curr_path_length = 499
    assert ours.step(np.zeros(4, np.float32))[3], "truncated"
    with pytest.raises(ValueError, match="the episode has 500 steps"):
        ours.step(np.zeros(4, np.float32))


numbers = st.lists(st.one_of(st.just(0.0), st.floats(-1, 1)), min_size=4, max_size=4)


@given(numbers.filter(lambda parts: max(map(abs, parts)) > 0.01))
def test_quaternions_are_scipys_to_the_bit(parts: list[float]) -> None:
    unit = np.array(parts) / np.linalg.norm(parts)
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, unit)
    matrix = matrix.reshape(3, 3)  # (9,) -> (3, 3)
    np.testing.assert_array_equal(quaternion(matrix), transform.Rotation.from_matrix(matrix).as_quat())
