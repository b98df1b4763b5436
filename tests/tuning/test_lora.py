"""LoRA against its equation, and what is frozen."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from pd_pipeline.compute import generator_of
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import action_loss
from pd_pipeline.models.weights import weights
from pd_pipeline.storage import load_arrays, save_arrays
from pd_pipeline.tuning.adaptation import load
from pd_pipeline.tuning.lora import LAYERS, LowRankWeights
from pd_pipeline.tuning.protocol import Pretrained, Target
from tests.tuning.tiny import ACTING, PROMPT, same_prompts, tuned

PLAIN = {"schedule": "constant", "warmup": 0, "clip": None, "weight_decay": 0.0}


def adapted(left: LowRankWeights, plm: Pretrained) -> dict[str, np.ndarray]:
    return weights(left.actors(plm).policy)


def test_training_is_that_of_the_equation(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    """W' = W + alpha / r B A, written out with A and B as the only weights."""
    changes: dict[str, Any] = {"rank": 2, "alpha": 6.0, "layers": ["query", "down"], "steps": 3, "batch": 7}
    left = tuned("lora", plm, few_shot, tmp_path, seed=3, learning_rate=1e-2, **changes, **PLAIN)
    policy = copy.deepcopy(plm.policy).train()
    frozen = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    factors = {}
    for index, name in enumerate(("blocks.0.query", "blocks.0.down")):
        rows, columns = frozen[f"{name}.weight"].shape
        a = torch.rand(2, columns, generator=generator_of(3, index)) * 2 - 1
        factors[name] = [(a / columns**0.5).requires_grad_(True), torch.zeros(rows, 2, requires_grad=True)]
    optimizer = torch.optim.AdamW([f for pair in factors.values() for f in pair], lr=1e-2, weight_decay=0.0)
    losses = []
    for step in range(3):
        batch = few_shot.windows.batch(np.random.default_rng([3, step]), 7, PROMPT, ACTING)
        changed = {f"{n}.weight": frozen[f"{n}.weight"] + 3.0 * (b @ a) for n, (a, b) in factors.items()}
        predicted = functional_call(policy, frozen | changed, (batch.prompt, batch.window, generator_of(3, step)))
        loss = action_loss(predicted, batch.window.actions, batch.valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose([row["loss"] for row in left.history.rows], losses, rtol=1e-5)
    found = adapted(left, plm)
    for name, tensor in frozen.items():
        layer = name.removesuffix(".weight")
        if layer in factors:
            a, b = factors[layer]
            np.testing.assert_allclose(found[name], (tensor + (3.0 * (b @ a)).detach()).numpy(), atol=1e-6)
        assert (layer in factors) == bool((found[name] != tensor.numpy()).any())


@pytest.mark.parametrize(("rank", "layers"), [(1, LAYERS), (3, ("key_value",))])
def test_only_the_low_rank_weights_are_tuned(
    rank: int, layers: tuple[str, ...], plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    left = tuned("lora", plm, few_shot, tmp_path, rank=rank, layers=layers)
    block = plm.policy.blocks[0]
    expected = sum(rank * sum(getattr(block, layer).weight.shape) for layer in layers)
    assert left.cost.tuned_parameters == expected * len(plm.policy.blocks)
    assert left.frozen
    assert sorted(left.factors) == sorted(f"blocks.0.{layer}" for layer in layers)
    for name, (a, b) in left.factors.items():
        change = adapted(left, plm)[f"{name}.weight"] - weights(plm.policy)[f"{name}.weight"]
        np.testing.assert_allclose(change, (b @ a).numpy(), atol=1e-6)
        assert np.linalg.matrix_rank((b @ a).numpy()) == rank


def test_saved_and_loaded_it_acts_the_same(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    left = tuned("lora", plm, few_shot, tmp_path, learning_rate=0.05)
    left.save(tmp_path)
    back = load("pd_pipeline.tuning.lora", tmp_path, plm)
    assert isinstance(back, LowRankWeights)
    same_prompts(back.prompts, left.prompts)
    for name, array in adapted(left, plm).items():
        np.testing.assert_array_equal(adapted(back, plm)[name], array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("blocks.0.up.a"), r"lacks blocks\.0\.up\.a"),
        (lambda a: a.update({"head.a": np.zeros((1, 1), np.float32)}), r"has unexpected head\.a"),
        (lambda a: a.update({"blocks.0.up.b": a["blocks.0.up.b"][:, :1]}), r"'blocks\.0\.up\.b' has shape"),
        (lambda a: a.update({"blocks.0.up.a": a["blocks.0.up.a"][:, :1]}), r"'blocks\.0\.up\.a' has shape"),
    ],
    ids=["lacking", "of no such layer", "of another rank", "of another width"],
)
def test_weights_that_do_not_fit_are_refused(
    change: Any, message: str, plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    tuned("lora", plm, few_shot, tmp_path / "work", steps=1).save(tmp_path)
    arrays, _ = load_arrays(tmp_path / "lora.safetensors")
    change(arrays)
    save_arrays(tmp_path / "lora.safetensors", arrays)
    with pytest.raises(PipelineError, match=message):
        load("pd_pipeline.tuning.lora", tmp_path, plm)
