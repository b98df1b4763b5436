"""Prefix tuning (Li and Liang, ACL 2021, arXiv 2101.00190): free keys and values for every block.

A prompt reaches the window only as keys and values. Here these are tuned themselves, block by block, so that a prefix
can say what no embedding says: layers * 2 * tokens * width numbers. They start as those of a few-shot segment, as the
authors advise; their re-parametrisation by a network, which they drop after training, is left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from pd_pipeline.acting.actors import Actors, Origin
from pd_pipeline.models.prefixes import KeysValues, read_tokens, stored
from pd_pipeline.models.weights import as_tensors
from pd_pipeline.storage import expect_arrays, load_arrays, save_arrays
from pd_pipeline.tuning.adaptation import Adaptation
from pd_pipeline.tuning.learned_prefix import LearnedPrefix, LearnedPrefixParams, descend, starting_tokens
from pd_pipeline.tuning.protocol import Pretrained, Run, Target

FILE = "prefix.safetensors"


class Params(LearnedPrefixParams):
    """`tokens` keys and values are tuned in every block."""


class Prefixes(LearnedPrefix):
    """Keys and values as the only weights."""

    def __init__(self, before: KeysValues):
        super().__init__()
        # (n, tokens, width) each: keys and values of the first block, of the second, ...
        self.flat = nn.ParameterList(nn.Parameter(part.clone()) for pair in before for part in pair)

    def before(self) -> KeysValues:
        """The weights, block by block."""
        flat = list(self.flat)
        return list(zip(flat[::2], flat[1::2], strict=True))


@dataclass(frozen=True, kw_only=True)
class Prefix(Adaptation):
    """The unchanged PLM with keys and values in front of each actor's window."""

    flat: tuple[Tensor, ...]  # keys, values, keys, values, ... of the blocks, each (n, tokens, width)

    def actors(self, plm: Pretrained) -> Actors:
        """One actor per row."""
        return Actors(plm.policy, stored, self.flat, (Origin("learned", 0),) * len(self.flat[0]))

    def save(self, directory: Path) -> None:
        """Write `prefix.safetensors`."""
        save_arrays(directory / FILE, {f"{i}": part.cpu().numpy() for i, part in enumerate(self.flat)})

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """Load what `save` wrote. Raises PipelineError if it is missing or invalid."""
        arrays, _ = load_arrays(directory / FILE)
        names = [f"{i}" for i in range(2 * len(plm.policy.blocks))]
        expect_arrays(directory / FILE, arrays, dict.fromkeys(names, (None, None, plm.policy.config.width)))
        tensors = as_tensors(arrays, plm.device)
        return cls(flat=tuple(tensors[name] for name in names))


load = Prefix.load


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prefix:
    """Tune the keys and values."""
    with torch.no_grad():
        learned = Prefixes(read_tokens(plm.policy, starting_tokens(plm, target, params, run)))
    history, cost = descend(learned, plm, target, params, run)
    return Prefix(flat=tuple(part.detach() for part in learned.flat), history=history, cost=cost)
