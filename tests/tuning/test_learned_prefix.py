"""Soft prompts and prefixes: what they start as, what they learn, and what acts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import Steps, action_loss
from pd_pipeline.models.prefixes import predict, read_tokens
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.progress import silent
from pd_pipeline.storage import save_arrays
from pd_pipeline.training.loop import Trainer
from pd_pipeline.tuning import prefix, soft_prompt
from pd_pipeline.tuning.learned_prefix import losses
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from tests.tuning.tiny import ACTING, PROMPT

EXACT = {"precision": "float32", "schedule": "constant", "warmup": 0}
METHODS = {"soft_prompt": soft_prompt, "prefix": prefix}
by_name = pytest.mark.parametrize("name", METHODS)


def tuned(name: str, plm: Pretrained, few_shot: Target, work: Path, seed: int = 0, **changes: Any) -> Any:
    module = METHODS[name]
    params = module.Params.model_validate({"prompts": 3, "steps": 6, "windows": 4} | EXACT | changes)
    return module.tune(plm, few_shot, params, Run(work / "work", work / "logs", name, silent, seed))


def conditions(result: Any, plm: Pretrained) -> list[torch.Tensor]:
    return list(result.actors(plm).conditions)


@by_name
def test_it_starts_as_a_few_shot_segment(name: str, plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    """With steps too small to matter, it acts as prompt_dt does."""
    result = tuned(name, plm, few_shot, tmp_path, learning_rate=1e-12)
    x0, y = prompt_tensors(few_shot.draw(np.random.default_rng(0), 3), plm.normalization)
    prompt = prompt_steps(x0, y, plm.normalization)
    window, valid = few_shot.windows.any_windows(np.random.default_rng(1), 3, ACTING)
    actors = result.actors(plm)
    with torch.no_grad():
        expected = plm.policy(prompt, window)
        found = predict(plm.policy, actors.prefix(plm.policy, *actors.conditions), window)
    torch.testing.assert_close(found[valid], expected[valid], atol=1e-5, rtol=1e-4)


@by_name
def test_it_learns_and_leaves_the_plm_alone(name: str, plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in plm.policy.state_dict().items()}
    result = tuned(name, plm, few_shot, tmp_path, steps=80, learning_rate=3e-2, windows=16)
    logged = [row["loss"] for row in result.history.rows]
    assert np.mean(logged[-10:]) < 0.9 * np.mean(logged[:10])
    for key, value in plm.policy.state_dict().items():
        assert torch.equal(value, before[key])
    assert result.frozen
    assert not any(p.requires_grad for p in plm.policy.parameters())


def test_each_is_tuned_as_if_it_were_alone(plm: Pretrained, few_shot: Target) -> None:
    """Also where some windows are shorter than others."""
    x0, y = prompt_tensors(few_shot.draw(np.random.default_rng(0), 3), plm.normalization)
    with torch.no_grad():
        tokens = plm.policy.embed_prompt(prompt_steps(x0, y, plm.normalization))
    window, valid = few_shot.windows.any_windows(np.random.default_rng(1), 12, ACTING)
    valid[4:7, 1:] = False
    together = tokens.clone().requires_grad_()
    losses(plm, read_tokens(plm.policy, together), window, valid).sum().backward()
    assert together.grad is not None
    for i in range(3):
        alone, rows = tokens[i : i + 1].clone().requires_grad_(), slice(4 * i, 4 * i + 4)
        one = Steps(*(part[rows] for part in window))
        before = [(k.expand(4, -1, -1), v.expand(4, -1, -1)) for k, v in read_tokens(plm.policy, alone)]
        action_loss(predict(plm.policy, before, one), one.actions, valid[rows]).backward()
        assert alone.grad is not None
        torch.testing.assert_close(together.grad[i], alone.grad[0], atol=1e-6, rtol=1e-4)


@by_name
def test_what_is_saved_acts_the_same(name: str, plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    result = tuned(name, plm, few_shot, tmp_path)
    result.save(tmp_path)
    again = METHODS[name].load(tmp_path, plm)
    for one, other in zip(conditions(result, plm), conditions(again, plm), strict=True):
        assert torch.equal(one, other)
    assert [origin.name for origin in again.actors(plm).origins] == ["learned"] * 3
    file = next(tmp_path.glob("*.safetensors"))
    save_arrays(file, {"other": np.zeros(3, np.float32)})
    with pytest.raises(PipelineError, match=file.name):
        METHODS[name].load(tmp_path, plm)


@by_name
@pytest.mark.parametrize(("tokens", "start"), [(2, "segment"), (None, "noise"), (12, "segment")])
def test_the_number_of_tokens_is_a_parameter(
    name: str, tokens: int | None, start: str, plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    result = tuned(name, plm, few_shot, tmp_path, tokens=tokens, start=start)
    count, width, layers = tokens or 3 * PROMPT, plm.policy.config.width, plm.policy.config.layers
    assert all(part.shape == (3, count, width) for part in conditions(result, plm))
    assert result.cost.tuned_parameters == count * width * (2 * layers if name == "prefix" else 1)
    assert result.cost.plm_forward == result.cost.plm_backward == 6 * 3 * 4


@by_name
def test_resuming_gives_the_same_result(
    name: str, plm: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuned(name, plm, few_shot, tmp_path / "whole")
    original, done = Trainer._update, [0]

    def update(self: Trainer, compute: Any) -> None:
        done[0] += 1
        if done[0] == 4:
            raise KeyboardInterrupt
        original(self, compute)

    monkeypatch.setattr(Trainer, "_update", update)
    with pytest.raises(KeyboardInterrupt):
        tuned(name, plm, few_shot, tmp_path / "killed", checkpoint_seconds=0.0)
    again = tuned(name, plm, few_shot, tmp_path / "killed", checkpoint_seconds=0.0)
    for one, other in zip(conditions(whole, plm), conditions(again, plm), strict=True):
        assert torch.equal(one, other)
    assert done[0] < 6 + 6, "it went on from a checkpoint"
