"""AdamW (Loshchilov and Hutter 2019) by PyTorch's function.

PyTorch's class computes the same and imports the compiler first, which takes more than a second of every piece of work
that trains.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

BETAS, EPSILON = (0.9, 0.999), 1e-8


class AdamW:
    """The moments of named parameters, and their update."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], weight_decay: float):
        self.parameters, self.weight_decay = dict(parameters), weight_decay
        self.first = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.second = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self._steps = {name: torch.zeros((), device=parameter.device) for name, parameter in parameters.items()}
        # fused: one kernel for all parameters
        self._fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values())

    def restore(self, steps: int, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
        """Set the moments to those after so many steps."""
        for name in self.parameters:
            self.first[name], self.second[name] = first[name], second[name]
            self._steps[name].fill_(steps)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the parameters that have a gradient."""
        given = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        adamw(
            [self.parameters[name] for name in given],
            [*given.values()],
            [self.first[name] for name in given],
            [self.second[name] for name in given],
            [],
            [self._steps[name] for name in given],
            fused=self._fused,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=EPSILON,
            maximize=False,
        )
