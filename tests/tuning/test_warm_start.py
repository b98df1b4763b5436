"""Prompts of similar training tasks as a start: which tasks, what is learned from them, and what is left alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import cut
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories import reading
from pd_pipeline.tuning import warm_start
from pd_pipeline.tuning.prompt_gradient import PromptParameters, descend
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from pd_pipeline.tuning.warm_start import Params, similar, spread
from pd_pipeline.tuning.windows import window_losses
from tests.builders import trajectories
from tests.tuning.tiny import ACTING, CHANNELS, EXACT, PROMPT, TASK

QUICK: dict[str, Any] = {"windows": 3, "steps": 2, "borrowed": 2, "prompts": 3, "per_task": 4, "compared": 5, **EXACT}
DATA = trajectories((10, 9, 10, 8), (0, 0, 1, 2), seed=3)


@pytest.fixture
def given(plm: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    """The PLM with prompts of three training tasks, one of them the target's own number, and their trajectories."""
    (tmp_path / "prompts").mkdir()
    segments = cut(DATA, PROMPT)
    segments.save(tmp_path / "prompts/expert.safetensors")
    segments.save(tmp_path / "prompts/expert-held_out.safetensors")

    def read(path: Path, tasks: list[int]) -> reading.Trajectories:
        assert path == tmp_path / "trajectories/expert.parquet"
        return DATA.select(np.flatnonzero(np.isin(DATA.task_id, tasks)))

    monkeypatch.setattr(warm_start, "read", read)
    return replace(plm, outs={"prompts": tmp_path / "prompts", "trajectories": tmp_path / "trajectories"})


def run_of(tmp_path: Path) -> Run:
    return Run(tmp_path / "work", tmp_path / "logs", "warm", silent, 3)


@pytest.mark.parametrize("borrowed", [0, 2])
def test_it_goes_on_from_the_best_segments_of_similar_tasks(
    borrowed: int, given: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    params = Params.model_validate(QUICK | {"neighbours": 2, "borrowed": borrowed})
    found = warm_start.tune(given, few_shot, params, run_of(tmp_path))
    pool = spread(cut(DATA, PROMPT), 4, {TASK})
    x0, y = prompt_tensors(pool, given.normalization)
    window, valid = few_shot.windows.any_windows(np.random.default_rng(3), 5, ACTING)
    losses = window_losses(given, x0, y, window, valid).mean(1)
    tasks = similar(losses, pool.task_id, 2)
    rows = [int(i) for i in losses.argsort(stable=True) if pool.task_id[i] in tasks][:3]
    prompts, y = PromptParameters(x0[rows]), y[rows]
    if borrowed:
        data = PolicyData(DATA.select(np.flatnonzero(np.isin(DATA.task_id, tasks))), given.normalization)
        descend(given, data, prompts, y, params.model_copy(update={"steps": 2}), run_of(tmp_path / "a"))
    descend(given, few_shot.windows, prompts, y, params, run_of(tmp_path / "b"))
    made, conditions = prompt_tensors(found.prompts, given.normalization)
    torch.testing.assert_close(made, prompts.x0.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(conditions, y, atol=1e-5, rtol=1e-4)
    assert [row["step"] for row in found.history.rows] == list(range(1, borrowed + 3))
    steps = 3 * 3 * (borrowed + 2)
    assert found.cost.plm_backward == steps
    assert found.cost.plm_forward == steps + len(pool) * 5
    assert found.cost.tuned_parameters == PROMPT * (CHANNELS - 1), "no policy reads rewards"


def test_nothing_is_borrowed_from_the_target_whatever_is_shown(
    given: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `shown: other` the trajectories are of another task than the target, which is a training task here."""
    borrowed: list[int] = []

    def read(path: Path, tasks: list[int]) -> reading.Trajectories:
        borrowed.extend(tasks)
        return DATA.select(np.flatnonzero(np.isin(DATA.task_id, tasks)))

    monkeypatch.setattr(warm_start, "read", read)
    for target in (0, 1, 2):
        borrowed.clear()
        params = Params.model_validate(QUICK | {"neighbours": 3})
        warm_start.tune(given, few_shot, params, replace(run_of(tmp_path / str(target)), task=target))
        assert sorted(borrowed) == [task for task in (0, 1, 2) if task != target]


def test_similar_tasks_are_those_with_the_least_mean_loss() -> None:
    losses = torch.tensor([5.0, 1.0, 2.0, 2.5, 0.0, 9.0])
    assert similar(losses, np.array([7, 7, 3, 3, 8, 8]), 2) == [3, 7]
    assert similar(losses, np.array([7, 7, 3, 3, 8, 8]), 9) == [3, 7, 8]


def test_segments_are_spread_over_every_task_but_the_target() -> None:
    segments = cut(DATA, PROMPT)
    found = spread(segments, 3, without={1})
    assert found.task_id.tolist() == [0, 0, 0, 2, 2, 2]
    assert found.start[3:].tolist() == [0, 2, 5], "the first, the middle and the last of six"
    assert found.episode_id[0] != found.episode_id[2]
    assert len(spread(segments, 100, without={9, None})) == len(segments)
    with pytest.raises(PipelineError, match="no training task to borrow from beside 0, which is the target"):
        spread(segments.select(segments.task_id == 0), 3, without={0, 2})


def test_a_quality_without_training_prompts_is_named(given: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    params = Params.model_validate(QUICK | {"target": {"quality": "medium"}})
    with pytest.raises(PipelineError, match=r"medium.safetensors: no prompts of quality 'medium': .*expert"):
        warm_start.tune(given, few_shot, params, run_of(tmp_path))
