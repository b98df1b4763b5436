"""A batch of environments names the one that returned bad values."""

from pathlib import Path

import numpy as np
import pytest

from pd_pipeline.acting import environments
from pd_pipeline.acting.environments import LocalBatch
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import load_family


@pytest.fixture
def batch(tmp_path: Path) -> LocalBatch:
    family = load_family("point_robot", {"reward": "dense"}, tmp_path)
    return LocalBatch(family, [3, 5, 5], [11, 12, 13])


def test_every_environment_is_a_sign_of_life_when_it_is_made_and_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[int] = []
    monkeypatch.setattr(environments, "beat", lambda: beats.append(1))
    made = LocalBatch(load_family("point_robot", {"reward": "dense"}, tmp_path), [3, 5, 5], [11, 12, 13])
    assert len(beats) == 3
    made.reset()
    assert len(beats) == 6


def test_a_value_that_is_not_finite_is_named_with_task_step_and_seed(
    batch: LocalBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = batch.environments[1]
    batch.reset()
    actions = np.zeros((3, 2), np.float32)
    batch.step(actions)
    observation = np.array([0.0, np.nan], np.float32)
    monkeypatch.setattr(broken, "step", lambda action: (observation, 0.0, False, False, {}))
    with pytest.raises(
        PipelineError, match=r"task 5 returned observation values that are not finite \(step 2, seed 12\)"
    ):
        batch.step(actions)
    monkeypatch.setattr(broken, "step", lambda action: (np.zeros(2, np.float32), np.inf, False, False, {}))
    with pytest.raises(PipelineError, match=r"task 5 returned reward values that are not finite \(step 3, seed 12\)"):
        batch.step(actions)
    monkeypatch.setattr(broken, "reset", lambda **_: (observation, {}))
    with pytest.raises(PipelineError, match=r"\(reset, seed 12\)"):
        batch.reset()
