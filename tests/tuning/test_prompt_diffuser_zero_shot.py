"""Prompts for a target of which nothing is known: the pre-trained diffuser under conditions of training tasks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.models.conditions import Conditions, conditioned
from pd_pipeline.models.diffuser import generate
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Prompts, cut
from pd_pipeline.tuning import prompt_diffuser_zero_shot
from pd_pipeline.tuning.prompt_diffuser_zero_shot import Params, nearest_in_return
from pd_pipeline.tuning.protocol import Pretrained, Run
from pd_pipeline.tuning.unseen import Unseen
from tests.builders import trajectories
from tests.tuning.tiny import PROMPT, TASK, pretrained

DATA = trajectories((10, 8, 10, 9), (0, 0, 1, 2), seed=3)


def made(plm: Pretrained, tmp_path: Path, seed: int = 0, **changes: Any) -> Prompts:
    params = Params.model_validate({"prompts": 6, "chain": 4} | changes)
    run = Run(tmp_path / "work", tmp_path / "logs", "tuned_zero_shot", silent, seed)
    target = Unseen(TASK, cut(DATA, PROMPT), float(DATA.episode_returns[2]))
    return prompt_diffuser_zero_shot.tune(plm, target, params, run).prompts


def test_prompts_are_those_of_the_diffuser_under_training_conditions(plm: Pretrained, tmp_path: Path) -> None:
    assert plm.diffuser is not None
    found = made(plm, tmp_path, seed=3)
    segments = cut(DATA, PROMPT)
    _, y = prompt_tensors(segments, plm.normalization)
    x0, conditions = generate(*plm.diffuser, y, 6, 4, 3)
    np.testing.assert_allclose(plm.normalization.normalize(found.x0), x0, atol=1e-4)
    np.testing.assert_allclose(prompt_tensors(found, plm.normalization)[1], conditions, atol=1e-5)
    assert found.task_id.tolist() == [TASK] * 6
    assert len(np.unique(found.x0.reshape(6, -1), axis=0)) == 6


@pytest.mark.parametrize(("share", "episodes"), [(0.01, {2}), (0.25, {2}), (0.5, {2, 3}), (1.0, {0, 1, 2, 3})])
def test_conditions_come_from_the_episodes_nearest_in_return(share: float, episodes: set[int]) -> None:
    segments = cut(DATA, PROMPT)
    returns = DATA.episode_returns.copy()
    asked = float(returns[2])
    nearest = np.argsort(np.abs(returns - asked), kind="stable")[: len(episodes)]
    expected = {(int(DATA.task_id[e]), int(DATA.episode_id[e])) for e in nearest}
    found = nearest_in_return(segments, asked, share)
    assert {(int(t), int(e)) for t, e in zip(found.task_id, found.episode_id, strict=True)} == expected
    assert len(found) == sum(DATA.lengths[e] - PROMPT + 1 for e in nearest), "with all their segments"


def test_a_diffuser_that_knows_tasks_is_told_the_target(tmp_path: Path) -> None:
    conditions = Conditions(names=("task",), tasks={0: (0.0,), 1: (1.0,), 2: (2.0,), TASK: (5.0,)})
    plm = pretrained(conditions)
    assert plm.diffuser is not None
    found = made(plm, tmp_path, seed=3)
    _, y = conditioned(cut(DATA, PROMPT), conditions, plm.normalization)
    y[..., 2] = 5.0
    x0, _ = generate(*plm.diffuser, y, 6, 4, 3)
    np.testing.assert_allclose(plm.normalization.normalize(found.x0), x0, atol=1e-4)
