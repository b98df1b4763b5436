"""Descent by ranking: its direction, and both ways to rank."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.parsing import parse
from pd_pipeline.progress import silent
from pd_pipeline.tuning import prompt_tuning_ranking, prompt_tuning_ranking_online
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, prompt_losses
from pd_pipeline.tuning.ranking import direction, floats, put_back
from tests.tuning.scripted import Scripted
from tests.tuning.tiny import CHANNELS, PROMPT, TASK


def tune(
    module: Any, plm: Pretrained, target: Target, work: Path, made: list[Scripted] | None = None, **changes: object
) -> Any:
    def simulate(budget: int) -> Any:
        assert made is not None
        made.append(Scripted(budget))
        return made[-1]

    params = module.Params.model_validate({"prompts": 4} | changes)
    return module.tune(plm, target, params, Run(work, work, "tuned", silent, 3, None if made is None else simulate))


@settings(deadline=None)
@given(m=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_direction_is_that_of_all_comparisons(m: int, seed: int) -> None:
    """ZO-RankSGD's sum over ranked pairs: from the worse one to the better one."""
    generator = torch.Generator().manual_seed(seed)
    noise, losses = torch.randn((2, m, 3), generator=generator), torch.randn((2, m), generator=generator)
    expected = torch.zeros(2, 3)
    for n in range(2):
        for i in range(m):
            for j in range(m):
                if losses[n, i] < losses[n, j]:
                    expected[n] += noise[n, i] - noise[n, j]
    torch.testing.assert_close(direction(noise, losses), expected * 2 / (m * (m - 1)), atol=1e-5, rtol=1e-4)
    shifted = direction(noise + 5.0, losses)
    torch.testing.assert_close(shifted, direction(noise, losses), atol=1e-4, rtol=1e-3, msg="the weights sum to zero")
    torch.testing.assert_close(direction(noise, losses.exp()), direction(noise, losses), msg="ranks alone count")


def test_it_descends_a_bowl() -> None:
    generator, x = torch.Generator().manual_seed(0), torch.full((1, 4), 2.0)
    for _ in range(200):
        noise = 0.1 * torch.randn((1, 15, 4), generator=generator)
        x = x + 0.5 * direction(noise, (x[:, None] + noise).square().sum(2))
    assert x.abs().max() < 0.3


def test_only_floats_are_perturbed_and_rewards_and_timesteps_stay(few_shot: Target, plm: Pretrained) -> None:
    x0, y = prompt_tensors(few_shot.prompts, plm.normalization)
    x = floats(x0, y)
    assert x.shape == (len(x0), PROMPT, CHANNELS)
    for found, expected in zip(put_back(x, x0, y), (x0, y), strict=True):
        assert torch.equal(found, expected)
    moved = put_back(x + 1, x0, y)
    assert torch.equal(moved[0][..., -1], x0[..., -1])
    assert torch.equal(moved[1][..., 1], y[..., 1])
    torch.testing.assert_close(moved[0][..., :-1], x0[..., :-1] + 1)
    torch.testing.assert_close(moved[1][..., 0], y[..., 0] + 1)


def test_offline_it_lowers_the_loss(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    start = few_shot.draw(np.random.default_rng(3), 4)
    settings = {"steps": 60, "step_size": 0.5, "scale": 0.3, "windows": 16}
    result = tune(prompt_tuning_ranking, plm, few_shot, tmp_path, **settings)
    before, after = (
        prompt_losses(plm, few_shot, *prompt_tensors(prompts, plm.normalization), seed=9)
        for prompts in (start, result.prompts)
    )
    assert (after < before).all()
    np.testing.assert_array_equal(result.prompts.y[..., 1], start.y[..., 1])
    np.testing.assert_allclose(result.prompts.x0[..., -1], start.x0[..., -1], atol=1e-4, err_msg="rewards")
    assert result.cost.model_dump() == {
        "tuned_parameters": PROMPT * CHANNELS,
        "plm_forward": 60 * 4 * 15 * 16,
        "plm_backward": 0,
    }
    again = tune(prompt_tuning_ranking, plm, few_shot, tmp_path, **settings)
    np.testing.assert_array_equal(again.prompts.x0, result.prompts.x0)


def test_each_prompt_is_improved_by_itself(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    """The published step hardly moves a prompt: 10 steps of 1e-4."""
    published = {"steps": 10, "windows": 32, "scale": 1.0, "step_size": 1e-4}
    result = tune(prompt_tuning_ranking, plm, few_shot, tmp_path, **published)
    start = few_shot.draw(np.random.default_rng(3), 4)
    moved = np.abs(plm.normalization.normalize(result.prompts.x0) - plm.normalization.normalize(start.x0)).max((1, 2))
    assert (moved > 0).all()
    assert (moved < 1e-2).all()
    assert result.prompts.task_id.tolist() == [TASK] * 4


def test_online_it_raises_the_return_within_its_budget(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    made: list[Scripted] = []
    result = tune(
        prompt_tuning_ranking_online, plm, few_shot, tmp_path, made, steps=20, perturbations=7, scale=0.3, step_size=0.5
    )
    (simulation,) = made
    assert simulation.episodes == simulation.budget == 20 * 7 * 2
    assert {*simulation.asked} == {few_shot.target_return}
    returns = [row["return"] for row in result.history.rows]
    assert np.mean(returns[-3:]) > np.mean(returns[:3]) + 0.5
    assert len({prompt.tobytes() for prompt in result.prompts.x0}) == 1, "the same one for every episode"
    assert result.cost.plm_forward == 0, "acting is counted by the simulation"


def test_there_is_nothing_to_select() -> None:
    with pytest.raises(PipelineError, match="ranking improves each prompt by itself: leave out candidates"):
        parse(prompt_tuning_ranking.Params, {"candidates": 64}, "params.yaml: x")
