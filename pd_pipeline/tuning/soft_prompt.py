"""Soft prompts (Lester et al., EMNLP 2021, arXiv 2104.08691): free embeddings in front of the window.

They are read by every block like the embedded steps of a prompt, but need not be the embedding of any. The PLM is
frozen, and the embeddings follow the gradient of its action loss on the few-shot trajectories.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor, nn

from pd_pipeline.acting.actors import Actors, Origin
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer
from pd_pipeline.models.prefixes import KeysValues, read_tokens
from pd_pipeline.models.weights import as_tensors
from pd_pipeline.storage import expect_arrays, load_arrays, save_arrays
from pd_pipeline.tuning.adaptation import Adaptation
from pd_pipeline.tuning.learned_prefix import LearnedPrefix, LearnedPrefixParams, descend, starting_tokens
from pd_pipeline.tuning.protocol import Pretrained, Run, Target

FILE = "tokens.safetensors"


class Params(LearnedPrefixParams):
    """`tokens` embeddings are tuned: `tokens` * width numbers."""


class Tokens(LearnedPrefix):
    """Embeddings as the only weights."""

    def __init__(self, policy: PromptingDecisionTransformer, tokens: Tensor):
        super().__init__()
        self.tokens = nn.Parameter(tokens.clone())  # (n, tokens, width)
        self._read = lambda: read_tokens(policy, self.tokens)  # the policy is no part of this module

    def before(self) -> KeysValues:
        """As the blocks read the embeddings."""
        return self._read()


@dataclass(frozen=True, kw_only=True)
class SoftPrompt(Adaptation):
    """The unchanged PLM with embeddings in front of each actor's window."""

    tokens: Tensor  # (n, tokens, width)

    def actors(self, plm: Pretrained) -> Actors:
        """One actor per row."""
        return Actors(plm.policy, read_tokens, (self.tokens,), (Origin("learned", 0),) * len(self.tokens))

    def save(self, directory: Path) -> None:
        """Write `tokens.safetensors`."""
        save_arrays(directory / FILE, {"tokens": self.tokens.cpu().numpy()})

    @classmethod
    def load(cls, directory: Path, plm: Pretrained) -> Self:
        """Load what `save` wrote. Raises PipelineError if it is missing or invalid."""
        arrays, _ = load_arrays(directory / FILE)
        expect_arrays(directory / FILE, arrays, {"tokens": (None, None, plm.policy.config.width)})
        return cls(tokens=as_tensors(arrays, plm.device)["tokens"])


load = SoftPrompt.load


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> SoftPrompt:
    """Tune the embeddings."""
    learned = Tokens(plm.policy, starting_tokens(plm, target, params, run))
    history, cost = descend(learned, plm, target, params, run)
    return SoftPrompt(tokens=learned.tokens.detach(), history=history, cost=cost)
