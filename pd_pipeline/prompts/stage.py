"""Stage prompts: the prompt matrix of the training tasks, and the normalisation of the family."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.config import MAX_HORIZON, Name, Parameters
from pd_pipeline.models.conditions import Conditions, conditioned
from pd_pipeline.prompts.segments import Normalization, Prompts, cut
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import read_model, write_json
from pd_pipeline.trajectories.reading import read

HELD_OUT = "-held_out"


class Params(Parameters):
    """Which segments become prompts."""

    length: int = Field(default=5, gt=0, le=1000, description="K*, steps per prompt")
    stride: int = Field(default=4, gt=0, le=MAX_HORIZON, description="steps between the starts of two prompts")
    qualities: tuple[Name, ...] = Field(default=("expert",), min_length=1, max_length=100)
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of each task's episodes not trained on")


def run(context: StageContext) -> dict[str, Any]:
    """Write `<quality>.safetensors`, `<quality>-held_out.safetensors` and `normalization.safetensors`."""
    params, rows, data = context.params, 0, []
    for quality in params.qualities:
        trajectories = read(
            context.inputs["trajectories"] / f"{quality}.parquet", context.family.train_tasks, context.family
        )
        data.append(trajectories)
        held_out = held_out_episodes(trajectories.task_id, params.held_out)
        for name, episodes in ((quality, ~held_out), (quality + HELD_OUT, held_out)):
            prompts = cut(trajectories.select(np.flatnonzero(episodes)), params.length, params.stride)
            prompts.save(context.out / f"{name}.safetensors")
            rows += len(prompts)
        context.progress(f"prompts {context.key}", len(data), len(params.qualities))
    normalization = Normalization.of(data)
    normalization.save(context.out / "normalization.safetensors")
    write_json(context.out / "config.json", params.model_dump(mode="json"))
    return {"row_count": rows, "return_scale": normalization.return_scale}


def load_tensors(
    directory: Path,
    qualities: tuple[str, ...],
    part: str,
    normalization: Normalization,
    conditions: Conditions,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The prompts of several qualities, normalised: x0 (n, K*, channels), y (n, K*, 2 + C) with these conditions.

    `part`: "" for those to learn from, `HELD_OUT` for the others.
    """
    return tensors_of(load_prompts(directory, qualities, part, normalization), normalization, conditions, device)


def tensors_of(
    loaded: Sequence[Prompts], normalization: Normalization, conditions: Conditions, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """What `load_tensors` gives, of prompts that are loaded."""
    x0, y = zip(*(conditioned(prompts, conditions, normalization, device) for prompts in loaded), strict=True)
    return torch.cat(x0), torch.cat(y)


def load_prompts(directory: Path, qualities: tuple[str, ...], part: str, normalization: Normalization) -> list[Prompts]:
    """The prompts of several qualities, in task units; `part` as in `load_tensors`."""
    length = read_model(directory / "config.json", Params).length
    return [Prompts.load(directory / f"{quality}{part}.safetensors", normalization, length) for quality in qualities]


def held_out_episodes(task_id: np.ndarray, share: float) -> np.ndarray:
    """Mask (m,) of the last `share` of each task's episodes, at least one and never all."""
    held_out = np.zeros(len(task_id), bool)
    for task in np.unique(task_id):
        episodes = np.flatnonzero(task_id == task)
        count = min(max(1, round(share * len(episodes))), len(episodes) - 1)
        held_out[episodes[len(episodes) - count :]] = True
    return held_out
