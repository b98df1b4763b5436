"""The methods without a generator, each recomputed from its description."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.compute import generator_of
from pd_pipeline.models.decision_transformer import Dropout, action_loss
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.training import policy_data
from pd_pipeline.tuning import fine_tuning
from pd_pipeline.tuning.protocol import Pretrained, Target, prompt_losses
from tests.builders import D_S, trajectories
from tests.tuning.tiny import (
    ACTING,
    CHANNELS,
    PROMPT,
    TASK,
    few_shot_of,
    pretrained,
    same_prompts,
    same_weights,
    tuned,
)

PLAIN = {"schedule": "constant", "warmup": 0, "clip": None, "weight_decay": 0.01}


def drawn(few_shot: Target, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(few_shot.prompts), count, replace=False)


def test_prompt_dt_returns_segments(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    found = tuned("prompt_dt", plm, few_shot, tmp_path, seed=3, prompts=9).prompts
    same_prompts(found, few_shot.prompts.select(drawn(few_shot, 9, 3)))
    for i in range(9):
        episode = int(np.flatnonzero(few_shot.data.episode_id == found.episode_id[i])[0])
        rows = few_shot.data.starts[episode] + found.start[i] + np.arange(PROMPT)
        expected = (few_shot.data.observations[rows], few_shot.data.actions[rows], few_shot.data.rewards[rows, None])
        np.testing.assert_array_equal(found.x0[i], np.concatenate(expected, axis=1))
        np.testing.assert_array_equal(found.y[i, :, 0], few_shot.data.returns_to_go[rows])
    total = len(few_shot.prompts)
    assert len(tuned("prompt_dt", plm, few_shot, tmp_path, prompts=total + 5).prompts) == total + 5


def test_noise_prompts_are_standard_noise_with_real_conditions(
    plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    found = tuned("noise_prompt", plm, few_shot, tmp_path, seed=2, prompts=6000).prompts
    rng = np.random.default_rng(2)
    rows = rng.choice(len(few_shot.prompts), 6000)
    noise = rng.standard_normal((6000, PROMPT, CHANNELS), np.float32)
    np.testing.assert_allclose(plm.normalization.normalize(found.x0), noise, atol=1e-4)
    np.testing.assert_allclose(found.y, few_shot.prompts.y[rows], rtol=1e-5, atol=1e-5)
    assert set(rows) == set(range(len(few_shot.prompts)))


def test_the_condition_of_every_noise_prompt_is_drawn_independently(
    plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    """From all conditions, even where there are more of them than prompts."""
    found = tuned("noise_prompt", plm, few_shot, tmp_path, seed=2, prompts=12).prompts
    rows = np.random.default_rng(2).choice(len(few_shot.prompts), 12)
    assert len(set(rows)) < 12 < len(few_shot.prompts)
    np.testing.assert_allclose(found.y, few_shot.prompts.y[rows], rtol=1e-5, atol=1e-5)


def test_full_finetune_trains_as_pre_training_does_on_the_windows_it_acts_on(
    plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    settings = {"steps": 4, "batch": 7, "learning_rate": 1e-2}
    result = tuned("full_finetune", plm, few_shot, tmp_path, seed=3, **settings, **PLAIN)
    policy = copy.deepcopy(plm.policy).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.01, fused=True)
    losses = []
    for step in range(4):
        batch = few_shot.windows.batch(np.random.default_rng([3, step]), 7, PROMPT, ACTING)
        predicted = policy(batch.prompt, batch.window, generator_of(3, step))
        loss = action_loss(predicted, batch.window.actions, batch.valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    same_weights(result.policy, policy, exactly=False)
    np.testing.assert_allclose([row["loss"] for row in result.history.rows], losses, rtol=1e-5)
    same_prompts(result.prompts, few_shot.prompts.select(drawn(few_shot, 4, 3)))
    assert not any(p.requires_grad for p in result.policy.parameters())


def test_full_finetune_trains_under_prompts_of_the_quality_that_it_acts_under(
    plm: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch
) -> None:
    worse = trajectories((8, 8), (TASK, TASK), seed=9)
    target = Target.of(few_shot.data, plm, few_shot.target_return, worse)
    seen: list[policy_data.Batch] = []

    def spy(policy: torch.nn.Module, batch: policy_data.Batch, generator: torch.Generator) -> torch.Tensor:
        seen.append(batch)
        return policy_data.policy_loss(policy, batch, generator)

    monkeypatch.setattr(fine_tuning, "policy_loss", spy)
    left = tuned("full_finetune", plm, target, tmp_path, steps=2, batch=7)
    known = {row.tobytes() for row in plm.normalization.observations(worse.observations).astype(np.float32)}
    assert {row.tobytes() for batch in seen for row in batch.prompt.observations.view(-1, D_S).numpy()} <= known
    assert not {row.tobytes() for batch in seen for row in batch.window.observations.view(-1, D_S).numpy()} & known
    assert {x0[:D_S].tobytes() for prompt in left.prompts.x0 for x0 in prompt} <= {
        row.astype(np.float32).tobytes() for row in worse.observations
    }


def test_full_finetune_sees_windows_and_prompts_of_the_lengths_of_acting(
    plm: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch
) -> None:
    seen = []

    def spy(policy: torch.nn.Module, batch: policy_data.Batch, generator: torch.Generator) -> torch.Tensor:
        seen.append((batch.prompt.timesteps.shape, batch.window.timesteps.shape, policy.training))
        return policy_data.policy_loss(policy, batch, generator)

    monkeypatch.setattr(fine_tuning, "policy_loss", spy)
    tuned("full_finetune", plm, few_shot, tmp_path, steps=2, batch=7)
    assert seen == [((7, PROMPT), (7, ACTING), True)] * 2
    seen.clear()
    plm = pretrained(acting_context=None)
    tuned("full_finetune", plm, few_shot_of(plm), tmp_path / "long", steps=1, batch=7)
    assert seen == [((7, PROMPT), (7, 5), True)]


def test_dropout_uses_the_precision_of_training(
    plm: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh, seen = Dropout.refresh, set[torch.dtype]()

    def watched(self: Dropout, *given: Any) -> None:
        refresh(self, *given)
        seen.update(part.dtype for part in self.parts)

    monkeypatch.setattr(Dropout, "refresh", watched)
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        seen.clear()
        tuned("full_finetune", plm, few_shot, tmp_path / precision, precision=precision)
        assert seen == {dtype}


def test_full_finetune_fits(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    result = tuned("full_finetune", plm, few_shot, tmp_path, steps=60, batch=16, learning_rate=1e-2)
    x0, y = (part[:4] for part in few_shot.tensors(plm))
    before = prompt_losses(plm, few_shot, x0, y, seed=9)
    after = prompt_losses(Pretrained(result.policy, plm.normalization, plm.device), few_shot, x0, y, seed=9)
    assert (after < 0.5 * before).all()


def test_prompt_gradient_moves_each_prompt_by_the_loss_of_its_own_windows(
    plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    settings = {"steps": 3, "windows": 5, "learning_rate": 0.1, "prompts": 4}
    result = tuned("prompt_gradient", plm, few_shot, tmp_path, seed=3, **settings, **PLAIN)
    x0, y = prompt_tensors(few_shot.prompts.select(drawn(few_shot, 4, 3)), plm.normalization)
    prompts = [torch.nn.Parameter(one.clone()) for one in x0]
    optimizer = torch.optim.AdamW(prompts, lr=0.1, weight_decay=0.01, fused=True)
    losses = []
    for step in range(3):
        window, valid = few_shot.windows.any_windows(np.random.default_rng([3, step]), 20, ACTING)
        total = 0.0
        optimizer.zero_grad()
        for i, prompt in enumerate(prompts):
            own = slice(5 * i, 5 * i + 5)
            steps = prompt_steps(prompt.expand(5, -1, -1), y[i].expand(5, -1, -1), plm.normalization)
            errors = (plm.policy(steps, type(window)(*(part[own] for part in window))) - window.actions[own]) ** 2
            loss = errors[valid[own]].sum() / (valid.sum() * 2)  # two actions per step
            (4 * loss).backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    found = plm.normalization.normalize(result.prompts.x0)
    np.testing.assert_allclose(found, torch.stack(list(prompts)).detach(), atol=1e-4)
    np.testing.assert_allclose(result.prompts.y, few_shot.prompts.select(drawn(few_shot, 4, 3)).y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([row["loss"] for row in result.history.rows], losses, rtol=1e-4)


def test_prompt_gradient_lowers_the_loss_of_each_prompt(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    start = few_shot.draw(np.random.default_rng(0), 4)
    result = tuned("prompt_gradient", plm, few_shot, tmp_path, steps=60, windows=16)
    before, after = (
        prompt_losses(plm, few_shot, *prompt_tensors(p, plm.normalization), seed=0) for p in (start, result.prompts)
    )
    assert (after < before).all()
    np.testing.assert_allclose(result.prompts.x0[..., -1], start.x0[..., -1], rtol=1e-4, atol=1e-5)


def test_prompt_gradient_logs_the_mean_over_prompts(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    row = tuned("prompt_gradient", plm, few_shot, tmp_path, prompts=6, steps=1, windows=8).history.rows[0]
    window, valid = few_shot.windows.any_windows(np.random.default_rng([0, 0]), 48, ACTING)
    x0, y = prompt_tensors(few_shot.prompts.select(drawn(few_shot, 6, 0)), plm.normalization)
    each = torch.arange(6).repeat_interleave(8)
    loss = action_loss(plm.policy(prompt_steps(x0[each], y[each], plm.normalization), window), window.actions, valid)
    assert abs(row["loss"] - float(loss)) < 1e-6


def test_prompt_gradient_from_noise_keeps_the_conditions_of_segments(
    plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    settings = {"seed": 3, "steps": 1, "learning_rate": 1e-9, **PLAIN}
    found = tuned("prompt_gradient", plm, few_shot, tmp_path / "noise", start="noise", **settings).prompts
    segments = few_shot.prompts.select(drawn(few_shot, 4, 3))
    np.testing.assert_allclose(found.y, segments.y, rtol=1e-5, atol=1e-5)
    noise = torch.randn((4, PROMPT, CHANNELS), generator=generator_of(3, 0))
    np.testing.assert_allclose(plm.normalization.normalize(found.x0), noise, atol=1e-4)
