"""The pre-trained diffuser as a directory: saving and loading."""

from pathlib import Path

import torch

from pd_pipeline.config import Name, Parameters
from pd_pipeline.models.diffuser import Denoiser, DenoiserConfig
from pd_pipeline.models.diffusion import Diffusion, DiffusionParams
from pd_pipeline.models.weights import load_model, weights
from pd_pipeline.storage import read_model, save_arrays, write_json


class SavedConfig(Parameters):
    """config.json, beside the weights."""

    denoiser: DenoiserConfig
    diffusion: DiffusionParams
    qualities: tuple[Name, ...]


def save_diffuser(directory: Path, denoiser: Denoiser, diffusion: DiffusionParams, qualities: tuple[str, ...]) -> None:
    """Write `denoiser.safetensors` and `config.json`."""
    save_arrays(directory / "denoiser.safetensors", weights(denoiser))
    saved = SavedConfig(denoiser=denoiser.config, diffusion=diffusion, qualities=qualities)
    write_json(directory / "config.json", saved.model_dump(mode="json"))


def load_diffuser(directory: Path, device: torch.device | str = "cpu") -> tuple[Denoiser, Diffusion]:
    """The denoiser and its process, from a directory that `save_diffuser` wrote."""
    config = read_model(directory / "config.json", SavedConfig)
    path = directory / "denoiser.safetensors"
    denoiser = load_model(lambda: Denoiser(config.denoiser), path, "the config.json beside them")
    return denoiser.to(device), Diffusion(config.diffusion, device)
