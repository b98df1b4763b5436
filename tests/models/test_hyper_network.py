"""Adapters made from a demonstration: their names and shapes, what they depend on, and where they start."""

from pathlib import Path

import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.adapters import of_adapters, with_adapters
from pd_pipeline.models.decision_transformer import Steps
from pd_pipeline.models.hyper_network import HyperNetwork, HyperNetworkConfig, load_hyper_network, save_hyper_network
from pd_pipeline.models.prompting import prompt_steps
from pd_pipeline.tuning.protocol import Pretrained, Target
from tests.tuning.tiny import ACTING, CHANNELS, PROMPT, few_shot_of, pretrained, same_weights


def network_of(plm: Pretrained, moved: bool = True) -> HyperNetwork:
    torch.manual_seed(0)
    config = HyperNetworkConfig(
        channels=CHANNELS,
        prompt_length=PROMPT,
        policy_width=plm.policy.config.width,
        adapters=2 * plm.policy.config.layers,
        width=12,
        place=3,
        bottleneck=2,
    )
    network = HyperNetwork(config).requires_grad_(False)
    if moved:
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.fixture
def deep() -> Pretrained:
    return pretrained(layers=2)


@pytest.fixture
def few_shot(deep: Pretrained) -> Target:
    return few_shot_of(deep)


def test_it_makes_every_adapter_of_the_policy_and_nothing_else(deep: Pretrained, few_shot: Target) -> None:
    made = network_of(deep)(*few_shot.tensors(deep))
    expected = of_adapters(with_adapters(deep.policy, 2))
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    places = [made[f"blocks.{i}.{part}.up.weight"] for i in (0, 1) for part in ("adapt_attention", "adapt_mlp")]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(places) for b in places[:i]), "each place its own"


def test_the_order_of_segments_does_not_matter_and_the_segments_do(deep: Pretrained, few_shot: Target) -> None:
    network = network_of(deep)
    x0, y = few_shot.tensors(deep)
    name = "blocks.1.adapt_mlp.up.weight"
    whole = network(x0, y)[name]
    torch.testing.assert_close(network(x0.flip(0), y.flip(0))[name], whole)
    torch.testing.assert_close(network(x0.repeat(2, 1, 1), y.repeat(2, 1, 1))[name], whole)
    for other in (network(x0 + 1, y), network(x0, y + 1)):
        assert (other[name] - whole).abs().max() > 1e-3


def test_before_training_its_adapters_do_nothing(deep: Pretrained, few_shot: Target) -> None:
    x0, y = few_shot.tensors(deep)
    policy = with_adapters(deep.policy, 2)
    policy.load_state_dict(network_of(deep, moved=False)(x0, y), strict=False)
    prompt = prompt_steps(x0[:4], y[:4], deep.normalization)
    window = Steps(*(part[:, :ACTING] for part in prompt))
    torch.testing.assert_close(policy(prompt, window), deep.policy(prompt, window))
    policy.load_state_dict(network_of(deep)(x0, y), strict=False)
    assert (policy(prompt, window) - deep.policy(prompt, window)).abs().max() > 1e-3


def test_it_is_loaded_as_it_was_saved(deep: Pretrained, tmp_path: Path) -> None:
    network = network_of(deep)
    save_hyper_network(tmp_path, network)
    found = load_hyper_network(tmp_path)
    same_weights(found, network)
    assert not any(parameter.requires_grad for parameter in found.parameters())
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"width": 12', '"width": 13'))
    with pytest.raises(PipelineError, match=r"hyper_network.safetensors: these weights do not fit the config.json"):
        load_hyper_network(tmp_path)
