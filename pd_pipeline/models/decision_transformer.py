"""The PLM: a Prompting Decision Transformer (Xu et al., ICML 2022), after GPT-2 and Chen et al. 2021.

One sequence is the prompt followed by the recent window, each step as three tokens (return-to-go, state, action):

    [ R*_1 s*_1 a*_1 ... R*_K* s*_K* a*_K* | R_1 s_1 a_1 ... R_K s_K a_K ]

and the action of step k is predicted at the state token s_k. Sequences are right-padded, so that the causal mask alone
keeps valid tokens from attending to padding; prompts are always full. The outputs equal those of GPT-2's blocks, with
less work: the last block is computed only for the tokens that are read.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pd_pipeline.config import MAX_HORIZON, Parameters

# Generous upper bounds, for params.yaml and for a config.json that is loaded.
MAX_WIDTH = 16_384
MAX_LAYERS = 200
MAX_PROMPT_LENGTH = 1000  # steps


class PolicyShape(Parameters):
    """The settings of the policy transformer that a user chooses."""

    context: int = Field(default=20, gt=0, le=10_000, description="K, steps per window")
    acting_context: int | None = Field(
        default=None, gt=0, description="steps per window when acting and tuning, at most K; None: K"
    )
    width: int = Field(default=128, gt=0, le=MAX_WIDTH)
    layers: int = Field(default=3, gt=0, le=MAX_LAYERS)
    heads: int = Field(default=1, gt=0, le=256)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.acting_window > self.context:
            raise ValueError(f"acting_context {self.acting_context} exceeds context {self.context}")
        return self

    @property
    def acting_window(self) -> int:
        """Steps per window when acting, and in the action loss that tunes prompts.

        With a long history a policy tends to continue its own earlier actions instead of correcting them; with a short
        one it must rely on the prompt and the state. Training covers every window length up to K.
        """
        return self.acting_context or self.context


class PolicyConfig(PolicyShape):
    """Shape of the policy transformer; saved beside its weights."""

    observation_size: int = Field(gt=0, le=100_000)
    action_size: int = Field(gt=0, le=100_000)
    max_timestep: int = Field(
        gt=0, le=MAX_HORIZON, description="the horizon: timesteps 0 .. max_timestep - 1 are embedded"
    )
    prompt_length: int = Field(default=5, gt=0, le=MAX_PROMPT_LENGTH, description="K*, steps per prompt")
    bottleneck: int | None = Field(
        default=None, gt=0, le=MAX_WIDTH, description="width of the adapters in every block; None: there are none"
    )


class Steps(NamedTuple):
    """Consecutive steps, normalised: a prompt (L = K*) or a window (L <= K)."""

    returns_to_go: Tensor  # (B, L) float, divided by the return scale
    observations: Tensor  # (B, L, d_s) float, standardised
    actions: Tensor  # (B, L, d_a) float, scaled to [-1, 1]
    timesteps: Tensor  # (B, L) long


class StepEmbedding(nn.Module):
    """Three tokens per step, each plus the embedding of its timestep."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.return_to_go = nn.Linear(1, config.width)
        self.observation = nn.Linear(config.observation_size, config.width)
        self.action = nn.Linear(config.action_size, config.width)
        self.timestep = nn.Embedding(config.max_timestep, config.width)

    def forward(self, steps: Steps) -> Tensor:
        """Steps of (B, L) -> tokens (B, 3L, width) in the order R, s, a."""
        tokens = torch.stack(
            (
                self.return_to_go(steps.returns_to_go.unsqueeze(-1)),
                self.observation(steps.observations),
                self.action(steps.actions),
            ),
            dim=2,
        )  # (B, L, 3, width)
        tokens = tokens + self.timestep(steps.timesteps).unsqueeze(2).to(tokens.dtype)
        return tokens.flatten(1, 2)  # (B, 3L, width)


class Dropout(nn.Module):
    """Dropout for all layers of a model, with masks from one random pool that is drawn once per forward pass.

    PyTorch draws a float for every element of every layer from the global generator, which on a CPU costs as much as
    the layers themselves. Here a forward pass draws one pool, eight bits per element, and each layer reads it from a
    random offset. The rate is rounded to 1/256, and below 1; the scale is that of the rounded rate, rounded to the type
    of `like`.
    """

    spread = 1 << 16  # number of possible offsets

    def __init__(self, rate: float):
        super().__init__()
        self.threshold = min(255, round(rate * 256))
        self.parts: list[Tensor] = []

    def refresh(self, like: Tensor, elements: int, uses: int, generator: torch.Generator | None) -> None:
        """Draw a pool for `uses` layers of at most `elements` elements, of the type and device of `like`.

        Without a generator, the device's default one is used. Outside training, or at a rate of 0, nothing is drawn.
        """
        if not self.training or self.threshold == 0:
            return
        words = torch.empty((elements + self.spread) // 8 + 1, dtype=torch.int64, device=like.device)
        # all 64 bits random: from the smallest integer up, without an upper bound
        words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
        pool = (words.view(torch.uint8) >= self.threshold).to(like.dtype).mul_(256 / (256 - self.threshold))
        offsets = torch.randint(0, self.spread, (uses,), generator=generator, device=like.device).tolist()
        # cut out here: compiled code would be compiled again for every value of an offset
        self.parts = [pool[offset : offset + elements] for offset in offsets]

    def forward(self, x: Tensor) -> Tensor:
        """Zero about `rate` of x and scale the rest, in training; the identity otherwise."""
        if not self.training or self.threshold == 0:
            return x
        return x * self._keep(x)

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """x + dropout(branch), in one pass over memory."""
        if not self.training or self.threshold == 0:
            return x + branch
        return torch.addcmul(x, branch, self._keep(branch))

    def _keep(self, x: Tensor) -> Tensor:
        return self.parts.pop()[: x.numel()].view(x.shape)


class Adapter(nn.Module):
    """x + up(relu(down(x))), a bottleneck after a sublayer (Houlsby et al., ICML 2019)."""

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        adapted: Tensor = x + self.up(F.relu(self.down(x)))
        return adapted


class Block(nn.Module):
    """Pre-norm attention and MLP (GPT-2), with ReLU as in Decision Transformer; with adapters where asked for."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.adapt_attention, self.adapt_mlp = (
            nn.Identity() if config.bottleneck is None else Adapter(width, config.bottleneck) for _ in range(2)
        )

    def forward(self, x: Tensor, mask: Tensor, drop: Dropout, read: Tensor | None = None) -> Tensor:
        """Tokens (B, T, width) -> (B, R, width) at the token indices `read` (R,), or at all of them.

        `mask` (R, T) is added to the attention scores: 0 where a token may attend, -inf where not.
        """
        normed = self.norm_attention(x)
        keys, values = self.key_value(normed).chunk(2, dim=-1)
        if read is not None:
            x, normed = x[:, read], normed[:, read]
        return self.attend(x, normed, keys, values, mask, drop)

    def attend(self, x: Tensor, normed: Tensor, keys: Tensor, values: Tensor, mask: Tensor, drop: Dropout) -> Tensor:
        """Pass the residual stream x (B, R, width) through attention to keys and values (B, T, width) and the MLP.

        The scores are computed explicitly: at 75 tokens they are small, and fused attention took three times as long
        on a CPU.
        """
        queries = self._split(self.query(normed))  # (B h, R, width / h)
        scale = queries.shape[-1] ** -0.5
        scores = torch.baddbmm(mask, queries, self._split(keys).transpose(1, 2), alpha=scale)  # (B h, R, T)
        mixed = torch.bmm(drop(scores.softmax(dim=-1)), self._split(values))  # (B h, R, width / h)
        x = drop.add(x, self.adapt_attention(self.project(self._merge(mixed))))
        return drop.add(x, self.adapt_mlp(self.down(F.relu(self.up(self.norm_mlp(x)), inplace=True))))

    def _split(self, x: Tensor) -> Tensor:
        if self.heads == 1:
            return x
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, -1).transpose(1, 2).reshape(-1, tokens, width // self.heads)

    def _merge(self, x: Tensor) -> Tensor:
        if self.heads == 1:
            return x
        _, tokens, size = x.shape
        return x.view(-1, self.heads, tokens, size).transpose(1, 2).reshape(-1, tokens, self.heads * size)


class PromptingDecisionTransformer(nn.Module):
    """Predicts the actions of a window given a prompt."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.config = config
        self.embed_prompt = StepEmbedding(config)
        self.embed_window = StepEmbedding(config)
        self.norm_embedding = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self.blocks: Sequence[Block] = nn.ModuleList(Block(config) for _ in range(config.layers))  # type: ignore[assignment]
        self.norm_final = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.action_size)
        self.apply(_initialise)

    def forward(self, prompt: Steps, window: Steps, generator: torch.Generator | None = None) -> Tensor:
        """Prompt of K* and window of L steps -> predicted actions (B, L, d_a) in [-1, 1].

        `generator` draws the dropout in training; seed it by the step, so that training resumed after a kill ends with
        the same weights.
        """
        x = torch.cat((self.embed_prompt(prompt), self.embed_window(window)), dim=1)  # (B, T, width)
        x = to_autocast_dtype(x[:, :-1])  # no state token attends to the last action
        tokens = 3 * (self.config.prompt_length + self.config.context)
        widest = max(self.config.width, tokens * self.config.heads)
        self.dropout.refresh(x, len(x) * tokens * widest, 1 + 3 * self.config.layers, generator)
        x = self.dropout(self.norm_embedding(x))
        total = x.shape[1]
        read = torch.arange(3 * prompt.timesteps.shape[1] + 1, total, 3, device=x.device)  # the window's states (L,)
        mask = causal_mask(total, x)
        for block in self.blocks[:-1]:
            x = block(x, mask, self.dropout)
        return self.act(self.blocks[-1](x, mask[read], self.dropout, read))

    def compile(self, *arguments: Any, **options: Any) -> None:
        """As `nn.Module.compile`; dropout draws its pool outside the compiled code."""
        # here and not as a decorator, which imports PyTorch's compiler: a second, wherever a policy is loaded
        self.dropout.refresh = torch.compiler.disable(self.dropout.refresh)  # type: ignore[method-assign]
        super().compile(*arguments, **options)

    def act(self, x: Tensor) -> Tensor:
        """Residual stream at state tokens (..., width) -> actions (..., d_a)."""
        return torch.tanh(self.head(self.norm_final(x)).float())


def to_autocast_dtype(x: Tensor) -> Tensor:
    """Cast the residual stream to autocast's type where that is on: half the memory traffic."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def causal_mask(tokens: int, like: Tensor) -> Tensor:
    """Mask (T, T) to add to scores: 0 on and below the diagonal, -inf above; dtype and device of `like`."""
    return torch.full((tokens, tokens), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def action_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the valid steps: predicted, target (B, L, d_a); valid (B, L) bool (eq. 7)."""
    weight = valid.unsqueeze(-1).to(predicted.dtype)
    return ((predicted - target) ** 2 * weight).sum() / (weight.sum() * predicted.shape[-1]).clamp(min=1)


def _initialise(module: nn.Module) -> None:
    """GPT-2's initialisation: N(0, 0.02) for weights, zero for biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
