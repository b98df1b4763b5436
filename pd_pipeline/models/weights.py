"""Saving and loading weights: a file that does not fit is refused before memory is allocated for the model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import load_arrays

M = TypeVar("M", bound=nn.Module)


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """The state of a model as arrays on the CPU, for `storage.save_arrays`."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}


def load_weights(model: nn.Module, path: Path, strict_to: str) -> None:
    """Load a safetensors file into a model. Raises PipelineError, which names `strict_to`, where they do not fit."""
    arrays, _ = load_arrays(path)
    check_fit(path, arrays, model.state_dict(), strict_to)
    model.load_state_dict(as_tensors(arrays))


def load_model(build: Callable[[], M], path: Path, strict_to: str) -> M:
    """The model that `build` makes, on the CPU, with the weights of a file. Raises PipelineError where they do not fit.

    It is first built without memory, so that a configuration of any size costs nothing unless the file matches it.
    """
    with torch.random.fork_rng([]), torch.device("meta"), _Uninitialised():
        shape = build()
    arrays, _ = load_arrays(path)
    check_fit(path, arrays, shape.state_dict(), strict_to)
    with torch.random.fork_rng([]):
        model = build()
    model.load_state_dict(as_tensors(arrays))
    return model


class _Uninitialised(TorchFunctionMode):
    """Leaves weights as they are allocated: to initialise those without memory, PyTorch would import its compiler."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else named["tensor"]
        return function(*args, **named)


def check_fit(path: Path, found: Mapping[str, np.ndarray], like: Mapping[str, Tensor], strict_to: str) -> None:
    """Raise PipelineError unless `found` has the names, shapes and types of `like`."""
    message = f"{path}: these weights do not fit {strict_to}"
    if set(found) != set(like):
        missing, extra = sorted(set(like) - set(found)), sorted(set(found) - set(like))
        raise PipelineError(f"{message}: {'missing' if missing else 'unexpected'}: {', '.join((missing or extra)[:5])}")
    for name, tensor in like.items():
        expected = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        if (actual := (found[name].shape, str(found[name].dtype))) != expected:
            raise PipelineError(f"{message}: '{name}' is {actual[1]} {actual[0]}, expected {expected[1]} {expected[0]}")


def as_tensors(arrays: Mapping[str, np.ndarray], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The arrays as tensors on a device."""
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
