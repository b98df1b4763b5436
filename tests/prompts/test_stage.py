"""The stage prompts: only training tasks, and held-out episodes kept apart."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_pipeline.families.point_robot import PointRobot
from pd_pipeline.prompts.segments import Normalization, Prompts
from pd_pipeline.prompts.stage import held_out_episodes
from pd_pipeline.storage import digest
from pd_pipeline.trajectories.reading import read
from tests.conftest import run_stages


def test_prompts_come_from_training_tasks_only(trained_project: Path, point_robot: PointRobot) -> None:
    out = trained_project / "data/prompts/point_robot"
    for name in ("expert", "expert-held_out"):
        prompts = Prompts.load(out / f"{name}.safetensors")
        assert set(prompts.task_id.tolist()) == set(point_robot.train_tasks)
        assert prompts.x0.shape[1:] == (3, 5)
    kept, held = (Prompts.load(out / f"{name}.safetensors") for name in ("expert", "expert-held_out"))
    of = [{*zip(p.task_id.tolist(), p.episode_id.tolist(), strict=True)} for p in (kept, held)]
    assert not of[0] & of[1]
    assert len(of[0] | of[1]) == 4 * 6


def test_statistics_come_from_training_tasks_only(project: Path, point_robot: PointRobot) -> None:
    """Statistics over test tasks would leak them: other test data must change nothing."""
    data = read(project / "data/trajectories/point_robot/expert.parquet", point_robot.train_tasks)
    found = Normalization.load(project / "data/prompts/point_robot/normalization.safetensors")
    np.testing.assert_allclose(found.mean[:2], data.observations.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.std[:2], data.observations.std(0), atol=1e-6)
    assert found.std[-1] == pytest.approx(data.rewards.std(), rel=1e-5)
    before = digest(project / "data/prompts")
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("test: 7", "test: 3").replace("test: 2", "test: 1"))
    run_stages(project, "trajectories", "prompts")
    assert digest(project / "data/prompts") == before


@given(st.lists(st.integers(2, 12), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_every_task_keeps_and_holds_out_some_episode(counts: list[int], share: float) -> None:
    tasks = np.repeat(np.arange(len(counts)), counts)
    held_out = held_out_episodes(tasks, share)
    for task, count in enumerate(counts):
        of_task = held_out[tasks == task]
        assert 1 <= of_task.sum() < count
        assert (np.diff(of_task.astype(int)) >= 0).all(), "the last ones"
