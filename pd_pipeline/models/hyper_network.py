"""The hyper-network of Hyper-Decision Transformers (Xu et al., ICLR 2023, arXiv 2304.08487): demonstration -> adapters.

Each segment of a demonstration becomes a vector, and their mean z is what is known of the task. One head makes the
weights of every adapter of the policy from z and an embedding of the adapter's place:

    (W_down, b_down, W_up, b_up)_l = head(z, e_l)

The head's output layer starts at zero for W_up and b_up, so that the policy starts as the PLM. Where the published one
reads states and returns of one demonstration by a transformer, this one also reads actions, and segments of any number
of demonstrations in any order.
"""

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from pd_pipeline.config import Parameters
from pd_pipeline.models.decision_transformer import MAX_WIDTH
from pd_pipeline.models.weights import load_model, weights
from pd_pipeline.storage import read_model, save_arrays, write_json


class HyperNetworkShape(Parameters):
    """The settings that a user chooses."""

    width: int = Field(default=128, gt=0, le=16_384)
    place: int = Field(default=16, gt=0, le=1024, description="size of the embedding of an adapter's place")
    bottleneck: int = Field(default=8, gt=0, le=4096, description="r, the width of the adapters' bottleneck")


class HyperNetworkConfig(HyperNetworkShape):
    """Shape of the hyper-network; saved beside its weights."""

    channels: int = Field(gt=0, le=200_001, description="d_s + d_a + 1")
    prompt_length: int = Field(gt=0, le=1000, description="K*")
    policy_width: int = Field(gt=0, le=MAX_WIDTH)
    adapters: int = Field(gt=0, le=400, description="two per block of the policy")


class HyperNetwork(nn.Module):
    """Makes the adapters of a policy from segments of a task."""

    def __init__(self, config: HyperNetworkConfig):
        super().__init__()
        self.config = config
        flat = config.prompt_length * (config.channels + 2)
        self.encoder = nn.Sequential(
            nn.Linear(flat, config.width), nn.Mish(), nn.Linear(config.width, config.width), nn.Mish()
        )
        self.place = nn.Embedding(config.adapters, config.place)
        self.head = nn.Sequential(nn.Linear(config.width + config.place, config.width), nn.Mish())
        down, up = config.bottleneck * (config.policy_width + 1), config.policy_width * (config.bottleneck + 1)
        self.down = nn.Linear(config.width, down)
        self.up = nn.Linear(config.width, up)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x0: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Segments x0 (n, K*, channels), y (n, K*, 2) of one task -> weights of adapters, by name in the policy."""
        config = self.config
        z = self.encoder(torch.cat((x0, y), dim=2).flatten(1)).mean(0)  # (width,)
        hidden = self.head(torch.cat((z.expand(config.adapters, -1), self.place.weight), dim=1))  # (adapters, width)
        down = self.down(hidden).view(config.adapters, config.bottleneck, config.policy_width + 1)
        up = self.up(hidden).view(config.adapters, config.policy_width, config.bottleneck + 1)
        made = {}
        for place in range(config.adapters):
            name = f"blocks.{place // 2}.{('adapt_attention', 'adapt_mlp')[place % 2]}"
            for part, values in (("down", down[place]), ("up", up[place])):  # the last column is the bias
                made[f"{name}.{part}.weight"], made[f"{name}.{part}.bias"] = values[:, :-1], values[:, -1]
        return made


def save_hyper_network(directory: Path, network: HyperNetwork) -> None:
    """Write `hyper_network.safetensors` and `config.json`."""
    save_arrays(directory / "hyper_network.safetensors", weights(network))
    write_json(directory / "config.json", network.config.model_dump(mode="json"))


def load_hyper_network(directory: Path, device: torch.device | str = "cpu") -> HyperNetwork:
    """The frozen hyper-network from a directory that `save_hyper_network` wrote."""
    config = read_model(directory / "config.json", HyperNetworkConfig)
    path = directory / "hyper_network.safetensors"
    network = load_model(lambda: HyperNetwork(config), path, "the config.json beside them")
    return network.to(device).eval().requires_grad_(False)
