"""Errors of foreign environments and policies: one line, nothing stored."""

import time
from typing import Any

import gymnasium
import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families import border
from pd_pipeline.families.point_robot import PointRobot, PointRobotEnv


class Odd(gymnasium.Wrapper):
    """The plane with one result replaced, or an error raised."""

    def __init__(self, environment: gymnasium.Env, **answers: Any):
        super().__init__(environment)
        self.answers = answers

    def reset(self, **arguments: Any) -> Any:
        observation, info = self.env.reset(**arguments)
        if isinstance(raised := self.answers.get("raised"), BaseException):
            raise raised
        return self.answers.get("observation", observation), info

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if isinstance(raised := self.answers.get("raised"), BaseException):
            raise raised
        return (
            self.answers.get("observation", observation),
            self.answers.get("reward", reward),
            terminated,
            truncated,
            info,
        )


def odd(family: PointRobot, **answers: Any) -> Odd:
    return Odd(family.make(0), **answers)


def test_a_valid_step_is_passed_on(point_robot: PointRobot) -> None:
    environment = point_robot.make(0)
    first = border.reset(point_robot, environment, seed=3)
    assert isinstance(environment, PointRobotEnv)
    same = point_robot.make(0)
    np.testing.assert_array_equal(first, same.reset(seed=3)[0])
    step = border.step(point_robot, environment, np.array([1.0, 0.0], np.float32))
    observation, reward, *_ = same.step(np.array([1.0, 0.0], np.float32))
    np.testing.assert_array_equal(step.observation, observation)
    assert (step.reward, step.terminated, step.truncated, step.success) == (reward, False, False, False)


@pytest.mark.parametrize(
    "observation",
    [
        np.zeros(1, np.float32),
        np.float32(1),
        np.zeros((2, 1), np.float32),
        np.zeros(3, np.float32),
        np.zeros(2, int),
        [0.0, 0.0],
    ],
    ids=["one number", "a scalar", "a column", "too wide", "integers", "a list"],
)
def test_an_observation_of_another_shape_or_type_is_refused(point_robot: PointRobot, observation: Any) -> None:
    environment = odd(point_robot, observation=observation)
    with pytest.raises(PipelineError, match=r"family 'point_robot': the environment returned an observation of shape"):
        border.reset(point_robot, environment, seed=0)
    with pytest.raises(PipelineError, match="expected floats of shape"):
        border.step(point_robot, environment, np.zeros(2, np.float32))


@pytest.mark.parametrize("raised", [SystemExit(0), RuntimeError("joint 3"), ZeroDivisionError(), MemoryError()])
def test_every_error_becomes_one_line_with_its_place(point_robot: PointRobot, raised: BaseException) -> None:
    environment = odd(point_robot, raised=raised)
    for what, call in (
        ("reset", lambda: border.reset(point_robot, environment, seed=0)),
        ("step", lambda: border.step(point_robot, environment, np.zeros(2, np.float32))),
    ):
        with pytest.raises(
            PipelineError, match=f"{what} of the environment raised {type(raised).__name__}.*test_border.py"
        ):
            call()


def test_ctrl_c_is_not_an_error_of_the_environment(point_robot: PointRobot) -> None:
    with pytest.raises(KeyboardInterrupt):
        border.reset(point_robot, odd(point_robot, raised=KeyboardInterrupt()), seed=0)


def test_a_reward_that_is_not_a_number_is_refused(point_robot: PointRobot) -> None:
    with pytest.raises(PipelineError, match="step of the environment raised"):
        border.step(point_robot, odd(point_robot, reward=np.zeros(2)), np.zeros(2, np.float32))


@pytest.mark.parametrize("action", [0.5, np.float32(0.5), np.zeros(1, np.float32), np.zeros((1, 2), np.float32)])
def test_an_action_of_another_shape_is_refused(point_robot: PointRobot, action: Any) -> None:
    with pytest.raises(PipelineError, match="a policy returned an action of shape"):
        border.act(
            point_robot, lambda *_: action, point_robot.make(0), np.zeros(2, np.float32), np.random.default_rng(0)
        )


def test_a_policy_that_raises_is_named(point_robot: PointRobot) -> None:
    def policy(*_: Any) -> Any:
        raise SystemExit(0)

    with pytest.raises(PipelineError, match="a behaviour policy raised SystemExit"):
        border.act(point_robot, policy, point_robot.make(0), np.zeros(2, np.float32), np.random.default_rng(0))


def test_an_environment_that_cannot_be_made_is_named(point_robot: PointRobot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(task: int) -> gymnasium.Env:
        raise NotImplementedError("no simulator")

    monkeypatch.setattr(point_robot, "make", refuse)
    with pytest.raises(
        PipelineError, match="making the environment of task 4 raised NotImplementedError: no simulator"
    ):
        border.make(point_robot, 4)


def test_an_environment_that_hangs_in_its_constructor_is_stopped(
    point_robot: PointRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pd_pipeline.foreign.TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(point_robot, "make", lambda task: time.sleep(30))
    with pytest.raises(
        PipelineError, match=r"making the environment of task 4 has not returned after 0\.3 seconds \(.*test_border\.py"
    ):
        border.make(point_robot, 4)


def test_a_goal_must_be_plain(point_robot: PointRobot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert border.goal(point_robot, 0) == point_robot.goal(0)
    for wrong in ({"position": np.zeros(2)}, {"speed": np.float32(1)}, {"speed": float("inf")}):
        monkeypatch.setattr(point_robot, "goal", lambda task, wrong=wrong: wrong)
        with pytest.raises(PipelineError, match=r"^family 'point_robot': goal\(3\) is not plain \(.*tolist\(\)$"):
            border.goal(point_robot, 3)


def test_actions_of_many_environments_have_their_shape(point_robot: PointRobot) -> None:
    class Narrow:
        def __call__(self, environment: Any, observation: np.ndarray, rng: Any) -> np.ndarray:
            return observation

        def together(self, environments: Any, observations: np.ndarray, rngs: Any) -> np.ndarray:
            return observations[:, : len(rngs)]

    made, rng = [point_robot.make(0)] * 3, np.random.default_rng(0)
    with pytest.raises(PipelineError, match=r"returned an action of shape \(3, 1\), expected \(3, 2\): fix the policy"):
        border.act_together(point_robot, Narrow(), made, np.zeros((3, 2), np.float32), [rng])
    assert border.act_together(point_robot, Narrow(), made, np.ones((3, 2), np.float32), [rng] * 3).shape == (3, 2)
