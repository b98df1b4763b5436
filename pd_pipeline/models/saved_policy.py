"""The pre-trained PLM as a directory: saving and loading."""

from pathlib import Path

import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.decision_transformer import PolicyConfig, PromptingDecisionTransformer
from pd_pipeline.models.weights import load_model, weights
from pd_pipeline.prompts.segments import Normalization
from pd_pipeline.storage import read_model, save_arrays, write_json


def save_policy(directory: Path, policy: PromptingDecisionTransformer, normalization: Normalization) -> None:
    """Write `policy.safetensors`, `config.json` and `normalization.safetensors`."""
    save_arrays(directory / "policy.safetensors", weights(policy))
    write_json(directory / "config.json", policy.config.model_dump(mode="json"))
    normalization.save(directory / "normalization.safetensors")


def load_policy(
    directory: Path, device: torch.device | str = "cpu"
) -> tuple[PromptingDecisionTransformer, Normalization]:
    """The frozen PLM from a directory that `save_policy` wrote, in evaluation mode, and its normalisation."""
    config = read_model(directory / "config.json", PolicyConfig)
    normalization = Normalization.load(directory / "normalization.safetensors")
    of_config = config.observation_size, config.action_size, config.max_timestep
    if (of_data := (normalization.observation_size, normalization.action_size, normalization.horizon)) != of_config:
        raise PipelineError(
            f"{directory / 'config.json'}: observation size, action size and horizon are {of_config}, but {of_data} in "
            "normalization.safetensors beside it: run stage plm again"
        )
    path = directory / "policy.safetensors"
    policy = load_model(lambda: PromptingDecisionTransformer(config), path, "the config.json beside them")
    policy.to(device).eval().requires_grad_(False)
    return policy, normalization
