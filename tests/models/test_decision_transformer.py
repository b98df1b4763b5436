"""The PLM against a plain forward of everything, its causality, and stored outputs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pd_pipeline.models.decision_transformer import (
    Dropout,
    PolicyConfig,
    PolicyShape,
    PromptingDecisionTransformer,
    Steps,
    action_loss,
)
from tests.builders import D_A, D_S, fill, policy, steps


def plain_forward(model: PromptingDecisionTransformer, prompt: Steps, window: Steps) -> Tensor:
    """The model by definition: all tokens through all blocks, one head after another."""

    def embed(embedding: torch.nn.Module, part: Steps) -> Tensor:
        tokens = []
        for k in range(part.timesteps.shape[1]):
            time = embedding.timestep(part.timesteps[:, k])
            tokens.append(embedding.return_to_go(part.returns_to_go[:, k : k + 1]) + time)
            tokens.append(embedding.observation(part.observations[:, k]) + time)
            tokens.append(embedding.action(part.actions[:, k]) + time)
        return torch.stack(tokens, dim=1)

    x = torch.cat((embed(model.embed_prompt, prompt), embed(model.embed_window, window)), dim=1)
    x = model.norm_embedding(x)
    total, width, heads = x.shape[1], model.config.width, model.config.heads
    for block in model.blocks:
        normed = block.norm_attention(x)
        queries = block.query(normed)
        keys, values = block.key_value(normed)[..., :width], block.key_value(normed)[..., width:]
        mixed = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            mixed.append(
                F.scaled_dot_product_attention(queries[..., part], keys[..., part], values[..., part], is_causal=True)
            )
        x = x + block.project(torch.cat(mixed, dim=-1))
        x = x + block.down(F.relu(block.up(block.norm_mlp(x))))
    states = range(3 * prompt.timesteps.shape[1] + 1, total, 3)
    return torch.tanh(model.head(model.norm_final(x[:, list(states)])))


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("layers", [1, 3])
def test_equals_the_plain_forward(heads: int, layers: int) -> None:
    model = policy(heads=heads, layers=layers)
    prompt, window = steps(5, 2, seed=1, first=3), steps(5, 4, seed=2, first=5)
    torch.testing.assert_close(model(prompt, window), plain_forward(model, prompt, window), atol=1e-5, rtol=1e-5)


def test_heads_change_what_is_computed() -> None:
    prompt, window = steps(2, 2), steps(2, 4, seed=1)
    one, two = policy(heads=1), policy(heads=2)
    two.load_state_dict(one.state_dict())
    assert (one(prompt, window) - two(prompt, window)).abs().max() > 1e-4


def test_golden() -> None:
    """Fails when the architecture changes: then say so in the CHANGELOG and store the new numbers."""
    model = policy(width=8, heads=2)
    fill(model)
    window = Steps(
        torch.tensor([[0.5, 0.4, 0.3]]),
        torch.linspace(-1, 1, 9).view(1, 3, 3),
        torch.linspace(1, -1, 6).view(1, 3, 2),
        torch.tensor([[4, 5, 6]]),
    )
    prompt = Steps(*(part[:, :2] * 0.5 if part.is_floating_point() else part[:, :2] for part in window))
    found = model(prompt, window)
    expected = torch.tensor(GOLDEN)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


GOLDEN = [[[0.650316, -0.40672], [-0.033948, -0.821001], [-0.544224, -0.898362]]]


@settings(max_examples=20)
@given(st.integers(0, 3), st.integers(0, 1000))
def test_later_steps_never_change_earlier_actions(step: int, seed: int) -> None:
    """Nor does the action of the same step, which is predicted."""
    model, prompt, window = policy(heads=2), steps(2, 2), steps(2, 4, seed=1)
    other = steps(2, 4, seed=seed + 2)
    after = torch.arange(4) > step
    spoiled = Steps(
        torch.where(after, other.returns_to_go, window.returns_to_go),
        torch.where(after[:, None], other.observations, window.observations),
        torch.where((torch.arange(4) >= step)[:, None], other.actions, window.actions),
        window.timesteps,
    )
    torch.testing.assert_close(model(prompt, spoiled)[:, : step + 1], model(prompt, window)[:, : step + 1])


def test_actions_depend_on_everything_earlier() -> None:
    """The gradient of the last action reaches every number of the prompt and of the window up to its own state."""
    model, prompt, window = policy(), steps(1, 2), steps(1, 4, seed=1)
    numbers = [*prompt[:3], *window[:3]]
    for number in numbers:
        number.requires_grad_(True)
    model(prompt, window)[0, -1].sum().backward()
    for number in numbers[:5]:
        assert (number.grad != 0).all()
    actions = numbers[5].grad
    assert (actions[0, :-1] != 0).all()
    assert (actions[0, -1] == 0).all(), "the action of the last step is not read"


def test_padding_on_the_right_does_not_leak() -> None:
    """A short window gives the same actions alone and padded, and its loss sees only its own steps."""
    model, prompt, window = policy(), steps(3, 2), steps(3, 4, seed=1)
    short = Steps(*(part[:, :2] for part in window))
    torch.testing.assert_close(model(prompt, window)[:, :2], model(prompt, short))
    valid = torch.tensor([[True, True, False, False]]).expand(3, -1)
    expected = ((model(prompt, short) - short.actions) ** 2).mean()
    torch.testing.assert_close(action_loss(model(prompt, window), window.actions, valid), expected)


def test_actions_depend_on_the_prompt() -> None:
    model, window = policy(), steps(2, 4, seed=1)
    assert (model(steps(2, 2, seed=5), window) - model(steps(2, 2, seed=6), window)).abs().max() > 1e-2


def test_action_loss_by_hand() -> None:
    predicted = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [5.0, 5.0]]])
    target = torch.zeros(2, 2, 2)
    valid = torch.tensor([[True, True], [True, False]])
    assert action_loss(predicted, target, valid) == pytest.approx(1 / 6)
    assert action_loss(predicted, target, torch.zeros(2, 2, dtype=torch.bool)) == 0, "no step, no division by zero"


def test_the_loss_ignores_invalid_steps() -> None:
    predicted = torch.tensor([[[1.0, 1.0], [float("1e30"), 0.0]]], requires_grad=True)
    loss = action_loss(predicted, torch.zeros(1, 2, 2), torch.tensor([[True, False]]))
    loss.backward()
    assert (predicted.grad[0, 1] == 0).all()


def test_bf16_is_close_to_float32() -> None:
    model, prompt, window = policy(), steps(8, 2), steps(8, 4, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(prompt, window)
    assert rough.dtype == torch.float32
    assert (rough - model(prompt, window)).abs().max() < 0.05


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        PolicyConfig(observation_size=1, action_size=1, max_timestep=2, width=10, heads=4)
    with pytest.raises(ValueError, match="acting_context 7 exceeds context 6"):
        PolicyShape(context=6, acting_context=7)


class TestDropout:
    @staticmethod
    def refreshed(rate: float, seed: int = 0, elements: int = 100_000) -> Dropout:
        dropout = Dropout(rate).train()
        dropout.refresh(torch.empty(1), elements, 4, torch.Generator().manual_seed(seed))
        return dropout

    @pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
    def test_rate_and_scale(self, rate: float) -> None:
        rounded = round(rate * 256) / 256
        out = self.refreshed(rate)(torch.ones(100, 1000))
        assert (out == 0).float().mean() == pytest.approx(rounded, abs=0.006)
        kept = out[out != 0]
        assert (kept == kept[0]).all()
        assert kept[0] == pytest.approx(1 / (1 - rounded), rel=1e-6)
        assert out.mean() == pytest.approx(1, abs=0.03 / (1 - rate))

    def test_layers_of_a_step_differ(self) -> None:
        dropout = self.refreshed(0.5)
        first, second = (dropout(torch.ones(1000)) for _ in range(2))
        assert 0.3 < (first == second).float().mean() < 0.7

    def test_the_highest_rates_keep_something(self) -> None:
        found = self.refreshed(0.999)(torch.ones(100_000))
        assert 0 < int((found > 0).sum()) < 1000
        assert found.mean() == pytest.approx(1, abs=0.2)

    def test_dropout_is_a_pure_function_of_the_generator(self) -> None:
        one, same, other = (self.refreshed(0.5, seed)(torch.ones(1000)) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_adding_a_branch_drops_the_branch_alone(self) -> None:
        x, branch = torch.randn(10, 100), torch.randn(10, 100)
        expected = x + self.refreshed(0.5)(branch)
        torch.testing.assert_close(self.refreshed(0.5).add(x, branch), expected)
        assert torch.equal(Dropout(0.5).eval().add(x, branch), x + branch)

    def test_identity_outside_training_and_at_rate_zero(self) -> None:
        x = torch.randn(10)
        assert torch.equal(Dropout(0.5).eval()(x), x)
        assert torch.equal(Dropout(0.0).train()(x), x)

    def test_no_seam_between_rows(self) -> None:
        """Neighbouring elements are dropped independently."""
        dropped = (self.refreshed(0.5)(torch.ones(100_000)) == 0).float()
        for lag in (1, 8, 64):
            together = (dropped[:-lag] * dropped[lag:]).mean()
            assert together == pytest.approx(0.25, abs=0.01)


def test_training_drops_and_evaluation_does_not() -> None:
    model, prompt, window = policy(dropout=0.3), steps(4, 2), steps(4, 4, seed=1)
    model.train()
    outputs = []
    for seed in (0, 0, 1):
        outputs.append(model(prompt, window, torch.Generator().manual_seed(seed)))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(model(prompt, window), model(prompt, window)), "dropout works without a generator too"
    model.eval()
    assert torch.equal(model(prompt, window), model(prompt, window))


def test_deep_models_find_enough_dropout() -> None:
    model = policy(layers=24, width=8).train()
    assert model(steps(2, 2), steps(2, 4)).isfinite().all()


def test_shapes() -> None:
    model = policy()
    assert model(steps(3, 2), steps(3, 1)).shape == (3, 1, D_A)
    assert model.config.observation_size == D_S


def test_compiled_it_draws_its_dropout_outside_the_compiled_code() -> None:
    plain, compiled = (policy(dropout=0.5).train() for _ in range(2))
    graphs: list[str] = []

    def keep(module: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(module.code)
        return module

    compiled.compile(backend=keep)
    given = steps(3, 2), steps(3, 4)
    for seed in range(3):  # compiled once, though every step cuts its masks out of another place
        outputs = [made(*given, torch.Generator().manual_seed(seed)) for made in (plain, compiled)]
        assert torch.equal(*outputs)
    assert len(graphs) == 2, "before and after the pool is drawn"
    assert not any("uint8" in code for code in graphs)
    assert list(compiled.state_dict()) == list(plain.state_dict())
