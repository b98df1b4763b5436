"""What every method is given, and how it is measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import action_loss
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors, to_prompts
from pd_pipeline.prompts.segments import cut
from pd_pipeline.tuning.protocol import (
    SELECTION_WINDOWS,
    Pretrained,
    Target,
    TargetParams,
    TuningParams,
    draw_few_shot,
    evaluating,
    guidance_loss,
    prompt_losses,
    select,
)
from tests.builders import trajectories
from tests.tuning.tiny import ACTING, PROMPT, TASK, few_shot_of, pretrained


def test_the_few_shot_draw_is_a_function_of_seed_and_task() -> None:
    target = trajectories((3,) * 7, (TASK,) * 7)
    params = TuningParams(target=TargetParams(few_shot=3))
    for seed in range(4):
        order = np.random.default_rng([seed, TASK]).permutation(7)
        chosen, rest = draw_few_shot(target, params, seed)
        assert (chosen.tolist(), rest.tolist()) == (sorted(order[:3]), sorted(order[3:]))
    draws = {tuple(draw_few_shot(target, params, seed)[0]) for seed in range(8)}
    assert len(draws) > 3
    other = trajectories((3,) * 7, (0,) * 7)
    assert {tuple(draw_few_shot(other, params, seed)[0]) for seed in range(8)} != draws


def test_few_shot_draws_of_all_and_of_too_many_episodes() -> None:
    target = trajectories((3,) * 7, (TASK,) * 7)
    chosen, rest = draw_few_shot(target, TuningParams(target=TargetParams(few_shot=None)), 0)
    assert (chosen.tolist(), rest.tolist()) == (list(range(7)), [])
    assert draw_few_shot(target, TuningParams(target=TargetParams(few_shot=7)), 0)[0].tolist() == list(range(7))
    with pytest.raises(PipelineError, match="task 4: 8 few-shot trajectories are needed, but there are only 7"):
        draw_few_shot(target, TuningParams(target=TargetParams(few_shot=8)), 0)


def test_few_shot_holds_every_segment_and_the_windows_of_the_same_episodes(plm: Pretrained) -> None:
    data = trajectories((10, 9, 10), (TASK,) * 3)
    few_shot = Target.of(data, plm)
    expected = cut(data, PROMPT)
    assert len(expected) == len(few_shot.prompts) == 8 + 7 + 8
    np.testing.assert_array_equal(few_shot.prompts.x0, expected.x0)
    x0, y = few_shot.tensors(plm)
    normal = plm.normalization
    np.testing.assert_allclose(x0, (expected.x0 - normal.mean) / normal.std, rtol=1e-6)
    np.testing.assert_allclose(y[..., 0], expected.y[..., 0] / normal.return_scale, rtol=1e-6)
    np.testing.assert_allclose(y[..., 1], expected.y[..., 1] / 10, rtol=1e-6)
    np.testing.assert_allclose(few_shot.windows.observations, normal.observations(data.observations), rtol=1e-6)


def test_draws_do_not_repeat_while_there_are_enough(few_shot: Target) -> None:
    total = len(few_shot.prompts)
    drawn = few_shot.draw(np.random.default_rng(0), total)
    pairs = sorted(zip(drawn.episode_id.tolist(), drawn.start.tolist(), strict=True))
    assert pairs == sorted(zip(few_shot.prompts.episode_id.tolist(), few_shot.prompts.start.tolist(), strict=True))
    assert len(few_shot.draw(np.random.default_rng(0), total + 5)) == total + 5


def by_hand(plm: Pretrained, few_shot: Target, x0: torch.Tensor, y: torch.Tensor, seed: int) -> torch.Tensor:
    """Action loss of each prompt alone, over windows of the acting length."""
    window, valid = few_shot.windows.any_windows(np.random.default_rng(seed), 32, ACTING)
    assert window.timesteps.shape == (32, ACTING)
    losses = []
    for one, condition in zip(x0, y, strict=True):
        steps = prompt_steps(one.expand(32, -1, -1), condition.expand(32, -1, -1), plm.normalization)
        with torch.no_grad():
            errors = (plm.policy(steps, window) - window.actions) ** 2  # (32, K, d_a)
        losses.append(errors[valid].mean())
    return torch.stack(losses)


def test_prompt_losses_are_those_of_each_prompt_alone(plm: Pretrained, few_shot: Target) -> None:
    x0, y = (part[:3] for part in few_shot.tensors(plm))
    found = prompt_losses(plm, few_shot, x0, y, seed=7)
    torch.testing.assert_close(found, by_hand(plm, few_shot, x0, y, 7), atol=1e-6, rtol=1e-5)
    assert not found.requires_grad


def test_acting_windows_default_to_those_of_training() -> None:
    plm = pretrained(acting_context=None)
    few_shot = few_shot_of(plm)
    seen = []
    plm.policy.register_forward_hook(lambda _, given, __: seen.append(given[1].timesteps.shape))
    prompt_losses(plm, few_shot, *(part[:1] for part in few_shot.tensors(plm)), seed=0)
    assert seen == [(32, 5)]


def test_the_best_candidates_are_selected_and_nothing_without_candidates(plm: Pretrained, few_shot: Target) -> None:
    x0, y = few_shot.tensors(plm)
    made = x0[:9], y[:9]
    kept, passes = select(plm, few_shot, *made, TuningParams(prompts=4, candidates=9), 3)
    losses = by_hand(plm, few_shot, *made, 3)
    assert kept.tolist() == losses.argsort()[:4].tolist()
    assert kept.tolist() != sorted(kept.tolist()), "best first, and not simply the first ones"
    assert passes == SELECTION_WINDOWS * 9 == 288
    kept, passes = select(plm, few_shot, *made, TuningParams(prompts=9), 3)
    assert (kept.tolist(), passes) == (list(range(9)), 0)


def test_the_number_of_prompts_made() -> None:
    assert TuningParams(prompts=3).candidate_count == 3
    assert TuningParams(prompts=3, candidates=7).candidate_count == 7


def test_the_guidance_loss_reaches_the_prompt_but_not_its_reward(plm: Pretrained, few_shot: Target) -> None:
    x0, y = (part[:4].clone() for part in few_shot.tensors(plm))
    x0.requires_grad_(True)
    window, valid = few_shot.windows.any_windows(np.random.default_rng(0), 4, ACTING)
    loss = guidance_loss(plm, x0, y, window, valid)
    expected = action_loss(plm.policy(prompt_steps(x0, y, plm.normalization), window), window.actions, valid)
    assert torch.equal(loss, expected)
    (gradient,) = torch.autograd.grad(loss, x0)
    assert (gradient[..., :-1] != 0).any(dim=(1, 2)).all()
    assert (gradient[..., -1] == 0).all()


def test_evaluating_restores_the_mode_of_every_module(plm: Pretrained) -> None:
    plm.policy.train()
    plm.policy.dropout.eval()
    before = [module.training for module in plm.policy.modules()]

    def fail() -> None:
        with evaluating(plm.policy):
            assert not any(module.training for module in plm.policy.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in plm.policy.modules()] == before
    assert len(set(before)) == 2


def test_tensors_and_prompts_are_inverse(plm: Pretrained, few_shot: Target) -> None:
    back = to_prompts(*few_shot.tensors(plm), plm.normalization, TASK)
    np.testing.assert_allclose(back.x0, few_shot.prompts.x0, atol=1e-5)
    np.testing.assert_allclose(back.y, few_shot.prompts.y, atol=1e-5)
    np.testing.assert_array_equal(back.start, few_shot.prompts.start)
    assert (back.task_id == TASK).all()
    assert (back.episode_id == -1).all()
    types = {name: getattr(back, name).dtype for name in ("x0", "y", "task_id", "episode_id", "start")}
    assert types == {"x0": "float32", "y": "float32", "task_id": "int32", "episode_id": "int64", "start": "int32"}
    again = prompt_tensors(replace(back), plm.normalization)
    torch.testing.assert_close(again, few_shot.tensors(plm), atol=1e-5, rtol=1e-5)
