"""The diffusion process against the schedulers of `diffusers`, and against a Gaussian known in closed form."""

from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from pd_pipeline.models.diffusion import Diffusion, DiffusionParams, Prediction, Schedule, betas

SCHEDULES, PREDICTIONS = get_args(Schedule), get_args(Prediction)
THEIRS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def process(prediction: str = "eps", schedule: str = "cosine", steps: int = 20, **changes: object) -> Diffusion:
    return Diffusion(DiffusionParams(prediction=prediction, schedule=schedule, steps=steps, **changes))


def scheduler(cls: type, ours: Diffusion):
    return cls(
        num_train_timesteps=ours.steps,
        trained_betas=betas(ours.params.schedule, ours.steps).numpy(),
        prediction_type=THEIRS[ours.params.prediction],
        clip_sample=False,
        **({"set_alpha_to_one": True} if cls is DDIMScheduler else {"variance_type": "fixed_small"}),
    )


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 5, 20, 100])
def test_schedules_lead_from_clean_samples_to_noise(schedule: str, steps: int) -> None:
    found = betas(schedule, steps)
    assert found.shape == (steps,)
    assert ((found > 0) & (found < 1)).all()
    levels = process(schedule=schedule, steps=steps).alphas_bar
    assert (levels.diff() < 0).all()
    if steps >= 5:
        assert levels[-1] < 0.02


def test_vp_is_that_of_diffusion_ql() -> None:
    n = np.arange(1, 6)
    expected = 1 - np.exp(-0.1 / 5 - 0.5 * 9.9 * (2 * n - 1) / 25)
    np.testing.assert_allclose(betas("vp", 5), expected, rtol=1e-12)


def test_cosine_is_that_of_diffusers() -> None:
    np.testing.assert_allclose(
        betas("cosine", 50), DDPMScheduler(50, beta_schedule="squaredcos_cap_v2").betas, rtol=1e-4, atol=1e-6
    )


def test_linear_is_that_of_ddpm_at_1000_steps() -> None:
    np.testing.assert_allclose(betas("linear", 1000), DDPMScheduler(1000).betas, rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_forward_process(schedule: str) -> None:
    ours = process(schedule=schedule)
    x0, noise, n = draw(6, 5, 3), draw(6, 5, 3, seed=1), torch.tensor([0, 1, 7, 12, 18, 19])
    theirs = scheduler(DDPMScheduler, ours)
    torch.testing.assert_close(ours.add_noise(x0, noise, n), theirs.add_noise(x0, noise, n), atol=1e-5, rtol=1e-4)
    v = process("v", schedule).target(x0, noise, n)
    torch.testing.assert_close(v, theirs.get_velocity(x0, noise, n), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("step", [0, 1, 9, 18])
def test_ancestral_step(prediction: str, schedule: str, step: int) -> None:
    """The same mean, and the same sample for the same noise."""
    ours = process(prediction, schedule)
    theirs = scheduler(DDPMScheduler, ours)
    x, output, n = draw(4, 5, 3), draw(4, 5, 3, seed=1), torch.full((4,), step)
    generator = torch.Generator().manual_seed(3)
    expected = theirs.step(output, step, x, generator=generator)
    x0 = ours.to_x0(output, x, n)
    torch.testing.assert_close(x0, expected.pred_original_sample, atol=1e-4, rtol=1e-4)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours.ancestral_step(x, x0, n, noise), expected.prev_sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("step", "visited"), [(0, 20), (10, 20), (18, 20), (16, 5), (4, 5), (0, 5)])
def test_ddim_step(prediction: str, schedule: str, step: int, visited: int) -> None:
    ours = process(prediction, schedule)
    theirs = scheduler(DDIMScheduler, ours)
    theirs.set_timesteps(visited)
    x, output, n = draw(4, 5, 3), draw(4, 5, 3, seed=1), torch.full((4,), step)
    to = (n - ours.steps // visited).clamp(min=-1)
    expected = theirs.step(output, step, x).prev_sample
    torch.testing.assert_close(ours.ddim_step(x, ours.to_x0(output, x, n), n, to), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_predictions_imply_the_same_sample(schedule: str) -> None:
    x0, noise = draw(20, 4), draw(20, 4, seed=1)
    n = torch.arange(18).repeat(2)[:20]
    for prediction in PREDICTIONS:
        ours = process(prediction, schedule)
        x = ours.add_noise(x0, noise, n)
        torch.testing.assert_close(ours.to_x0(ours.target(x0, noise, n), x, n), x0, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize("schedule", ["vp", "linear"])
def test_the_loss_does_not_depend_on_what_is_predicted(schedule: str, clip: float | None) -> None:
    """The same denoised sample has the same loss, whatever the prediction."""
    x0, noise, guess = draw(20, 4), draw(20, 4, seed=1), draw(20, 4, seed=2)
    n = torch.arange(20)
    losses = []
    for prediction in PREDICTIONS:
        ours = process(prediction, schedule, snr_clip=clip)
        x = ours.add_noise(x0, noise, n)
        level = ours.alpha_bar(n, x)
        as_eps = (x - level.sqrt() * guess) / (1 - level).sqrt()
        output = {"eps": as_eps, "x0": guess, "v": (level.sqrt() * as_eps - (1 - level).sqrt() * guess)}[prediction]
        losses.append(float(ours.loss(lambda *_, output=output: output, x0, noise, n)))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-3)


def test_the_loss_is_eq_6_without_a_clip() -> None:
    ours = process("eps", snr_clip=None)
    x0, noise, n = draw(8, 3, 2), draw(8, 3, 2, seed=1), torch.arange(8)
    loss = ours.loss(lambda x, n: 0.5 * x, x0, noise, n)
    torch.testing.assert_close(loss, ((noise - 0.5 * ours.add_noise(x0, noise, n)) ** 2).mean())


def test_the_clip_is_min_snr() -> None:
    ours = process("x0", snr_clip=5.0)
    x0, noise = draw(20, 4), draw(20, 4, seed=1)
    snr = ours.alphas_bar / (1 - ours.alphas_bar)
    for step in (0, 10, 19):
        n = torch.full((20,), step)
        expected = x0.square().mean() * snr[step].clamp(max=5.0)
        torch.testing.assert_close(ours.loss(lambda x, n: torch.zeros_like(x), x0, noise, n), expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_a_known_gaussian_is_recovered(prediction: str, schedule: str, sampler: str) -> None:
    """For x0 ~ N(m, s^2) the best denoiser is known; with it the chain must lead from x_N to N(m, s^2)."""
    ours = process(prediction, schedule, steps=60)
    mean, std = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.1])

    def denoise(x: Tensor, n: Tensor) -> Tensor:
        level = ours.alpha_bar(n, x)
        gain = level.sqrt() * std**2 / (level * std**2 + 1 - level)
        x0 = mean + gain * (x - level.sqrt() * mean)
        eps = (x - level.sqrt() * x0) / (1 - level).sqrt()
        return {"eps": eps, "x0": x0, "v": level.sqrt() * eps - (1 - level).sqrt() * x0}[prediction]

    # from x_N itself rather than from N(0, I): some schedules leave signal in x_N
    start = ours.add_noise(mean + std * draw(4000, 2), draw(4000, 2, seed=2), torch.full((4000,), 59))
    samples = ours.sample(denoise, start, sampler, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(samples.mean(0), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(samples.std(0), std, atol=0.02, rtol=0.12)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, None])
def test_ddim_visits_as_many_steps_as_asked_from_noise_to_clean(steps: int | None) -> None:
    ours, seen = process("x0"), []

    def denoise(x: Tensor, n: Tensor) -> Tensor:
        seen.append(int(n[0]))
        return torch.ones_like(x)

    samples = ours.sample(denoise, draw(3, 2), "ddim", steps)
    assert len(seen) == (steps or 20)
    assert seen[0] == 19
    assert seen == sorted(set(seen), reverse=True)
    torch.testing.assert_close(samples, torch.ones(3, 2), msg="the last step lands on the estimate itself")


def test_the_ancestral_chain_visits_every_step() -> None:
    with pytest.raises(ValueError, match="ancestral"):
        process().sample(lambda x, n: x, draw(2, 2), "ancestral", 5)


def test_clip_bounds_the_estimates() -> None:
    samples = process("x0").sample(lambda x, n: 10 * torch.ones_like(x), draw(3, 2), "ddim", 5, clip=1.5)
    assert samples.max() == 1.5


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_the_gradient_flows_through_the_whole_chain(sampler: str) -> None:
    """eq. 7 needs it: compare with finite differences for a weight used at every step."""
    ours = process("v", steps=6)
    noise = draw(5, 2).double()

    def end(weight: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return ours.sample(lambda x, n: weight * x.tanh(), noise, sampler, generator=generator).square().sum()

    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(end(weight), weight)
    numeric = (end(weight + 1e-4) - end(weight - 1e-4)) / 2e-4
    assert float(gradient) == pytest.approx(float(numeric.detach()), rel=1e-3)
    assert abs(float(gradient)) > 1e-3


def test_sampling_is_a_pure_function_of_its_noise() -> None:
    ours = process("eps")
    runs = [
        ours.sample(lambda x, n: 0.1 * x, draw(3, 2), "ancestral", generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [3, 10, None])
def test_encoding_is_the_chain_backwards(prediction: str, schedule: str, steps: int | None) -> None:
    """With a denoiser that mixes its input with a fixed sample, as a trained one does near the data."""
    ours, centre = process(prediction, schedule), draw(4, 3, seed=7)

    def denoise(x: Tensor, n: Tensor) -> Tensor:
        level = ours.alpha_bar(n, x)
        x0 = centre + 0.8 * (x - level.sqrt() * centre)
        eps = (x - level.sqrt() * x0) / (1 - level).sqrt()
        return {"eps": eps, "x0": x0, "v": level.sqrt() * eps - (1 - level).sqrt() * x0}[prediction]

    made = ours.sample(denoise, draw(4, 3), "ddim", steps)
    again = ours.sample(denoise, ours.encode(denoise, made, steps, iterations=60), "ddim", steps)
    torch.testing.assert_close(again, made, atol=2e-3, rtol=1e-2)


def test_the_noise_of_samples_off_the_data_stays_bounded() -> None:
    """A denoiser that knows one sample: nothing else has a noise, and looking for it longer must not be the default."""
    ours, centre = process("x0"), draw(4, 3, seed=7)

    def denoise(x: Tensor, n: Tensor) -> Tensor:
        return centre + 0.1 * torch.tanh(x - centre)

    encoded = ours.encode(denoise, centre + 1.0, 10)
    assert encoded.square().mean().sqrt() < 6
