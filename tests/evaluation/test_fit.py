"""How far generated prompts are from real ones."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from pd_pipeline.evaluation.fit import compare, nearest, wasserstein


def test_wasserstein_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 3)), rng.exponential(size=(50, 3))
    expected = [wasserstein_distance(a[:, i], b[:, i]) for i in range(3)]
    np.testing.assert_allclose(wasserstein(a, b), expected)


def test_nearest_is_that_of_the_loop() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(21, 4)), rng.normal(size=(30, 4))
    distances = [min(np.sqrt(((x - y) ** 2).mean()) for y in b) for x in a]
    assert nearest(a, b) == pytest.approx(np.median(distances))


def test_a_perfect_generator_is_as_near_as_real_prompts() -> None:
    rng = np.random.default_rng(0)
    found = compare(rng.normal(size=(800, 3, 4)), rng.normal(size=(400, 3, 4)), rng)
    assert found["prompts"] == 400
    assert found["varying_channels"] == 4
    assert found["wasserstein_generated"] == pytest.approx(found["wasserstein_real"], rel=0.6)
    assert found["nearest_generated"] == pytest.approx(found["nearest_real"], rel=0.1)


def test_a_bad_generator_is_far() -> None:
    rng = np.random.default_rng(0)
    found = compare(rng.normal(size=(800, 3, 4)), 1 + rng.normal(size=(400, 3, 4)), rng)
    assert found["wasserstein_generated"] > 10 * found["wasserstein_real"]
    collapsed = compare(rng.normal(size=(800, 3, 4)), np.zeros((400, 3, 4)), rng)
    assert collapsed["wasserstein_generated"] > 10 * collapsed["wasserstein_real"]


def test_prompts_that_are_kept_are_measured_against_the_same_reference() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(40, 2, 3)), rng.normal(size=(20, 2, 3))
    found = compare(real, made, np.random.default_rng(0), kept=real[:1] + 1000)
    assert found["kept"] == 1
    assert found["nearest_kept"] == pytest.approx(1000, rel=0.01)
    all_kept = compare(real, made, np.random.default_rng(0), kept=made)
    assert all_kept["nearest_kept"] == all_kept["nearest_generated"]
    without = compare(real, made, np.random.default_rng(0))
    assert without.items() <= found.items()
    assert "nearest_kept" not in without


def test_channels_that_never_change_do_not_flatter() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(100, 2, 3)), rng.normal(size=(50, 2, 3)) + 1
    with_constants = [np.concatenate((part, np.zeros((*part.shape[:2], 5))), axis=-1) for part in (real, made)]
    plain = compare(real, made, np.random.default_rng(1))
    found = compare(*with_constants, np.random.default_rng(1))
    assert found["varying_channels"] == 3
    assert found["wasserstein_generated"] == pytest.approx(plain["wasserstein_generated"])
    assert len(found["wasserstein_generated_per_channel"]) == 3


@pytest.mark.parametrize(("given", "made", "half"), [(9, 7, 4), (12, 3, 3)])
def test_distances_by_hand(given: int, made: int, half: int) -> None:
    """Both random halves of the real prompts and as many generated ones; of the last two channels one varies enough."""
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(given, 2, 4)), rng.exponential(size=(made, 2, 4))
    real[..., 2] *= 2e-3
    real[..., 3] *= 5e-4
    found = compare(real, generated, np.random.default_rng(4), kept=generated[:2])
    draws = np.random.default_rng(4)
    order = draws.permutation(given)
    reference, other = real[order[:half]], real[order[half : 2 * half]]
    chosen = generated[draws.permutation(made)[:half]]
    assert found["prompts"] == half
    assert found["varying_channels"] == 3
    for name, sample in (("real", other), ("generated", chosen)):
        each = [wasserstein_distance(reference[..., i].ravel(), sample[..., i].ravel()) for i in range(3)]
        assert found[f"wasserstein_{name}_per_channel"] == pytest.approx(each)
        assert found[f"wasserstein_{name}"] == pytest.approx(np.mean(each))
    for name, sample in (("real", other), ("generated", chosen), ("kept", generated[:2])):
        distances = [min(np.sqrt(((x - y) ** 2).mean()) for y in reference) for x in sample]
        assert found[f"nearest_{name}"] == pytest.approx(np.median(distances))


def test_a_channel_varies_where_it_does_in_the_reference() -> None:
    """What generated prompts, or the other half of real ones, do in it says nothing."""
    order = np.random.default_rng(0).permutation(8)
    for once, varying in ((order[0], 2), (order[-1], 1)):
        real, made = np.zeros((8, 2, 2)), np.random.default_rng(0).normal(size=(8, 2, 2))
        real[..., 0] = np.arange(8)[:, None]
        real[once, :, 1] = 1.0
        found = compare(real, made, np.random.default_rng(0))
        assert found["varying_channels"] == len(found["wasserstein_generated_per_channel"]) == varying
