"""Prompt Diffuser, recomputed from eq. 6 to 9 in every configuration."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pd_pipeline.compute import generator_of
from pd_pipeline.models.decision_transformer import Steps, action_loss
from pd_pipeline.models.diffuser import Denoiser, generate
from pd_pipeline.models.diffusion import Diffusion
from pd_pipeline.models.prompting import prompt_steps
from pd_pipeline.tuning import prompt_diffuser
from pd_pipeline.tuning.gradient_projection import combine
from pd_pipeline.tuning.protocol import Pretrained, Target, prompt_losses
from tests.tuning.tiny import ACTING, CHANNELS, EXACT, METHODS, PROMPT, same_weights, tuned

PLAIN = {"schedule": "constant", "warmup": 0, "clip": None, "weight_decay": 0.01, "learning_rate": 1e-2}
CHOICES: list[dict[str, Any]] = [
    {},
    {"guidance": 3.0},
    {"scale_guidance": False},
    {"chain": 2},
    {"chain": 30},  # above the 8 steps of the process
    {"mode": "sum"},
    {"mode": "dm_only"},
    {"mode": "dt_only"},
    {"reading": "layer_flat"},
    {"reading": "layer_svd", "energy": 0.9},
    {"reading": "layer_svd", "energy": 0.5},
    {"test": "layer"},
    {"reading": "layer_svd", "energy": 0.5, "test": "layer"},
]


def parts(plm: Pretrained) -> tuple[Denoiser, Diffusion]:
    assert plm.diffuser is not None
    return plm.diffuser


def l_dm(plm: Pretrained, denoiser: Denoiser, x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Eq. 6 with a step and noise per prompt."""
    diffusion = parts(plm)[1]
    n = torch.randint(0, 8, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    return diffusion.loss(lambda x, n: denoiser(x, y, n / 8), x0, noise, n)


def chain_of(plm: Pretrained, denoiser: Denoiser, noise: Tensor, y: Tensor, steps: int) -> Tensor:
    """DDIM with `steps` of the 8 steps."""
    diffusion, x = parts(plm)[1], noise
    visited = [*torch.linspace(7, 0, steps).round().long().tolist(), -1]
    for before, after in pairwise(visited):
        n = torch.full((len(x),), before)
        x = diffusion.ddim_step(x, diffusion.to_x0(denoiser(x, y, n / 8), x, n), n, torch.full((len(x),), after))
    return x


def adapted_by_hand(plm: Pretrained, few_shot: Target, seed: int, steps: int, batch: int) -> tuple[Denoiser, list]:
    x0, y = few_shot.tensors(plm)
    denoiser = copy.deepcopy(parts(plm)[0])
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2, weight_decay=0.01, fused=True)
    losses = []
    for step in range(steps):
        rows = np.random.default_rng([seed, 1, step]).integers(0, len(x0), batch)
        loss = l_dm(plm, denoiser, x0[rows], y[rows], generator_of(seed, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return denoiser, losses


def test_adaptation_is_l_dm_on_the_few_shot_prompts(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    adapt = {"steps": 4, "batch": 7, "log_every": 1, **PLAIN, **EXACT}
    result = tuned("prompt_diffuser", plm, few_shot, tmp_path, seed=3, adapt=adapt)
    expected, losses = adapted_by_hand(plm, few_shot, 3, 4, 7)
    same_weights(result.denoisers["adapted"], expected, exactly=False)
    logged = [row["loss"] for row in result.history.rows if row["phase"] == 1]
    np.testing.assert_allclose(logged, losses, rtol=1e-5)


def guided_by_hand(
    plm: Pretrained, few_shot: Target, denoiser: Denoiser, seed: int, params: prompt_diffuser.Params
) -> Iterator[dict[str, float]]:
    """Tune `denoiser` by eq. 9; yield what is logged."""
    x0, y = few_shot.tensors(plm)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2, weight_decay=0.01, fused=True)
    for step in range(params.steps):
        rng, generator = np.random.default_rng([seed, 2, step]), generator_of(seed + 1, step)
        rows = rng.integers(0, len(x0), params.batch)
        dm = l_dm(plm, denoiser, x0[rows], y[rows], generator)
        window, valid = few_shot.windows.any_windows(rng, params.batch, ACTING)
        noise = torch.randn((params.batch, PROMPT, CHANNELS), generator=generator)
        prompt = chain_of(plm, denoiser, noise, y[rows], min(params.chain, 8))
        dt = action_loss(plm.policy(prompt_steps(prompt, y[rows], plm.normalization), window), window.actions, valid)
        g_dm, g_dt = (torch.autograd.grad(loss, list(denoiser.parameters())) for loss in (dm, dt))
        flat_dm, flat_dt = (torch.cat([g.flatten() for g in gradient]) for gradient in (g_dm, g_dt))
        factor = float(flat_dm.norm() / flat_dt.norm()) if params.scale_guidance else 1.0
        scaled = [factor * g for g in g_dt]
        choice = params.mode, params.reading, params.test, params.energy
        update, projected = combine(g_dm, scaled, params.guidance, *choice)
        for parameter, gradient in zip(denoiser.parameters(), update, strict=True):
            parameter.grad = gradient
        optimizer.step()
        yield {
            "loss": float(dm + params.guidance * dt),
            "l_dm": float(dm),
            "l_dt": float(dt),
            "cosine": float(flat_dm @ flat_dt / (flat_dm.norm() * flat_dt.norm())),
            "norm_ratio": float(flat_dt.norm() / flat_dm.norm()),
            "projected": projected,
        }


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_guidance_is_eq_9_in_every_configuration(
    choice: dict[str, Any], plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    settings = {"steps": 3, "batch": 7, "guidance": 20.0, **PLAIN}
    result = tuned("prompt_diffuser", plm, few_shot, tmp_path, seed=3, adapt=None, **settings | choice)
    params = prompt_diffuser.Params.model_validate(METHODS["prompt_diffuser"][1] | settings | choice)
    denoiser = copy.deepcopy(parts(plm)[0])
    rows = list(guided_by_hand(plm, few_shot, denoiser, 3, params))
    for found, expected in zip(result.history.rows, rows, strict=True):
        assert found["phase"] == 2
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    for name, tensor in denoiser.state_dict().items():
        torch.testing.assert_close(result.denoisers["guided"].state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
    assert result.chain == min(params.chain, 8)


def test_no_parameter_is_ignored(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    """Every configuration gives another denoiser, and some gradients conflict."""
    found = []
    for i, choice in enumerate(CHOICES):
        settings = {"adapt": None, "steps": 3, "batch": 7, "guidance": 20.0, **PLAIN}
        result = tuned("prompt_diffuser", plm, few_shot, tmp_path / str(i), seed=3, **settings | choice)
        found.append(torch.cat([p.detach().flatten() for p in result.denoisers["guided"].parameters()]))
        if not choice:
            assert 1.0 in [row["projected"] for row in result.history.rows]
    distances = torch.cdist(torch.stack(found), torch.stack(found)) + torch.eye(len(found))
    assert distances.min() > 1e-3, "by more than rounding"


def test_the_second_phase_starts_from_the_first(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    adapt = {"steps": 3, "batch": 7, "log_every": 1, **PLAIN, **EXACT}
    settings = {"steps": 2, "batch": 5, **PLAIN}
    result = tuned("prompt_diffuser", plm, few_shot, tmp_path, seed=3, adapt=adapt, **settings)
    params = prompt_diffuser.Params.model_validate(METHODS["prompt_diffuser"][1] | settings)
    denoiser, _ = adapted_by_hand(plm, few_shot, 3, 3, 7)
    assert len(list(guided_by_hand(plm, few_shot, denoiser, 3, params))) == 2
    for name, tensor in denoiser.state_dict().items():
        torch.testing.assert_close(result.denoisers["guided"].state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
    assert [(row["phase"], row["step"]) for row in result.history.rows] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]


def test_adaptation_can_be_left_out(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    result = tuned("prompt_diffuser", plm, few_shot, tmp_path, adapt=None)
    assert {row["phase"] for row in result.history.rows} == {2}
    same_weights(result.denoisers["adapted"], parts(plm)[0])


def test_every_prompt_is_used_with_its_own_condition(
    plm: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both phases L_DM gets pairs that belong together, the PLM the condition that a prompt was sampled from."""
    x0, y = few_shot.tensors(plm)
    pairs = {(a.numpy().tobytes(), b.numpy().tobytes()) for a, b in zip(x0, y, strict=True)}
    seen: set[tuple[bytes, bytes]] = set()
    conditions: list[Tensor] = []
    original = prompt_diffuser.diffusion_loss, prompt_diffuser.sample, prompt_diffuser.guidance_loss

    def diffusing(denoiser: Denoiser, diffusion: Diffusion, x0: Tensor, y: Tensor, generator: Any) -> Tensor:
        assert len(x0) == 6
        seen.update((a.numpy().tobytes(), b.numpy().tobytes()) for a, b in zip(x0, y, strict=True))
        return original[0](denoiser, diffusion, x0, y, generator)

    def sampling(denoiser: Denoiser, diffusion: Diffusion, noise: Tensor, y: Tensor, chain: int) -> Tensor:
        conditions.append(y)
        return original[1](denoiser, diffusion, noise, y, chain)

    def acting(plm: Pretrained, x0: Tensor, y: Tensor, window: Steps, valid: Tensor) -> Tensor:
        assert torch.equal(y, conditions[-1])
        assert window.timesteps.shape == valid.shape == (6, ACTING), "as long as when acting"
        return original[2](plm, x0, y, window, valid)

    for name, spy in (("diffusion_loss", diffusing), ("sample", sampling), ("guidance_loss", acting)):
        monkeypatch.setattr(prompt_diffuser, name, spy)
    monkeypatch.setattr("pd_pipeline.models.diffuser.sample", sampling)  # in the generation at the end
    tuned("prompt_diffuser", plm, few_shot, tmp_path)
    assert len(conditions) == 5 + 1
    assert seen <= pairs
    assert len({condition for _, condition in seen}) > 10


def test_each_prompt_is_generated_from_its_own_condition(plm: Pretrained, few_shot: Target) -> None:
    denoiser, diffusion = parts(plm)
    _, y = few_shot.tensors(plm)
    made, conditions = generate(denoiser, diffusion, y, len(y), 3, 7)
    rows = np.random.default_rng([7, 3]).choice(len(y), len(y), replace=False)
    assert torch.equal(conditions, y[rows])
    noise = torch.randn(made.shape, generator=generator_of(9, 0))
    for i in range(len(y)):
        alone = chain_of(plm, denoiser, noise[i : i + 1], y[rows[i]].unsqueeze(0), 3)
        torch.testing.assert_close(made[i], alone[0], atol=1e-5, rtol=1e-4)
        another = chain_of(plm, denoiser, noise[i : i + 1], y[rows[i - 1]].unsqueeze(0), 3)
        assert (made[i] - another[0]).abs().max() > 1e-3, "the condition matters"
    more, _ = generate(denoiser, diffusion, y, len(y) + 4, 3, 7)
    assert len(more) == len(y) + 4
    assert not made.requires_grad


@pytest.mark.parametrize("chain", [1, 3, 8])
def test_the_returned_prompts_come_from_the_guided_denoiser(
    chain: int, plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    """The best candidates by the few-shot loss; without a selection the first ones."""
    denoiser, diffusion = parts(plm)
    _, y = few_shot.tensors(plm)
    for candidates in (12, None):
        result = tuned(
            "prompt_diffuser", plm, few_shot, tmp_path / str(candidates), seed=3, candidates=candidates, chain=chain
        )
        denoiser = result.denoisers["guided"]
        made, conditions = generate(denoiser, diffusion, y, candidates or 4, chain, 3)
        kept = prompt_losses(plm, few_shot, made, conditions, seed=3).argsort()[:4] if candidates else torch.arange(4)
        np.testing.assert_allclose(result.prompts.x0, plm.normalization.denormalize(made[kept].numpy()), rtol=1e-6)
        np.testing.assert_allclose(result.prompts.y, conditions[kept].numpy() * (plm.normalization.return_scale, 10))


def test_guidance_lowers_l_dt(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    """Prompts of the guided diffuser are better than those of the adapted one, by the few-shot loss."""
    settings = {"steps": 60, "batch": 16, "guidance": 5.0, "learning_rate": 1e-2}
    result = tuned("prompt_diffuser", plm, few_shot, tmp_path, **settings)
    y = few_shot.tensors(plm)[1]
    losses = []
    for name in ("adapted", "guided"):
        made = generate(result.denoisers[name], parts(plm)[1], y, 24, 3, 0)
        losses.append(float(prompt_losses(plm, few_shot, *made, seed=5).mean()))
    assert losses[1] < losses[0]


def test_a_random_start_has_the_shape_and_the_start_of_pre_training_and_nothing_of_its_weights(
    plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    expected = Denoiser(parts(plm)[0].config)
    state = torch.random.get_rng_state()
    found = prompt_diffuser.at_random(parts(plm)[0], 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    same_weights(found, expected)
    same_weights(
        tuned("prompt_diffuser", plm, few_shot, tmp_path, seed=3, start="random", adapt=None).denoisers["adapted"],
        expected,
    )
