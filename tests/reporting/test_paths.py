"""Rollouts in the plane, where it is known where the goal is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline import config
from pd_pipeline.prompts.segments import Normalization, Prompts
from pd_pipeline.reporting import paths
from pd_pipeline.reporting.gather import FamilyResults, gather
from pd_pipeline.reporting.rollouts import Episode


@pytest.fixture
def results(reported_project: Path) -> FamilyResults:
    folders = {path.name: path for path in (reported_project / "data").iterdir() if path.is_dir()}
    return gather(folders, config.load(reported_project), "point_robot", reported_project, draws=50)


@pytest.mark.parametrize("position", [0.5, "left", [1.0], [1, 2, 3, 4], ["a", "b"], {"x": 1}, None])
def test_a_goal_may_hold_anything_under_the_name_of_a_position(results: FamilyResults, position: Any) -> None:
    """A task of a user's environment may have an argument `position`."""
    task = results.targets[0]
    assert replace(results, goals={task: {"position": position}}).goal_position(task) is None
    there = replace(results, goals={task: {"position": [1, 2.5]}}).goal_position(task)
    assert there is not None
    assert there.tolist() == [1.0, 2.5]


def test_a_goal_of_more_numbers_than_an_observation_has_is_no_place(results: FamilyResults) -> None:
    task, width = results.targets[0], results.episodes[0].observations.shape[1]
    assert width == 2
    assert replace(results, goals={task: {"position": [1, 2.5, 3]}}).goal_position(task) is None


def test_returns_that_were_asked_for_do_not_hide_each_other(results: FamilyResults) -> None:
    """Methods with the same data may ask for different ones."""
    task, changed = results.targets[0], results.metrics["prompt_dt"]
    (name,) = results.asked[str(task)]
    tasks = {each: of._replace(target_return=-900.0) for each, of in changed.tasks.items()}
    found = replace(results, metrics={**results.metrics, "prompt_dt": replace(changed, tasks=tasks)})
    asked = found.asked[str(task)]
    assert asked[f"{name} (prompt_dt)"] == -900.0
    assert len(asked) == 2
    assert all(key.startswith(name) for key in asked)


def test_a_map_may_have_no_prompts_of_other_tasks(results: FamilyResults) -> None:
    rng = np.random.default_rng(0)
    normalization = Normalization(np.zeros(5, np.float32), np.ones(5, np.float32), 1.0, 10, 2, 2)
    some = Prompts(
        rng.normal(size=(6, 3, 5)).astype(np.float32),
        np.zeros((6, 3, 2), np.float32),
        np.zeros(6, np.int32),
        np.zeros(6, np.int64),
        np.zeros(6, np.int32),
    )
    figure, share = paths.prompt_map(some, None, {"prompt_dt": some}, normalization, results.styles)
    assert 0 < share <= 1
    assert "real, other tasks" not in figure.axes[0].get_legend_handles_labels()[1]


def test_an_episode_that_ends_early_does_not_cut_the_others(results: FamilyResults) -> None:
    task, method = results.targets[0], results.methods[0]

    def episode(length: int, distance: float) -> Episode:
        observations = np.tile([1.0 + distance, 2.5], (length, 1))
        return Episode(method, task, 0, observations, np.zeros((length, 2)), 0.0, None)

    found = replace(results, goals={task: {"position": [1.0, 2.5]}}, episodes=[episode(3, 2.0), episode(7, 6.0)])
    (line,) = paths.goal_distance(found).axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), [4.0] * 3 + [6.0] * 4)
