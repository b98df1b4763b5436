"""The device and precision to compute with, and random generators."""

import numpy as np
import torch

from pd_pipeline.errors import PipelineError


def pick_device(wanted: str) -> torch.device:
    """The device to compute on; `auto`: cuda, else mps, else cpu. Raises PipelineError where it is not available."""
    kind, _, index = wanted.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise PipelineError(f"device: {wanted}, but there is no CUDA device: use auto or cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise PipelineError(f"device: {wanted}, but the last device is cuda:{torch.cuda.device_count() - 1}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise PipelineError("device: mps, but there is no MPS device: use auto or cpu")
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bf16: `precision` is bf16, or it is auto and the hardware supports bf16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # earlier cards emulate it, slowly
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def generator_of(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that is a pure function of (seed, step)."""
    state = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) >> 1
    return torch.Generator(device).manual_seed(state)
