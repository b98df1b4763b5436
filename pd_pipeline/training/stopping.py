"""Early stopping: keep the weights as they were when a loss on data that training does not see was lowest.

Training still runs to its last step, since its schedule is made for that; what it finds after the best step is dropped.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Watch(NamedTuple):
    """A loss on data that training does not see, and when to look at it."""

    loss: Callable[[], float]
    every: int
    """Steps between two looks; the first is before the first step, and one is after the last."""
    passes: int = 0
    """PLM passes of a look."""

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to look after `step` of `steps`."""
        return step % self.every == 0 or step == steps


def passes_of(watch: Watch | None, steps: int) -> int:
    """PLM passes of all looks at a training of `steps`; 0 without early stopping."""
    return 0 if watch is None else watch.passes * (1 + -(-steps // watch.every))


@dataclass
class Best:
    """The lowest loss of all looks so far, and the tensors of that step."""

    loss: float = math.inf
    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, loss: float, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep copies of `tensors` if they are the first or `loss` is lower than any before; NaN never is."""
        if loss < self.loss or not self.tensors:
            self.loss, self.step = (math.inf if math.isnan(loss) else loss), step
            self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
