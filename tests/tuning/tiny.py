"""A tiny PLM, diffuser and few-shot trajectories, for which a method can be recomputed by hand."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pd_pipeline.models.conditions import Conditions
from pd_pipeline.models.diffuser import Denoiser, DenoiserConfig
from pd_pipeline.models.diffusion import Diffusion, DiffusionParams
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Normalization, Prompts
from pd_pipeline.tuning import (
    adapter,
    full_finetune,
    lora,
    no_prompt,
    noise_prompt,
    prompt_diffuser,
    prompt_dt,
    prompt_gradient,
)
from pd_pipeline.tuning.adaptation import Adaptation, Reweighted
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from tests.builders import D_A, D_S, trajectories
from tests.builders import policy as made_policy

TASK = 4
CHANNELS = D_S + D_A + 1
PROMPT, CONTEXT, ACTING = 3, 5, 2  # steps of a prompt, of a window in training, of a window in acting
EXACT = {"precision": "float32"}
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "prompt_dt": (prompt_dt, {}),
    "prompt_diffuser": (
        prompt_diffuser,
        {"adapt": {"steps": 6, "batch": 6, **EXACT}, "steps": 5, "batch": 6, "candidates": None, "chain": 3, **EXACT},
    ),
    "prompt_gradient": (prompt_gradient, {"steps": 5, "windows": 4, **EXACT}),
    "full_finetune": (full_finetune, {"steps": 5, "batch": 6, **EXACT}),
    "lora": (lora, {"steps": 5, "batch": 6, "rank": 2, **EXACT}),
    "adapter": (adapter, {"steps": 5, "batch": 6, "bottleneck": 2, **EXACT}),
    "noise_prompt": (noise_prompt, {}),
    "no_prompt": (no_prompt, {}),
}
DRAWING = [name for name in METHODS if name != "no_prompt"]
TRAINING = ["prompt_diffuser", "prompt_gradient", "full_finetune", "adapter", "lora"]


def pretrained(conditions: Conditions | None = None, **changes: Any) -> Pretrained:
    """A PLM and a diffuser with random weights that are large enough to matter."""
    shape = {"prompt_length": PROMPT, "context": CONTEXT, "acting_context": ACTING, "layers": 1}
    policy = made_policy(**shape | changes).requires_grad_(False)
    torch.manual_seed(1)
    config = DenoiserConfig(
        channels=CHANNELS,
        prompt_length=PROMPT,
        width=16,
        blocks=1,
        frequencies=4,
        conditions=conditions or Conditions(),
    )
    denoiser = Denoiser(config)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    diffusion = Diffusion(DiffusionParams(steps=8))
    normalization = Normalization.of([trajectories((10,) * 4, (0, 1, 2, 3), seed=5)])
    return Pretrained(policy, normalization, torch.device("cpu"), (denoiser, diffusion))


def few_shot_of(plm: Pretrained, task: int = TASK) -> Target:
    """Three episodes of one task, the second one shorter: 23 segments."""
    return Target.of(trajectories((10, 9, 10), (task,) * 3), plm)


def tuned(name: str, plm: Pretrained, few_shot: Target, work: Path, seed: int = 0, **changes: Any) -> Any:
    """The result of a method with small parameters; 4 prompts by default."""
    module, defaults = METHODS[name]
    params = module.Params.model_validate({"prompts": 4} | defaults | changes)
    return module.tune(plm, few_shot, params, Run(work / "work", work / "logs", name, silent, seed))


def same_prompts(found: Prompts, expected: Prompts) -> None:
    for name in (f.name for f in fields(Prompts)):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def same_weights(found: torch.nn.Module, expected: torch.nn.Module, exactly: bool = True) -> None:
    assert list(found.state_dict()) == list(expected.state_dict())
    for name, tensor in expected.state_dict().items():
        tolerance = {"atol": 0.0, "rtol": 0.0} if exactly else {"atol": 1e-6, "rtol": 1e-5}
        torch.testing.assert_close(found.state_dict()[name], tensor, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def models(left: Adaptation) -> dict[str, torch.nn.Module]:
    """Every model of an adaptation."""
    found = {name: denoiser for name, (denoiser, _) in left.generators().items()}
    return found | ({"policy": left.policy} if isinstance(left, Reweighted) else {})


def passes(left: Adaptation) -> int:
    """Passes through the PLM, forward and backward."""
    return left.cost.plm_forward + left.cost.plm_backward


def same(found: Any, expected: Any) -> None:
    """Assert that two results of a method are equal, bit by bit."""
    assert type(found) is type(expected)
    same_prompts(found.prompts, expected.prompts)
    assert found.history.rows == expected.history.rows
    assert models(found).keys() == models(expected).keys()
    for name, model in models(expected).items():
        same_weights(models(found)[name], model)
    for name, tensor in getattr(expected, "tensors", {}).items():
        assert torch.equal(found.tensors[name], tensor)
    for name, factors in getattr(expected, "factors", {}).items():
        for one, other in zip(found.factors[name], factors, strict=True):
            assert torch.equal(one, other)
    assert (found.cost, found.frozen) == (expected.cost, expected.frozen)
    assert [chain for _, chain in found.generators().values()] == [c for _, c in expected.generators().values()]
