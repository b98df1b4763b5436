"""Adapters against their equation, and what is frozen."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from pd_pipeline.acting.actors import prompted
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import Adapter
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.models.weights import weights
from pd_pipeline.storage import load_arrays, save_arrays
from pd_pipeline.tuning.adaptation import load
from pd_pipeline.tuning.adapter import FILE
from pd_pipeline.tuning.protocol import Pretrained, Target, prompt_losses
from tests.tuning.tiny import ACTING, same_prompts, tuned


def test_the_equation() -> None:
    adapter, h = Adapter(4, 2), torch.randn(3, 5, 4)
    down, up = adapter.down, adapter.up
    expected = h + torch.clamp(h @ down.weight.T + down.bias, min=0) @ up.weight.T + up.bias
    torch.testing.assert_close(adapter(h), expected)


def test_it_begins_as_the_plm(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    result = tuned("adapter", plm, few_shot, tmp_path, steps=1, learning_rate=1e-12, bottleneck=3)
    window, _ = few_shot.windows.any_windows(np.random.default_rng(1), 4, ACTING)
    plain = prompted(plm.policy, result.prompts, plm.normalization)
    with torch.no_grad():
        found, expected = (actors.started().act(window) for actors in (result.actors(plm), plain))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_only_adapters_are_tuned_and_they_learn(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    before = copy.deepcopy(weights(plm.policy))
    result = tuned("adapter", plm, few_shot, tmp_path, steps=60, learning_rate=1e-2, bottleneck=3)
    width, layers = plm.policy.config.width, plm.policy.config.layers
    assert result.cost.tuned_parameters == layers * 2 * (2 * width * 3 + 3 + width)
    assert result.frozen
    acting = weights(result.actors(plm).policy)
    for name, array in before.items():
        np.testing.assert_array_equal(acting[name], array)
    x0, y = prompt_tensors(few_shot.prompts, plm.normalization)
    adapted = Pretrained(result.actors(plm).policy, plm.normalization, plm.device)
    assert prompt_losses(adapted, few_shot, x0, y, 3).mean() < prompt_losses(plm, few_shot, x0, y, 3).mean()


def test_saved_and_loaded_it_acts_the_same(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    result = tuned("adapter", plm, few_shot, tmp_path, learning_rate=0.05)
    result.save(tmp_path)
    back = load("pd_pipeline.tuning.adapter", tmp_path, plm)
    same_prompts(back.prompts, result.prompts)
    window, _ = few_shot.windows.any_windows(np.random.default_rng(1), 4, ACTING)
    assert torch.equal(back.actors(plm).started().act(window), result.actors(plm).started().act(window))


@pytest.mark.parametrize("broken", ["missing", "narrow"])
def test_a_damaged_file_is_refused(broken: str, plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    tuned("adapter", plm, few_shot, tmp_path).save(tmp_path)
    arrays, _ = load_arrays(tmp_path / FILE)
    name = "blocks.0.adapt_attention.up.weight"
    arrays[name] = arrays[name][:, :1]
    if broken == "missing":
        del arrays[name]
    save_arrays(tmp_path / FILE, arrays)
    with pytest.raises(PipelineError, match=FILE):
        load("pd_pipeline.tuning.adapter", tmp_path, plm)
