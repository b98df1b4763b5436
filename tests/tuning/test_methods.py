"""Each method on point_robot: what it leaves, and what it must not touch."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.progress import silent
from pd_pipeline.training.diffuser import load_diffuser
from pd_pipeline.training.loop import weights
from pd_pipeline.training.plm import load_policy
from pd_pipeline.training.policy_data import prompt_tensors
from pd_pipeline.trajectories.reading import Trajectories, read
from pd_pipeline.tuning import full_finetune, noise_prompt, prompt_diffuser, prompt_dt, prompt_gradient
from pd_pipeline.tuning.protocol import (
    FewShot,
    Pretrained,
    Run,
    Tuned,
    TuningParams,
    draw_few_shot,
    guidance_loss,
    prompt_losses,
    to_prompts,
)
from tests.builders import trajectories

TASK = 4
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "prompt_dt": (prompt_dt, {}),
    "prompt_diffuser": (prompt_diffuser, {"adapt": {"steps": 6}, "steps": 5, "batch": 6, "candidates": 10, "chain": 3}),
    "prompt_gradient": (prompt_gradient, {"steps": 6, "windows": 4}),
    "full_finetune": (full_finetune, {"steps": 6, "batch": 6}),
    "noise_prompt": (noise_prompt, {}),
}


@pytest.fixture
def plm(trained_project: Path) -> Pretrained:
    policy, normalization = load_policy(trained_project / "data/plm/point_robot-0")
    diffuser = load_diffuser(trained_project / "data/diffuser/point_robot-0")
    return Pretrained(policy, normalization, torch.device("cpu"), diffuser)


@pytest.fixture
def target(trained_project: Path) -> Trajectories:
    return read(trained_project / "data/trajectories/point_robot/expert.parquet", [TASK])


@pytest.fixture
def few_shot(plm: Pretrained, target: Trajectories) -> FewShot:
    return FewShot.of(target.select(draw_few_shot(target, TuningParams(few_shot=3), 0)[0]), plm)


def tuned(name: str, plm: Pretrained, few_shot: FewShot, work: Path, seed: int = 0, **changes: Any) -> Tuned:
    module, defaults = METHODS[name]
    params = module.Params.model_validate({"prompts": 4} | defaults | changes)
    return module.tune(plm, few_shot, params, seed, Run(work / "work", work / "logs", name, silent))


def state(plm: Pretrained) -> dict[str, np.ndarray]:
    assert plm.diffuser is not None
    parts = {"policy": plm.policy, "denoiser": plm.diffuser[0]}
    return {f"{part}.{n}": a.copy() for part, model in parts.items() for n, a in weights(model).items()}


@pytest.mark.parametrize("name", METHODS)
def test_leaves_valid_prompts_and_the_pretrained_models_alone(
    name: str, plm: Pretrained, few_shot: FewShot, tmp_path: Path
) -> None:
    before = state(plm)
    result = tuned(name, plm, few_shot, tmp_path)
    for key, array in state(plm).items():
        np.testing.assert_array_equal(array, before[key], err_msg=key)
    assert not plm.policy.training
    assert not any(p.requires_grad for p in plm.policy.parameters())
    prompts = result.prompts
    assert prompts.x0.shape == (4, 3, 5)
    assert prompts.y.shape == (4, 3, 2)
    assert prompts.x0.dtype == prompts.y.dtype == np.float32
    assert np.isfinite(prompts.x0).all()
    assert (prompts.task_id == TASK).all()
    timesteps = np.rint(prompts.y[..., 1]).astype(int)
    assert (np.diff(timesteps, axis=1) == 1).all()
    assert timesteps.min() >= 0
    assert timesteps.max() < plm.normalization.horizon
    np.testing.assert_array_equal(prompts.start, timesteps[:, 0])
    assert (result.policy is not None) == (name == "full_finetune")


@pytest.mark.parametrize("name", METHODS)
def test_seeds_decide(name: str, plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    one, same, other = (tuned(name, plm, few_shot, tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2)))
    np.testing.assert_array_equal(one.prompts.x0, same.prompts.x0)
    assert one.history.rows == same.history.rows
    assert (one.prompts.x0 != other.prompts.x0).any()
    if one.policy is not None and same.policy is not None:
        for a, b in zip(one.policy.parameters(), same.policy.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["prompt_diffuser", "prompt_gradient", "full_finetune"])
def test_resumed_anywhere_gives_the_same(
    name: str, plm: Pretrained, few_shot: FewShot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after every number of updates in turn, until one run gets through."""
    from pd_pipeline.training.loop import Trainer

    whole = tuned(name, plm, few_shot, tmp_path / "whole")
    changes: dict[str, Any] = {"checkpoint_seconds": 0.0}
    if name == "prompt_diffuser":
        changes["adapt"] = {"steps": 6, "checkpoint_seconds": 0.0}
    original, allowed = Trainer._update, [0]

    class Killed(BaseException):
        pass

    def update(self: Trainer, compute: Any) -> None:
        if allowed[0] == 0:
            raise Killed
        allowed[0] -= 1
        original(self, compute)

    monkeypatch.setattr(Trainer, "_update", update)
    kills, result = 0, None
    while result is None:
        allowed[0] = 3
        try:
            result = tuned(name, plm, few_shot, tmp_path / "killed", **changes)
        except Killed:
            kills += 1
    assert kills >= 1
    np.testing.assert_array_equal(result.prompts.x0, whole.prompts.x0)
    assert result.history.rows == whole.history.rows
    for key, denoiser in whole.denoisers.items():
        for a, b in zip(denoiser.parameters(), result.denoisers[key].parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_few_shot_draw_is_a_function_of_seed_and_task(target: Trajectories) -> None:
    params = TuningParams(few_shot=3)
    chosen, rest = draw_few_shot(target, params, 0)
    assert len(chosen) == 3
    assert sorted([*chosen, *rest]) == list(range(7))
    np.testing.assert_array_equal(chosen, draw_few_shot(target, params, 0)[0])
    draws = {tuple(draw_few_shot(target, params, seed)[0]) for seed in range(8)}
    assert len(draws) > 3
    other = trajectories((3,) * 7, (0,) * 7)
    assert any(
        tuple(draw_few_shot(target, params, seed)[0]) != tuple(draw_few_shot(other, params, seed)[0])
        for seed in range(4)
    )


def test_more_few_shot_trajectories_than_there_are(target: Trajectories) -> None:
    with pytest.raises(PipelineError, match="task 4: 8 few-shot trajectories are asked for, 7 are there"):
        draw_few_shot(target, TuningParams(few_shot=8), 0)


def test_prompt_dt_draws_segments_without_repetition(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    total = len(few_shot.prompts)
    prompts = tuned("prompt_dt", plm, few_shot, tmp_path, prompts=total).prompts
    assert len({(int(e), int(s)) for e, s in zip(prompts.episode_id, prompts.start, strict=True)}) == total
    assert set(prompts.episode_id.tolist()) == set(few_shot.data.episode_id.tolist())
    assert len(tuned("prompt_dt", plm, few_shot, tmp_path, prompts=total + 5).prompts) == total + 5


def test_prompt_gradient_lowers_the_loss_of_each_prompt(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    start = few_shot.draw(np.random.default_rng(0), 4)
    result = tuned("prompt_gradient", plm, few_shot, tmp_path, steps=40, windows=8)
    np.testing.assert_allclose(result.prompts.y, start.y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.prompts.x0[..., -1], start.x0[..., -1], rtol=1e-4, atol=1e-5)
    assert (result.prompts.x0[..., :4] != start.x0[..., :4]).any(axis=(1, 2)).all()
    before, after = (
        prompt_losses(plm, few_shot, *prompt_tensors(p, plm.normalization), seed=0) for p in (start, result.prompts)
    )
    assert (after < before).all()
    assert (result.prompts.episode_id == -1).all()
    assert result.tuned_parameters == 3 * 5
    assert result.plm_passes == 2 * 4 * 8 * 40


def test_prompt_gradient_moves_each_prompt_as_if_alone(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    """The update of a prompt has the same size however many are tuned beside it."""
    one = tuned("prompt_gradient", plm, few_shot, tmp_path / "1", prompts=1, steps=1, warmup=0)
    many = tuned("prompt_gradient", plm, few_shot, tmp_path / "2", prompts=6, steps=1, warmup=0)
    moves = [
        np.abs(
            plm.normalization.normalize(r.prompts.x0)
            - plm.normalization.normalize(few_shot.draw(np.random.default_rng(0), len(r.prompts)).x0)
        )[..., :4].max()
        for r in (one, many)
    ]
    assert moves[0] == pytest.approx(moves[1], rel=0.05)


def test_full_finetune_tunes_a_copy_and_fits(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    result = tuned("full_finetune", plm, few_shot, tmp_path, steps=60, batch=16, learning_rate=1e-3)
    assert result.policy is not None
    assert not result.policy.training
    assert result.tuned_parameters == sum(p.numel() for p in plm.policy.parameters())
    assert result.plm_passes == 2 * 16 * 60
    window, valid = few_shot.windows.any_windows(np.random.default_rng(9), 64, 6)
    x0, y = (part[torch.zeros(64, dtype=torch.long)] for part in few_shot.tensors(plm))
    before = guidance_loss(plm, x0, y, window, valid)
    after = guidance_loss(Pretrained(result.policy, plm.normalization, plm.device), x0, y, window, valid)
    assert after < before


def test_noise_prompts_are_noise_of_the_scale_of_real_ones(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    prompts = tuned("noise_prompt", plm, few_shot, tmp_path, prompts=2000).prompts
    normal = plm.normalization.normalize(prompts.x0)
    np.testing.assert_allclose(normal.mean((0, 1)), 0, atol=0.06)
    np.testing.assert_allclose(normal.std((0, 1)), 1, atol=0.05)
    real = {tuple(np.round(row, 4)) for row in few_shot.prompts.y.reshape(-1, 6)}
    assert {tuple(np.round(row, 4)) for row in prompts.y.reshape(-1, 6)} <= real


@pytest.mark.parametrize("mode", ["projection", "sum", "dm_only", "dt_only"])
@pytest.mark.parametrize("basis", [("flat", "global"), ("layer_flat", "layer"), ("layer_svd", "layer")])
def test_prompt_diffuser_in_every_mode(
    mode: str, basis: tuple[str, str], plm: Pretrained, few_shot: FewShot, tmp_path: Path
) -> None:
    reading, test = basis
    result = tuned("prompt_diffuser", plm, few_shot, tmp_path, mode=mode, reading=reading, test=test, steps=2)
    assert np.isfinite(result.prompts.x0).all()
    guided = [row for row in result.history.rows if row["phase"] == 2]
    assert len(guided) == 2
    for row in guided:
        assert {"loss", "l_dm", "l_dt", "cosine", "norm_ratio", "projected"} <= row.keys()
        assert -1 <= row["cosine"] <= 1
        assert row["norm_ratio"] > 0
        assert 0 <= row["projected"] <= (mode == "projection")
        assert (row["projected"] > 0) or mode != "projection" or test == "layer" or row["cosine"] >= 0


def test_lambda_zero_is_dm_only(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    zero = tuned("prompt_diffuser", plm, few_shot, tmp_path / "zero", guidance=0.0)
    alone = tuned("prompt_diffuser", plm, few_shot, tmp_path / "alone", mode="dm_only")
    for a, b in zip(zero.denoisers["guided"].parameters(), alone.denoisers["guided"].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_adaptation_can_be_left_out(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    result = tuned("prompt_diffuser", plm, few_shot, tmp_path, adapt=None)
    assert {row["phase"] for row in result.history.rows} == {2}
    assert plm.diffuser is not None
    for a, b in zip(result.denoisers["adapted"].parameters(), plm.diffuser[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_guidance_lowers_l_dt(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    """Prompts of the guided diffuser are better than those of the adapted one, by the few-shot loss."""
    result = tuned(
        "prompt_diffuser",
        plm,
        few_shot,
        tmp_path,
        steps=60,
        batch=16,
        guidance=5.0,
        learning_rate=1e-3,
        adapt={"steps": 40},
    )
    assert plm.diffuser is not None
    losses = []
    for name in ("adapted", "guided"):
        made = prompt_diffuser.generate(
            result.denoisers[name].eval(), plm.diffuser[1], few_shot.tensors(plm)[1], 24, 3, 0
        )
        losses.append(float(prompt_losses(plm, few_shot, *made[:2], seed=5).mean()))
    assert losses[1] < losses[0]


def test_the_best_candidates_are_kept_by_the_few_shot_loss(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    all_of_them = tuned("prompt_diffuser", plm, few_shot, tmp_path / "all", candidates=10, prompts=10)
    best = tuned("prompt_diffuser", plm, few_shot, tmp_path / "best", candidates=10, prompts=4)
    np.testing.assert_array_equal(best.prompts.x0, all_of_them.prompts.x0[:4])
    losses = prompt_losses(plm, few_shot, *prompt_tensors(all_of_them.prompts, plm.normalization), seed=0)
    assert losses[:4].mean() < losses[6:].mean()


def test_fewer_candidates_than_prompts_are_refused(plm: Pretrained, few_shot: FewShot, tmp_path: Path) -> None:
    """Otherwise evaluation silently gets fewer prompts than from the other methods."""
    with pytest.raises((PipelineError, ValueError), match="candidates"):
        tuned("prompt_diffuser", plm, few_shot, tmp_path, candidates=3, prompts=4)


@pytest.mark.parametrize(("acting_context", "steps"), [(None, 6), (2, 2)])
def test_prompt_losses_are_those_of_each_prompt_alone(
    plm: Pretrained, few_shot: FewShot, acting_context: int | None, steps: int
) -> None:
    """Over windows as long as acting reads them."""
    plm.policy.config = plm.policy.config.model_copy(update={"acting_context": acting_context})
    x0, y = (part[:3] for part in few_shot.tensors(plm))
    window, valid = few_shot.windows.any_windows(np.random.default_rng(0), 32, steps)
    expected = [guidance_loss(plm, x0[i].expand(32, -1, -1), y[i].expand(32, -1, -1), window, valid) for i in range(3)]
    torch.testing.assert_close(prompt_losses(plm, few_shot, x0, y, seed=0), torch.stack(expected), atol=1e-6, rtol=1e-5)


def test_the_guidance_loss_reaches_the_prompt_but_not_its_reward(plm: Pretrained, few_shot: FewShot) -> None:
    x0, y = (part[:4].clone() for part in few_shot.tensors(plm))
    x0.requires_grad_(True)
    window, valid = few_shot.windows.any_windows(np.random.default_rng(0), 4, 6)
    (gradient,) = torch.autograd.grad(guidance_loss(plm, x0, y, window, valid), x0)
    assert (gradient[..., :-1] != 0).any(dim=(1, 2)).all()
    assert (gradient[..., -1] == 0).all()


def test_tensors_and_prompts_are_inverse(plm: Pretrained, few_shot: FewShot) -> None:
    back = to_prompts(*few_shot.tensors(plm), plm.normalization, TASK)
    np.testing.assert_allclose(back.x0, few_shot.prompts.x0, atol=1e-5)
    np.testing.assert_allclose(back.y, few_shot.prompts.y, atol=1e-5)
    np.testing.assert_array_equal(back.start, few_shot.prompts.start)
    assert (back.task_id == TASK).all()
    assert (back.episode_id == -1).all()


def test_copies_of_the_pretrained_are_equal(plm: Pretrained) -> None:
    """deepcopy is what methods rely on: it must carry the dropout of the model with it, not share it."""
    twin = copy.deepcopy(plm.policy)
    twin.refresh_dropout(2, torch.float32, torch.Generator().manual_seed(0))
    assert twin.dropout.pool.numel() > 0
    assert plm.policy.dropout.pool.numel() == 0
