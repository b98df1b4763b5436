"""The best segments by the loss on the other trajectories, recomputed by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.models.decision_transformer import Steps, action_loss
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.progress import silent
from pd_pipeline.tuning import retrieval_prompt
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from pd_pipeline.tuning.retrieval_prompt import Params, scores
from pd_pipeline.tuning.windows import window_losses
from tests.builders import trajectories
from tests.tuning.tiny import ACTING, TASK, same_prompts


def found(plm: Pretrained, few_shot: Target, work: Path, **changes: Any) -> Any:
    params = Params.model_validate({"prompts": 4, "windows": 3} | changes)
    return retrieval_prompt.tune(plm, few_shot, params, Run(work, work, "retrieval_prompt", silent, 5))


def test_scores_leave_out_a_segments_own_trajectory_and_the_difficulty_of_the_others() -> None:
    segments = np.array([3.0, 1.0, 2.0, 0.5])  # what is to be found
    hard = np.array([10.0, 0.0, 5.0])
    losses = segments[:, None] + hard
    own = np.array([0, 0, 1, 2])
    losses[np.arange(4), own] -= 7  # a segment predicts its own trajectory best
    foreign = own[:, None] != np.arange(3)
    assert np.argsort(scores(losses, foreign)).tolist() == [3, 1, 2, 0]
    alone = np.array([[2.0], [1.0]])
    assert np.argsort(scores(alone, np.zeros((2, 1), bool))).tolist() == [1, 0], "a single trajectory counts itself"


def test_the_best_segments_by_the_plms_loss(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    result = found(plm, few_shot, tmp_path)
    rng = np.random.default_rng(5)
    drawn = few_shot.draw(rng, len(few_shot.prompts))
    window, valid = few_shot.windows.windows(np.repeat(np.arange(3), 3), rng, ACTING)
    x0, y = prompt_tensors(drawn, plm.normalization)
    losses = np.empty((len(drawn), 9))
    with torch.no_grad():
        for i in range(len(drawn)):
            for j in range(9):
                one = Steps(*(part[j : j + 1] for part in window))
                action = plm.policy(prompt_steps(x0[i : i + 1], y[i : i + 1], plm.normalization), one)
                losses[i, j] = action_loss(action, one.actions, valid[j : j + 1])
    np.testing.assert_allclose(window_losses(plm, x0, y, window, valid), losses, rtol=1e-4)
    own = drawn.episode_id[:, None] != few_shot.data.episode_id
    best = np.argsort(scores(losses.reshape(-1, 3, 3).mean(2), own))[:4]
    same_prompts(result.prompts, drawn.select(best))
    assert result.cost.plm_forward == losses.size
    assert (result.cost.tuned_parameters, result.frozen) == (0, True)


def test_few_candidates_and_few_segments(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    assert found(plm, few_shot, tmp_path, candidates=5).cost.plm_forward == 5 * 9
    short = Target.of(trajectories((4,), (TASK,)), plm)
    starts = found(plm, short, tmp_path).prompts.start.tolist()
    assert starts in ([0, 1, 0, 1], [1, 0, 1, 0]), "of two segments, the best first"


@pytest.mark.parametrize("quality", [None, "expert", "medium"])
def test_segments_of_another_quality_are_foreign_to_all(
    quality: str | None, plm: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def watched(losses: np.ndarray, foreign: np.ndarray) -> np.ndarray:
        seen.append(foreign)
        return scores(losses, foreign)

    monkeypatch.setattr(retrieval_prompt, "scores", watched)
    found(plm, few_shot, tmp_path, target={"prompt_quality": quality})
    assert seen[0].all() == (quality == "medium")
