"""Trajectories that tuning does not see: early stopping by them, and drawn prompts where tuning did not help."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prefixes import predict
from pd_pipeline.parsing import parse
from pd_pipeline.progress import silent
from pd_pipeline.storage import digest, read_json
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.tuning import prefix, prompt_tuning_ranking, soft_prompt, stage
from pd_pipeline.tuning.action_losses import action_losses
from pd_pipeline.tuning.adaptation import Adaptation, Cost, FellBack, Prompted, Reweighted, load
from pd_pipeline.tuning.held_out import fall_back, split
from pd_pipeline.tuning.protocol import Pretrained, Run, Target, TuningParams
from tests.builders import trajectories
from tests.tuning.test_stage import context
from tests.tuning.tiny import EXACT, METHODS, TASK, TRAINING, same_prompts

HELD_OUT = trajectories((10, 8), (TASK, TASK), seed=8)


def left(plm: Pretrained, few_shot: Target, scale: float) -> Reweighted:
    """What a method left: a policy whose actions are those of the PLM times `scale`, roughly."""
    import copy

    policy = copy.deepcopy(plm.policy)
    with torch.no_grad():
        policy.head.weight *= scale
        policy.head.bias *= scale
    return Reweighted(prompts=few_shot.draw(np.random.default_rng(0), 3), policy=policy, cost=Cost(plm_forward=7))


@pytest.mark.parametrize(("share", "held_out"), [(0.01, [2]), (0.4, [2]), (0.5, [1, 2]), (0.99, [1, 2])])
def test_the_last_trajectories_are_kept_from_tuning(share: float, held_out: list[int], few_shot: Target) -> None:
    found = split(few_shot.data, share, "here")
    numbers = few_shot.data.episode_id
    np.testing.assert_array_equal(found.held_out.episode_id, numbers[held_out])
    np.testing.assert_array_equal(found.tuning.episode_id, numbers[: 3 - len(held_out)])
    with pytest.raises(PipelineError, match=r"here: held_out: needs two few-shot trajectories, .* there is 1: set"):
        split(few_shot.data.select(np.array([0])), share, "here")


@pytest.mark.parametrize("scale", [0.2, 6.0])
def test_what_tuning_did_not_see_decides(scale: float, plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    result = left(plm, few_shot, scale)
    found = fall_back(plm, few_shot, result, HELD_OUT, 4, seed=3)
    plain = Prompted(prompts=few_shot.draw(np.random.default_rng([3, 9]), 4))
    data = PolicyData(HELD_OUT, plm.normalization)
    tuned, drawn = (action_losses(each.actors(plm), data, 50).mean() for each in (result, plain))
    assert found.cost.plm_forward == 7 + (3 + 4) * 18, "every step of both, under every prompt"
    assert (tuned < drawn) == (scale < 1), "or this test shows nothing"
    if tuned < drawn:
        assert isinstance(found, Reweighted)
        assert found.policy is result.policy
        return
    assert isinstance(found, FellBack)
    assert found.frozen
    assert (found.tuned, found.drawn) == pytest.approx((tuned, drawn))
    same_prompts(found.prompts, plain.prompts)
    found.save(tmp_path)
    again = load("pd_pipeline.tuning.lora", tmp_path, plm)
    assert isinstance(again, FellBack), "whatever the method"
    same_prompts(again.prompts, found.prompts)
    assert (again.tuned, again.drawn) == pytest.approx((tuned, drawn))


def test_no_better_is_not_enough(plm: Pretrained, few_shot: Target) -> None:
    same = Prompted(prompts=few_shot.draw(np.random.default_rng([3, 9]), 4))
    assert isinstance(fall_back(plm, few_shot, same, HELD_OUT, 4, seed=3), FellBack)


def run_method(trained_project: Path, out: Path, **changes: Any) -> dict[str, Any]:
    made = context(trained_project, out, "full_finetune", **changes)
    figures = stage.run(made)
    return figures | read_json(out / "summary.json")


def test_through_the_stage(trained_project: Path, tmp_path: Path) -> None:
    settings = {"target": {"few_shot": 3}, "held_out": {"share": 0.3, "stop": False}}
    bad = run_method(trained_project, tmp_path / "bad", learning_rate=50.0, warmup=0, **settings)
    assert bad["fell_back"]
    assert bad["frozen"]
    assert len(bad["few_shot_episodes"]) == 3, "all that the method and the comparison saw"
    assert (tmp_path / "bad/fell_back.json").is_file()
    none = run_method(trained_project, tmp_path / "none", learning_rate=50.0, warmup=0, target={"few_shot": 3})
    assert not none["fell_back"]
    assert not none["frozen"]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PipelineError, match="held_out needs two few-shot trajectories"):
        parse(TuningParams, {"target": {"few_shot": 1}, "held_out": {}}, "x")
    with pytest.raises(PipelineError, match="without stop and fall_back nothing is decided"):
        parse(TuningParams, {"held_out": {"stop": False, "fall_back": False}}, "x")


@pytest.mark.parametrize("prompt_quality", [None, "expert"])
def test_tuning_never_sees_what_is_held_out(
    prompt_quality: str | None, trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Target] = []
    real = Target.of
    monkeypatch.setattr(Target, "of", lambda *given: (seen.append(real(*given)), seen[-1])[1])
    of_target = {"few_shot": 3, "prompt_quality": prompt_quality}
    made = context(trained_project, tmp_path / "out", "prompt_dt", target=of_target, held_out={"share": 0.3})
    stage.run(made)
    (target,) = seen
    kept = set(read_json(tmp_path / "out/summary.json")["few_shot_episodes"]) - set(target.data.episode_id.tolist())
    assert len(kept) == 1
    assert not kept & set(target.prompts.episode_id.tolist())


STEPPING: dict[str, tuple[Any, dict[str, Any]]] = {name: METHODS[name] for name in TRAINING} | {
    "soft_prompt": (soft_prompt, {"windows": 4, **EXACT}),
    "prefix": (prefix, {"windows": 4, **EXACT}),
    "prompt_tuning_ranking": (prompt_tuning_ranking, {"windows": 4, "perturbations": 4}),
}
STEPS = 6


def stepped(name: str, plm: Pretrained, target: Target, work: Path, steps: int, **changes: Any) -> Adaptation:
    """What a method leaves after so many steps; until then they are those of a longer tuning."""
    module, given = STEPPING[name]
    constant = {} if name == "prompt_tuning_ranking" else {"schedule": "constant", "warmup": 0}
    params = module.Params.model_validate({"prompts": 4} | given | constant | {"steps": steps} | changes)
    found: Adaptation = module.tune(plm, target, params, Run(work / "work", work / "logs", name, silent, 0))
    return found


def held_out_loss(plm: Pretrained, left: Adaptation, data: PolicyData) -> float:
    """Mean over actors and windows from what acting uses: steps count alike for prefixes, else windows do."""
    window, valid = data.any_windows(np.random.default_rng([0, 8]), 32, plm.policy.config.acting_window)
    actors = left.actors(plm)
    losses = []
    weight = valid if isinstance(left, prefix.Prefix | soft_prompt.SoftPrompt) else valid / valid.sum(1, keepdim=True)
    for actor in range(len(actors)):
        before = actors.prefix(actors.policy, *actors.select([actor]).conditions)
        expanded = [(keys.expand(32, -1, -1), values.expand(32, -1, -1)) for keys, values in before]
        error = (predict(actors.policy, expanded, window) - window.actions).square().mean(-1)
        losses.append(float((error * weight).sum() / weight.sum()))
    return float(np.mean(losses))


@pytest.mark.parametrize("rate", [0.05, 2.0])
@pytest.mark.parametrize("name", STEPPING)
def test_the_step_with_the_lowest_loss_on_what_it_did_not_see_is_kept(
    name: str, rate: float, plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    """Equal to the best of tunings of 1, 2, ... steps, which know nothing of what is held out."""
    target = replace(few_shot, held_out=PolicyData(HELD_OUT, plm.normalization))
    assert target.held_out is not None
    pace = {"step_size" if name == "prompt_tuning_ranking" else "learning_rate": rate}
    found = stepped(name, plm, target, tmp_path / "found", STEPS, held_out={"every": 1}, **pace)
    shorter = [stepped(name, plm, few_shot, tmp_path / f"{k}", k, **pace) for k in range(1, STEPS + 1)]
    losses = [held_out_loss(plm, left, target.held_out) for left in shorter]
    logged = [row["held_out"] for row in found.history.rows if "held_out" in row]
    np.testing.assert_allclose(logged, losses, rtol=1e-3)
    kept = held_out_loss(plm, found, target.held_out)
    np.testing.assert_allclose(min(kept, *losses), kept, rtol=1e-3)
    looks = (STEPS + 1) * 4 * 32
    assert found.cost.plm_forward == shorter[-1].cost.plm_forward + looks
    assert found.cost.plm_backward == shorter[-1].cost.plm_backward
    best = int(np.argmin(losses))
    if kept < losses[best] * 0.999:  # to have learned nothing was best
        return
    found.save(tmp_path / "a")
    shorter[best].save(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_nothing_learned_is_kept_where_every_step_does_harm(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    target = replace(few_shot, held_out=few_shot.windows)
    harm = {"learning_rate": 100.0, "held_out": {"every": 2, "fall_back": False}}
    found = stepped("prompt_gradient", plm, target, tmp_path, STEPS, **harm)
    assert isinstance(found, Prompted)
    drawn = few_shot.draw(np.random.default_rng(0), 4)
    np.testing.assert_allclose(found.prompts.x0, drawn.x0, rtol=1e-5, atol=1e-6)
    to_the_end = harm | {"held_out": {"stop": False}}
    without = stepped("prompt_gradient", plm, target, tmp_path / "b", STEPS, **to_the_end)
    assert isinstance(without, Prompted)
    assert np.abs(without.prompts.x0 - drawn.x0).max() > 1, "stop: false tunes to the end"
