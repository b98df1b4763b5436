"""Loading pre-trained models: any defect gives one line that names the file, before memory is allocated."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pd_pipeline.behavior.learning import LearningParams
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import PolicyConfig, PolicyShape
from pd_pipeline.models.diffuser import DenoiserConfig
from pd_pipeline.models.diffusion import DiffusionParams
from pd_pipeline.models.saved_diffuser import load_diffuser
from pd_pipeline.models.saved_policy import load_policy
from pd_pipeline.prompts import stage as prompts
from pd_pipeline.storage import load_arrays, save_arrays
from pd_pipeline.training import diffuser, plm

PLM, DIFFUSER = "data/plm/point_robot-0", "data/diffuser/point_robot-0"
LOADERS: dict[str, Callable[[Path], Any]] = {PLM: load_policy, DIFFUSER: load_diffuser}


def configured(**changes: Any) -> Callable[[Path], object]:
    """Other values in config.json; `denoiser__width` is inside `denoiser`."""

    def damage(path: Path) -> None:
        values = json.loads(path.read_text())
        for name, value in changes.items():
            *blocks, last = name.split("__")
            block = values[blocks[0]] if blocks else values
            block.pop(last) if value is None else block.update({last: value})
        path.write_text(json.dumps(values))

    return damage


def arrays(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], object]:
    def damage(path: Path) -> None:
        found, _ = load_arrays(path)
        found = {name: array.copy() for name, array in found.items()}
        change(found)
        save_arrays(path, found)

    return damage


def content(value: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(value)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


BROKEN: list[tuple[str, str, Callable[[Path], object], str]] = [
    *(
        (out, "config.json", damage, message)
        for out in LOADERS
        for damage, message in (
            (content(b"\xff\xfe"), "not valid JSON"),
            (content(b'{"width": '), "not valid JSON"),
            (content(b"[" * 100_000), "not valid JSON"),
            (content(b"[]"), "holds no JSON object"),
            (content(b"{}"), "Field required"),
            (Path.unlink, "no such file"),
        )
    ),
    *(
        (out, file, damage, message)
        for out, file in ((PLM, "policy"), (DIFFUSER, "denoiser"), (PLM, "normalization"))
        for file in (f"{file}.safetensors",)
        for damage, message in (
            (cut_off, "not a safetensors file"),
            (content(b""), "not a safetensors file"),
            (content(b"\xff" * 100), "not a safetensors file"),
            (Path.unlink, "no such file"),
            (arrays(lambda a: next(iter(a.values())).fill(np.nan)), "is not finite"),
            (arrays(lambda a: a.pop(next(iter(a)))), "lacks|missing"),
            (arrays(lambda a: a.update(more=np.zeros(1))), "more"),
            (arrays(lambda a: a.update({n: v[None] for n, v in a.items()})), "expected"),
            (arrays(lambda a: a.update({n: v.astype(np.int32) for n, v in a.items()})), "int32"),
        )
    ),
    (PLM, "config.json", configured(width="wide"), "json: width: .*'wide'"),
    (PLM, "config.json", configured(width=None, heads=3), "not a multiple of heads"),
    (PLM, "config.json", configured(observation_size=None), "json: observation_size: Field required"),
    (PLM, "config.json", configured(widht=3), "did you mean 'width'"),
    (PLM, "config.json", configured(width=10**9), "json: width: .*16384"),
    (PLM, "config.json", configured(layers=10**6), "json: layers: .*200"),
    (PLM, "config.json", configured(max_timestep=10**12), "json: max_timestep"),
    (PLM, "config.json", configured(max_timestep=13), r"are \(2, 2, 13\), but \(2, 2, 12\) in normalization"),
    (PLM, "config.json", configured(observation_size=3), r"are \(3, 2, 12\), but"),
    (DIFFUSER, "config.json", configured(denoiser__width=10**9), "denoiser.width: .*16384"),
    (DIFFUSER, "config.json", configured(denoiser__blocks=10**6), "denoiser.blocks: .*200"),
    (DIFFUSER, "config.json", configured(denoiser__channels=None), "denoiser.channels: Field required"),
    (DIFFUSER, "config.json", configured(diffusion__steps=10**9), "diffusion.steps: .*100000"),
    (DIFFUSER, "config.json", configured(diffusion="cosine"), "json: diffusion"),
    (DIFFUSER, "config.json", configured(quality="../x"), "json: quality"),
]


@pytest.mark.parametrize(("out", "file", "damage", "message"), BROKEN)
def test_broken_files_are_named_in_one_line(
    project: Path, out: str, file: str, damage: Callable[[Path], object], message: str
) -> None:
    path = project / out / file
    damage(path)
    with pytest.raises(PipelineError, match=message) as caught:
        LOADERS[out](project / out)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize(
    ("out", "changes", "file"),
    [
        (PLM, {"width": 16_384, "layers": 200}, "policy.safetensors"),
        (DIFFUSER, {"denoiser__width": 16_384, "denoiser__blocks": 200}, "denoiser.safetensors"),
    ],
)
def test_a_configuration_larger_than_the_weights_takes_no_memory(
    project: Path, out: str, changes: dict, file: str
) -> None:
    """The model would need two terabytes."""
    configured(**changes)(project / out / "config.json")
    began = time.monotonic()
    with pytest.raises(PipelineError, match=rf"{file}: these weights do not fit the config\.json beside them: "):
        LOADERS[out](project / out)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("out", LOADERS)
def test_loading_draws_no_random_numbers(trained_project: Path, out: str) -> None:
    state = torch.get_rng_state()
    first, second = (LOADERS[out](trained_project / out)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    saved, _ = load_arrays(next((trained_project / out).glob("[dp]*.safetensors")))
    for name, tensor in first.state_dict().items():
        assert tensor.device.type == "cpu"
        np.testing.assert_array_equal(tensor.numpy(), saved[name])
        assert torch.equal(tensor, second.state_dict()[name])


NEEDED: dict[type, dict[str, Any]] = {
    PolicyConfig: {"observation_size": 2, "action_size": 2, "max_timestep": 12},
    DenoiserConfig: {"channels": 5, "prompt_length": 3},
}
SIZES = ("observation_size", "action_size", "max_timestep", "prompt_length")


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        *((PolicyShape, name, 10**6) for name in ("context", "width", "layers", "heads")),
        *((PolicyConfig, name, value) for name in SIZES for value in (0, -7, 10**9)),
        *((DenoiserConfig, name, 10**6) for name in ("channels", "prompt_length", "width", "blocks", "frequencies")),
        (DiffusionParams, "steps", 10**6),
        *((plm.Params, name, 10**12) for name in ("steps", "batch_per_task", "learning_rate", "width")),
        *((plm.Params, "qualities", [bad]) for bad in ("../../x", "", "a/b", "x" * 100)),
        *((diffuser.Params, name, 10**12) for name in ("steps", "batch", "learning_rate", "log_every", "warmup")),
        (diffuser.Params, "qualities", ["../../x"]),
        (diffuser.Params, "denoiser", {"width": 10**6}),
        (plm.Params, "interpolation", {"extrapolation": 1e9}),
        *((prompts.Params, name, 10**12) for name in ("length", "stride")),
        (prompts.Params, "qualities", ["expert", "../x"]),
        *((LearningParams, name, 10**12) for name in ("seed", "steps", "lanes", "batch", "epochs", "width", "layers")),
        *((LearningParams, name, -1) for name in ("seed", "workers")),
    ],
)
def test_parameters_have_bounds(model: type, name: str, value: Any) -> None:
    needed = NEEDED.get(model, {})
    model(**needed)
    with pytest.raises(ValidationError, match=name):
        model(**needed | {name: value})
