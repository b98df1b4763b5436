"""A policy with room for adapters: bottlenecks after attention and MLP of every block."""

import torch
from torch import Tensor

from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer


def with_adapters(policy: PromptingDecisionTransformer, bottleneck: int) -> PromptingDecisionTransformer:
    """A frozen copy in evaluation mode with adapters in every block, whose weights are yet to come."""
    with torch.random.fork_rng([]):  # the weights that are drawn here are replaced
        made = PromptingDecisionTransformer(policy.config.model_copy(update={"bottleneck": bottleneck}))
    made.load_state_dict(policy.state_dict(), strict=False)
    return made.to(next(policy.parameters()).device).eval().requires_grad_(False)


def of_adapters(policy: PromptingDecisionTransformer) -> dict[str, Tensor]:
    """The weights of a policy's adapters, by their names in it."""
    return {name: tensor.detach() for name, tensor in policy.state_dict().items() if ".adapt_" in name}
