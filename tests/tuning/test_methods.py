"""Every method: its results, what it must not modify, and the selection that all share."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.models.weights import weights
from pd_pipeline.parsing import parse
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.training.loop import Trainer
from pd_pipeline.tuning.protocol import Pretrained, Target
from tests.tuning.test_protocol import by_hand
from tests.tuning.tiny import (
    CHANNELS,
    DRAWING,
    METHODS,
    PROMPT,
    TASK,
    TRAINING,
    few_shot_of,
    models,
    passes,
    pretrained,
    same,
    same_prompts,
    tuned,
)


def state(plm: Pretrained) -> dict[str, np.ndarray]:
    assert plm.diffuser is not None
    parts = {"policy": plm.policy, "denoiser": plm.diffuser[0]}
    return {f"{part}.{n}": a.copy() for part, model in parts.items() for n, a in weights(model).items()}


@pytest.mark.parametrize("name", METHODS)
def test_prompts_are_valid_and_pretrained_models_unchanged(
    name: str, plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    before = state(plm)
    result = tuned(name, plm, few_shot, tmp_path)
    for key, array in state(plm).items():
        np.testing.assert_array_equal(array, before[key], err_msg=key)
    assert all(p.grad is None and not p.requires_grad for p in plm.policy.parameters())
    prompts = result.prompts
    length = 0 if name == "no_prompt" else PROMPT
    assert prompts.x0.shape == (4, length, CHANNELS)
    assert prompts.y.shape == (4, length, 2)
    assert prompts.x0.dtype == prompts.y.dtype == np.float32
    assert np.isfinite(prompts.x0).all()
    assert prompts.task_id.tolist() == [TASK] * 4
    real = {row.tobytes() for row in np.round(few_shot.prompts.y, 3)}
    assert {row.tobytes() for row in np.round(prompts.y, 3)} <= real or not length, "conditions of real segments"
    np.testing.assert_array_equal(prompts.start, np.rint(prompts.y[:, 0, 1]) if length else 0)
    assert (prompts.episode_id == -1).all() == (name not in ("prompt_dt", "full_finetune", "adapter", "lora"))
    named = {"full_finetune": ["policy"], "prompt_diffuser": ["adapted", "guided"]}
    assert sorted(models(result)) == named.get(name, [])
    assert not any(model.training for model in models(result).values())
    assert result.frozen == (name != "full_finetune")
    assert {chain for _, chain in result.generators().values()} == ({3} if name == "prompt_diffuser" else set())


@pytest.mark.parametrize("name", METHODS)
def test_results_depend_on_the_seed(name: str, plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    one, again, other = (tuned(name, plm, few_shot, tmp_path / str(i), seed) for i, seed in enumerate((1, 1, 2)))
    same(again, one)
    if name != "no_prompt":
        assert (one.prompts.x0 != other.prompts.x0).any()
    if name in TRAINING:
        assert one.history.rows != other.history.rows


@pytest.mark.parametrize("name", METHODS)
def test_the_training_mode_of_the_plm_has_no_effect_and_stays(
    name: str, plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {} if name == "no_prompt" else {"candidates": 6}
    expected = tuned(name, plm, few_shot, tmp_path / "eval", **changes)
    assert not any(module.training for module in plm.policy.modules())
    plm.policy.train()
    same(tuned(name, plm, few_shot, tmp_path / "train", **changes), expected)
    assert all(module.training for module in plm.policy.modules())


@pytest.mark.parametrize("name", TRAINING)
def test_resuming_at_any_step_gives_the_same_result(
    name: str, plm: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after 1, 2, ... updates, until a try finishes."""
    whole = tuned(name, plm, few_shot, tmp_path / "whole", candidates=6)
    changes: dict[str, Any] = {"checkpoint_seconds": 0.0, "candidates": 6}
    if name == "prompt_diffuser":
        changes["adapt"] = METHODS[name][1]["adapt"] | {"checkpoint_seconds": 0.0}
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
    same(result, whole)


@pytest.mark.parametrize("name", DRAWING)
def test_the_candidates_with_the_lowest_few_shot_loss_are_kept(name: str, few_shot: Target, tmp_path: Path) -> None:
    """The same for every method, best first; the loss is that of the policy that will act."""
    plm = pretrained()
    everything = tuned(name, plm, few_shot, tmp_path / "all", seed=5, prompts=11, candidates=None)
    best = tuned(name, plm, few_shot, tmp_path / "best", seed=5, prompts=6, candidates=11)
    acting = Pretrained(everything.actors(plm).policy, plm.normalization, plm.device)
    losses = by_hand(acting, few_shot, *prompt_tensors(everything.prompts, plm.normalization), seed=5)
    assert losses.diff().abs().min() > 1e-6
    expected = losses.argsort()[:6].numpy()
    assert sorted(expected) != list(expected)
    same_prompts(best.prompts, everything.prompts.select(expected))
    assert best.history.rows == everything.history.rows, "all candidates are tuned"
    assert passes(best) == passes(everything) + 32 * 11


def test_full_finetune_selects_by_the_tuned_policy(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"seed": 5, "learning_rate": 0.05}
    everything = tuned("full_finetune", plm, few_shot, tmp_path / "all", prompts=11, **changes)
    best = tuned("full_finetune", plm, few_shot, tmp_path / "best", prompts=4, candidates=11, **changes)
    x0, y = prompt_tensors(everything.prompts, plm.normalization)
    orders = [
        by_hand(Pretrained(policy, plm.normalization, plm.device), few_shot, x0, y, seed=5).argsort()[:4].numpy()
        for policy in (everything.policy, plm.policy)
    ]
    assert orders[0].tolist() != orders[1].tolist()
    same_prompts(best.prompts, everything.prompts.select(orders[0]))


def test_costs_of_the_methods(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    """Passes: forward and backward of every sequence in training, forward in selection."""
    assert plm.diffuser is not None
    sizes = [sum(p.numel() for p in model.parameters()) for model in (plm.diffuser[0], plm.policy)]
    expected = {
        "prompt_dt": (0, 0),
        "noise_prompt": (0, 0),
        "no_prompt": (0, 0),
        "prompt_gradient": (PROMPT * (CHANNELS - 1), 2 * 4 * 4 * 5),
        "full_finetune": (sizes[1], 2 * 6 * 5),
        "prompt_diffuser": (sizes[0], 2 * 6 * 5),
    }
    for name, costs in expected.items():
        result = tuned(name, plm, few_shot, tmp_path / name)
        assert (result.cost.tuned_parameters, passes(result)) == costs, name
        if name == "no_prompt":
            continue
        more = tuned(name, plm, few_shot, tmp_path / f"{name}-more", candidates=7)
        training = 2 * 7 * 4 * 5 if name == "prompt_gradient" else costs[1]  # every candidate is tuned
        assert (more.cost.tuned_parameters, passes(more)) == (costs[0], training + 32 * 7), name
    alone = tuned("prompt_diffuser", plm, few_shot, tmp_path / "alone", mode="dm_only")
    assert passes(alone) == 0


@pytest.mark.parametrize("name", METHODS)
def test_the_stated_passes_are_those_counted(
    name: str, plm: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"forward": 0, "backward": 0}
    forward = PromptingDecisionTransformer.forward

    def counted(self: PromptingDecisionTransformer, *arguments: Any) -> torch.Tensor:
        predicted = forward(self, *arguments)
        made["forward"] += len(predicted)
        if predicted.requires_grad:
            predicted.register_hook(lambda gradient: made.update(backward=made["backward"] + len(gradient)))
        return predicted

    monkeypatch.setattr(PromptingDecisionTransformer, "forward", counted)
    changes: dict[str, Any] = {} if name == "no_prompt" else {"candidates": 6}
    cost = tuned(name, plm, few_shot, tmp_path, **changes).cost
    assert {"forward": cost.plm_forward, "backward": cost.plm_backward} == made


def test_every_method_returns_eight_prompts_and_only_one_selects_by_default() -> None:
    defaults = {name: module.Params() for name, (module, _) in METHODS.items()}
    assert {params.prompts for params in defaults.values()} == {8}
    assert {params.target.few_shot for params in defaults.values()} == {5}
    assert {params.shown for params in defaults.values()} == {"own"}
    chosen = {name: params.candidates for name, params in defaults.items() if params.candidates is not None}
    assert chosen == {"prompt_diffuser": 64}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "block",
    [
        {"prompts": 8, "candidates": 7},
        {"prompts": 0},
        {"prompts": 10_001},
        {"candidates": 0},
        {"candidates": 100_001},
        {"target": {"few_shot": 0}},
        {"target": {"few_shot": 1_000_001}},
        {"target": {"quality": "../expert"}},
        {"shown": "none"},
    ],
)
def test_invalid_parameters_are_refused(name: str, block: dict[str, Any]) -> None:
    """Including fewer candidates than prompts: evaluation would silently get fewer prompts than from other methods."""
    with pytest.raises(PipelineError, match=f"^tuned_{name}"):
        parse(METHODS[name][0].Params, block, f"tuned_{name}")


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("block", [{"steps": 10**10}, {"learning_rate": 1e6}, {"batch": 10**7}, {"windows": 10**7}])
def test_training_steps_are_bounded(name: str, block: dict[str, Any]) -> None:
    with pytest.raises(PipelineError):
        parse(METHODS[name][0].Params, block, "x")


def test_too_few_candidates_are_reported_with_both_numbers() -> None:
    for values in ({"prompts": 80}, {"prompts": 5, "candidates": 4}):
        numbers = rf"candidates \({values.get('candidates', 64)}\) must be at least prompts \({values['prompts']}\)"
        with pytest.raises(PipelineError, match=numbers):
            parse(METHODS["prompt_diffuser"][0].Params, values, "tuned_prompt_diffuser")
    assert METHODS["prompt_diffuser"][0].Params(prompts=80, candidates=None).candidate_count == 80


@pytest.mark.parametrize("block", [{"candidates": 8}, {"shown": "other"}])
def test_no_prompt_refuses_candidates_and_shown(block: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match="no_prompt gives the policy no prompt"):
        parse(METHODS["no_prompt"][0].Params, block, "tuned_no_prompt")


def test_prompts_of_zero_steps_are_saved_and_loaded(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    prompts = tuned("no_prompt", plm, few_shot, tmp_path, prompts=3).prompts
    prompts.save(tmp_path / "prompts.safetensors")
    back = Prompts.load(tmp_path / "prompts.safetensors")
    same_prompts(back, prompts)
    assert (back.x0.shape, back.y.shape) == ((3, 0, CHANNELS), (3, 0, 2))
    assert back.start.tolist() == [0] * 3
    assert back.episode_id.tolist() == [-1] * 3


def test_copies_of_pretrained_models_are_equal(plm: Pretrained) -> None:
    """Methods rely on deepcopy: it must copy the model's dropout, not share it."""
    twin = copy.deepcopy(plm.policy).train()
    twin.dropout.refresh(torch.empty(1), 100, 2, torch.Generator().manual_seed(0))
    assert len(twin.dropout.parts) == 2
    assert not plm.policy.dropout.parts


@pytest.mark.parametrize("name", METHODS)
def test_prompts_name_the_task_they_come_from(name: str, plm: Pretrained, tmp_path: Path) -> None:
    assert tuned(name, plm, few_shot_of(plm, task=2), tmp_path).prompts.task_id.tolist() == [2] * 4
