"""The two phases of Prompt Diffuser: where each keeps its state and logs, and its precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pd_pipeline.tuning import prompt_diffuser
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from tests.tuning.tiny import METHODS, same, tuned


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bool]]:
    """Whether either loss was computed under autocast, step by step."""
    seen: dict[str, list[bool]] = {"diffusion_loss": [], "guidance_loss": []}
    for name, calls in seen.items():
        original = getattr(prompt_diffuser, name)

        def watched(*given: Any, _calls: list[bool] = calls, _original: Any = original) -> Tensor:
            _calls.append(torch.is_autocast_enabled("cpu"))
            return _original(*given)

        monkeypatch.setattr(prompt_diffuser, name, watched)
    return seen


@pytest.mark.parametrize("guiding", ["float32", "bf16"])
@pytest.mark.parametrize("adapting", ["float32", "bf16"])
def test_each_phase_uses_its_precision_and_guidance_autocasts_only_the_plm(
    adapting: str, guiding: str, plm: Pretrained, few_shot: Target, tmp_path: Path, precise: dict[str, list[bool]]
) -> None:
    adapt = {"steps": 2, "batch": 6, "precision": adapting}
    tuned("prompt_diffuser", plm, few_shot, tmp_path, adapt=adapt, steps=3, precision=guiding)
    assert precise["diffusion_loss"] == [adapting == "bf16"] * 2 + [False] * 3
    assert precise["guidance_loss"] == [guiding == "bf16"] * 3


def test_the_phases_have_separate_state_and_logs(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    module, defaults = METHODS["prompt_diffuser"]
    often = {"checkpoint_seconds": 0.0}
    params = module.Params.model_validate({"prompts": 4} | defaults | often | {"adapt": defaults["adapt"] | often})
    reported: list[tuple[Any, ...]] = []
    run = Run(tmp_path / "work", tmp_path / "logs", "a title", lambda *given: reported.append(given[:3]), 0)
    module.tune(plm, few_shot, params, run)
    assert reported == [("a title adapt", 6, 6), *(("a title guide", step, 5) for step in range(1, 6))]
    kept = sorted(str(path.relative_to(tmp_path / "work")) for path in (tmp_path / "work").glob("*/*"))
    assert kept == [
        *(f"adapt/step-0000000{step}.safetensors" for step in (5, 6)),
        *(f"guide/step-0000000{step}.safetensors" for step in (4, 5)),
    ]
    assert sorted(path.parent.name for path in (tmp_path / "logs").glob("*/*")) == ["adapt", "guide"]


def test_a_frozen_diffuser_is_tuned_too(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    expected = tuned("prompt_diffuser", plm, few_shot, tmp_path / "free")
    assert plm.diffuser is not None
    plm.diffuser[0].requires_grad_(False)
    same(tuned("prompt_diffuser", plm, few_shot, tmp_path / "frozen"), expected)
    assert not any(parameter.requires_grad for parameter in plm.diffuser[0].parameters())
