"""Drawn prompts where tuning did not help on trajectories that it did not see."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.parsing import parse
from pd_pipeline.storage import read_json
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.tuning import stage
from pd_pipeline.tuning.action_losses import action_losses
from pd_pipeline.tuning.adaptation import Cost, FellBack, Prompted, Reweighted, load
from pd_pipeline.tuning.fallback import fall_back, split
from pd_pipeline.tuning.protocol import Pretrained, Target, TuningParams
from tests.builders import trajectories
from tests.tuning.test_stage import context
from tests.tuning.tiny import TASK, same_prompts

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
    with pytest.raises(PipelineError, match=r"here: fallback: needs two few-shot trajectories, .* there is 1: set"):
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
    settings = {"target": {"few_shot": 3}, "fallback": 0.3}
    bad = run_method(trained_project, tmp_path / "bad", learning_rate=50.0, warmup=0, **settings)
    assert bad["fell_back"]
    assert bad["frozen"]
    assert len(bad["few_shot_episodes"]) == 3, "all that the method and the comparison saw"
    assert (tmp_path / "bad/fell_back.json").is_file()
    none = run_method(trained_project, tmp_path / "none", learning_rate=50.0, warmup=0, target={"few_shot": 3})
    assert not none["fell_back"]
    assert not none["frozen"]
    with pytest.raises(PipelineError, match="fallback needs two few-shot trajectories"):
        parse(TuningParams, {"target": {"few_shot": 1}, "fallback": 0.5}, "x")


@pytest.mark.parametrize("prompt_quality", [None, "expert"])
def test_tuning_never_sees_what_is_held_out(
    prompt_quality: str | None, trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Target] = []
    real = Target.of
    monkeypatch.setattr(Target, "of", lambda *given: (seen.append(real(*given)), seen[-1])[1])
    of_target = {"few_shot": 3, "prompt_quality": prompt_quality}
    made = context(trained_project, tmp_path / "out", "prompt_dt", target=of_target, fallback=0.3)
    stage.run(made)
    (target,) = seen
    kept = set(read_json(tmp_path / "out/summary.json")["few_shot_episodes"]) - set(target.data.episode_id.tolist())
    assert len(kept) == 1
    assert not kept & set(target.prompts.episode_id.tolist())
