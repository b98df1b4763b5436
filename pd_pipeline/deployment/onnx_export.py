"""A policy as one ONNX file and a JSON file, which act without PyTorch and without this package.

    policy.onnx         actions of the last step of a window, both normalised; the prefix is part of it, as constants
    policy.onnx.json    normalisation, bounds, window length, target return, and the inputs and outputs (`Exported`)

`docs/examples/act_with_onnx.py` acts with them.
"""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pd_pipeline.acting.actors import Started
from pd_pipeline.config import Name, Parameters, Seed
from pd_pipeline.deployment.folder import SAMPLE, locate, refuse_other_contents
from pd_pipeline.deployment.policy import Loaded, Policy, read_policy, repeated
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import Steps
from pd_pipeline.storage import atomic_directory, expect_arrays, load_arrays, write_json

MODEL, ABOUT = "policy.onnx", "policy.onnx.json"
INPUTS = ("returns_to_go", "observations", "actions", "timesteps")
OUTPUT = "action"
OPSET = 20
TOLERANCE = 1e-5
"""Largest difference that is accepted, in [-1, 1], the range of a normalised action."""


class Port(Parameters):
    """An input or output of the model."""

    name: str
    type: str
    shape: tuple[int | str, ...] = Field(description="a name where the length is free: batch, or steps up to window")


class Exported(Parameters):
    """`policy.onnx.json`, beside the model."""

    family: Name
    task: int
    seed: Seed
    method: Name
    target_return: float
    return_scale: float = Field(description="returns-to-go are divided by it")
    horizon: int
    window: int = Field(description="steps of the current episode that the policy sees, at most")
    observation_mean: tuple[float, ...]
    observation_std: tuple[float, ...]
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    checked_windows: int = Field(description="real windows on which the actions were compared with PyTorch's")
    largest_difference: float = Field(description="of a normalised action, on these windows")
    tolerance: float = TOLERANCE


def export_onnx(path_or_target: str | Path, out: Path | None = None) -> tuple[Path, Exported]:
    """Export a policy folder or target to the folder `out`, by default `<family>-<task>-onnx`.

    The actions of onnxruntime are compared with those of PyTorch on the windows of a few-shot trajectory, and nothing
    is written if they differ by more than `TOLERANCE`. Returns the folder and its description. Raises PipelineError.
    """
    _check_installed()
    folder = locate(path_or_target)
    loaded = read_policy(folder)
    about = loaded.description
    out = Path(f"{about.family}-{about.task}-onnx") if out is None else out
    refuse_other_contents(out, MODEL, ABOUT)
    # ONNX runtimes compute in float32
    loaded = replace(
        loaded,
        description=about.model_copy(update={"precision": "float32"}),
        prefix=[(keys.float(), values.float()) for keys, values in loaded.prefix],
    )
    with atomic_directory(out) as made:
        _write_model(loaded, made / MODEL)
        compared = _Compared(loaded, made / MODEL)
        compared.replay(folder / SAMPLE)
        if not compared.largest_difference <= TOLERANCE:
            raise PipelineError(
                f"{folder}: actions of onnxruntime differ from those of PyTorch by {compared.largest_difference:.1e}, "
                f"more than {TOLERANCE:g}: nothing is exported"
            )
        described = _described(loaded, compared.windows, compared.largest_difference)
        write_json(made / ABOUT, described.model_dump(mode="json"))
    return out, described


def _check_installed() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise PipelineError(f"ONNX needs the package {package}: pip install 'pd-pipeline[onnx]'") from None


class _Network(nn.Module):
    """The forward pass of an actor whose prefix is constant."""

    def __init__(self, loaded: Loaded):
        super().__init__()
        self.plm = loaded.plm
        self.keys = nn.ParameterList(nn.Parameter(keys.clone(), requires_grad=False) for keys, _ in loaded.prefix)
        self.values = nn.ParameterList(nn.Parameter(values.clone(), requires_grad=False) for _, values in loaded.prefix)

    def forward(self, returns_to_go: Tensor, observations: Tensor, actions: Tensor, timesteps: Tensor) -> Tensor:
        """Windows (n, L) as in `Steps` -> actions (n, d_a) in [-1, 1]."""
        prefix = repeated(list(zip(self.keys, self.values, strict=True)), timesteps.shape[0])
        return Started(self.plm, prefix, fill=False).act(Steps(returns_to_go, observations, actions, timesteps))


def _write_model(loaded: Loaded, path: Path) -> None:
    """Write the ONNX file, with free numbers of windows and of steps in them."""
    window = loaded.plm.config.acting_window
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps", max=window)
    shape = {0: batch, 1: steps} if window > 1 else {0: batch}
    example = Steps(
        torch.zeros(2, window),
        torch.zeros(2, window, loaded.description.observation_size),
        torch.zeros(2, window, loaded.description.action_size),
        torch.arange(window).repeat(2, 1),
    )
    with _quiet():
        program = torch.export.export(
            _Network(loaded).eval().requires_grad_(False), tuple(example), dynamic_shapes=(shape,) * len(example)
        )
        model = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=(OUTPUT,),
            dynamic_shapes=(shape,) * len(example),  # for the names of the axes
            verbose=False,
        )
    assert model is not None
    written = model.model_proto
    for part in (written.graph, *written.graph.node, *written.graph.value_info, *written.graph.input):
        part.ClearField("metadata_props")  # paths and lines of this program
    path.write_bytes(written.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own progress and on packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


class _Compared(Policy):
    """A policy that computes every action a second time with onnxruntime."""

    def __init__(self, loaded: Loaded, model: Path):
        super().__init__(loaded)
        import onnxruntime

        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.windows = 0
        self.largest_difference = 0.0

    def replay(self, sample: Path) -> None:
        """Act on the observations and rewards of a trajectory."""
        arrays, _ = load_arrays(sample)
        expect_arrays(sample, arrays, {"observations": (None, self.description.observation_size), "rewards": (None,)})
        self.reset()
        reward = None
        for observation, following in zip(arrays["observations"], arrays["rewards"], strict=True):
            self.act(observation, reward)
            reward = following

    def _forward(self, window: Steps) -> Tensor:
        expected = super()._forward(window)
        given: dict[str, Any] = {name: part.numpy() for name, part in zip(INPUTS, window, strict=True)}
        (found,) = self._session.run([OUTPUT], given)
        difference = np.abs(found - expected.numpy()).max()
        self.largest_difference = float(np.maximum(self.largest_difference, difference))  # keeps NaN
        self.windows += 1
        return expected


def _described(loaded: Loaded, windows: int, difference: float) -> Exported:
    about, scaled, window = loaded.description, loaded.normalization, loaded.plm.config.acting_window
    of_observation = slice(0, scaled.observation_size)
    of_action = slice(scaled.observation_size, scaled.observation_size + scaled.action_size)
    batch_steps: tuple[int | str, ...] = ("batch", "steps" if window > 1 else 1)
    shapes = (batch_steps, (*batch_steps, scaled.observation_size), (*batch_steps, scaled.action_size), batch_steps)
    types = ("float32", "float32", "float32", "int64")
    return Exported(
        **about.model_dump(include={"family", "task", "seed", "method", "target_return", "horizon"}),
        **about.model_dump(include={"action_low", "action_high"}),
        return_scale=scaled.return_scale,
        window=window,
        observation_mean=scaled.mean[of_observation].tolist(),
        observation_std=scaled.std[of_observation].tolist(),
        action_mean=scaled.mean[of_action].tolist(),
        action_std=scaled.std[of_action].tolist(),
        inputs=tuple(Port(name=n, type=t, shape=s) for n, t, s in zip(INPUTS, types, shapes, strict=True)),
        outputs=(Port(name=OUTPUT, type="float32", shape=("batch", scaled.action_size)),),
        checked_windows=windows,
        largest_difference=difference,
    )
