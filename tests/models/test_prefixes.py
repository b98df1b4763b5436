"""What stands in front of the window: equal to the policy's own forward pass, and differentiable."""

import pytest
import torch

from pd_pipeline.models.prefixes import predict, read_prompt, read_tokens, stored
from tests.builders import policy as made_policy
from tests.builders import steps


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("length", [1, 4])
def test_a_prompt_as_prefix_predicts_what_the_forward_pass_does(heads: int, length: int) -> None:
    policy = made_policy(heads=heads, layers=2)
    prompt, window = steps(3, policy.config.prompt_length, seed=1), steps(3, length, seed=2)
    expected = policy(prompt, window)
    torch.testing.assert_close(predict(policy, read_prompt(policy, *prompt), window), expected, atol=1e-5, rtol=1e-4)
    flat = [part for pair in read_prompt(policy, *prompt) for part in pair]
    torch.testing.assert_close(predict(policy, stored(policy, *flat), window), expected, atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_tokens() -> None:
    policy = made_policy(layers=2)
    tokens = torch.randn(2, 5, policy.config.width, requires_grad=True)
    predict(policy, read_tokens(policy, tokens), steps(2, 3)).square().sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().sum(2) > 0).all(), "every token is read"
