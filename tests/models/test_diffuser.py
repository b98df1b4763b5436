"""The denoiser: stored outputs, and that they depend on every input."""

import torch

from pd_pipeline.models.diffuser import Denoiser, DenoiserConfig
from tests.builders import fill


def tiny(**changes: int) -> Denoiser:
    values = {"channels": 2, "prompt_length": 3, "width": 8, "blocks": 2, "frequencies": 4} | changes
    return Denoiser(DenoiserConfig(**values))


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (2, 3, 2), y (2, 3, 2), n (2,)."""
    x = torch.linspace(-1, 1, 12).view(2, 3, 2)
    start = torch.tensor([0.1, 0.6])
    returns = torch.linspace(1, 0.5, 6).view(2, 3)
    y = torch.stack((returns, start[:, None] + 0.05 * torch.arange(3)), dim=-1)
    return x, y, torch.tensor([0.0, 0.75])


def test_golden() -> None:
    """Fails when the architecture changes: then say so in the CHANGELOG and store the new numbers."""
    model = tiny()
    fill(model)
    torch.testing.assert_close(model(*given()), torch.tensor(GOLDEN), atol=2e-5, rtol=1e-4)


GOLDEN = [
    [[-0.218885, 0.567164], [-0.827224, 0.953062], [-0.920387, 0.731311]],
    [[0.375099, -0.230991], [0.043531, 0.153245], [-0.323354, 0.435479]],
]


def test_output_starts_at_zero() -> None:
    assert (tiny()(*given()) == 0).all()


def test_shape_follows_the_prompt() -> None:
    model = tiny(channels=7, prompt_length=4)
    assert model(torch.zeros(5, 4, 7), torch.zeros(5, 4, 2), torch.zeros(5)).shape == (5, 4, 7)


def test_output_depends_on_every_input() -> None:
    model = tiny()
    fill(model)
    x, y, n = (part.requires_grad_(True) for part in given())
    model(x, y, n).square().sum().backward()
    assert (x.grad != 0).all()
    assert (y.grad[..., 0] != 0).all(), "each return-to-go"
    assert (y.grad[:, 0, 1] != 0).all(), "the first timestep"
    assert (n.grad != 0).all()


def test_samples_of_a_batch_do_not_mix() -> None:
    model = tiny()
    fill(model)
    x, y, n = given()
    together = model(x, y, n)
    for i in range(2):
        torch.testing.assert_close(model(x[i : i + 1], y[i : i + 1], n[i : i + 1])[0], together[i])


def test_neighbouring_timesteps_are_distinguished() -> None:
    """The purpose of the Fourier features: a 200th of the horizon changes the condition a lot."""
    model = tiny(frequencies=16)
    a, b = model._fourier(torch.tensor([0.5, 0.505]))
    assert (a - b).norm() > 0.5
    features = model._fourier(torch.arange(200) / 200)
    distances = torch.cdist(features, features) + 10 * torch.eye(200)
    assert distances.min() > 0.3, "no two timesteps look alike"
