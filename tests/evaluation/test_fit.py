"""How far generated prompts are from real ones."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from pd_pipeline.evaluation.fit import compare, halves, nearest, wasserstein


def apart(count: int) -> np.ndarray:
    """(count, 2): each prompt is of an episode of its own."""
    return np.stack((np.zeros(count, int), np.arange(count)), axis=1)


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
    found = compare(rng.normal(size=(800, 3, 4)), apart(800), rng.normal(size=(400, 3, 4)), rng)
    assert found["prompts"] == 400
    assert found["varying_channels"] == 4
    assert found["wasserstein_generated"] == pytest.approx(found["wasserstein_real"], rel=0.6)
    assert found["nearest_generated"] == pytest.approx(found["nearest_real"], rel=0.1)


def test_a_bad_generator_is_far() -> None:
    rng = np.random.default_rng(0)
    found = compare(rng.normal(size=(800, 3, 4)), apart(800), 1 + rng.normal(size=(400, 3, 4)), rng)
    assert found["wasserstein_generated"] > 10 * found["wasserstein_real"]
    collapsed = compare(rng.normal(size=(800, 3, 4)), apart(800), np.zeros((400, 3, 4)), rng)
    assert collapsed["wasserstein_generated"] > 10 * collapsed["wasserstein_real"]


def test_prompts_that_are_kept_are_measured_against_the_same_reference() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(40, 2, 3)), rng.normal(size=(20, 2, 3))
    found = compare(real, apart(len(real)), made, np.random.default_rng(0), kept=real[:1] + 1000)
    assert found["kept"] == 1
    assert found["nearest_kept"] == pytest.approx(1000, rel=0.01)
    all_kept = compare(real, apart(len(real)), made, np.random.default_rng(0), kept=made)
    assert all_kept["nearest_kept"] == all_kept["nearest_generated"]
    without = compare(real, apart(len(real)), made, np.random.default_rng(0))
    assert without.items() <= found.items()
    assert "nearest_kept" not in without


def test_channels_that_never_change_do_not_flatter() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(100, 2, 3)), rng.normal(size=(50, 2, 3)) + 1
    with_constants = [np.concatenate((part, np.zeros((*part.shape[:2], 5))), axis=-1) for part in (real, made)]
    plain = compare(real, apart(len(real)), made, np.random.default_rng(1))
    found = compare(with_constants[0], apart(100), with_constants[1], np.random.default_rng(1))
    assert found["varying_channels"] == 3
    assert found["wasserstein_generated"] == pytest.approx(plain["wasserstein_generated"])
    assert len(found["wasserstein_generated_per_channel"]) == 3


@pytest.mark.parametrize(("given", "made", "half"), [(9, 7, 4), (12, 3, 3)])
def test_distances_by_hand(given: int, made: int, half: int) -> None:
    """Both halves of the real prompts and as many generated ones; of the last two channels one varies enough."""
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(given, 2, 4)), rng.exponential(size=(made, 2, 4))
    real[..., 2] *= 2e-3
    real[..., 3] *= 5e-4
    found = compare(real, apart(given), generated, np.random.default_rng(4), kept=generated[:2])
    draws = np.random.default_rng(4)
    reference, other = (real[rows[:half]] for rows in halves(apart(given), draws))
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
    one, two = halves(apart(8), np.random.default_rng(0))
    for once, varying in ((one[0], 2), (two[0], 1)):
        real, made = np.zeros((8, 2, 2)), np.random.default_rng(0).normal(size=(8, 2, 2))
        real[..., 0] = np.arange(8)[:, None]
        real[once, :, 1] = 1.0
        found = compare(real, apart(len(real)), made, np.random.default_rng(0))
        assert found["varying_channels"] == len(found["wasserstein_generated_per_channel"]) == varying


def test_no_episode_is_in_both_halves() -> None:
    """But a task with a single episode has no other way. Every task is in both halves."""
    task, episode = np.repeat([0, 0, 0, 1, 1, 2], 4), np.repeat([0, 1, 2, 0, 1, 7], 4)
    one, two = halves(np.stack((task, episode), axis=1), np.random.default_rng(0))
    assert sorted([*one, *two]) == [*range(24)]
    of = [{(task[row], episode[row]) for row in half} for half in (one, two)]
    assert of[0] & of[1] == {(2, 7)}
    assert {task for task, _ in of[0]} == {task for task, _ in of[1]} == {0, 1, 2}
    assert one.tolist() != sorted(one), "in random order, since the first of them are taken"


@pytest.mark.parametrize("seed", range(8))
def test_neither_half_is_empty(seed: int) -> None:
    """Two tasks with a prompt each."""
    one, two = halves(np.array([[0, 0], [1, 0]]), np.random.default_rng(seed))
    assert (len(one), len(two)) == (1, 1)


def test_segments_of_new_episodes_are_as_near_as_real_ones() -> None:
    """Overlapping segments of the same episodes would be much nearer than a perfect generator comes."""
    rng = np.random.default_rng(0)

    def segments(count: int) -> tuple[np.ndarray, np.ndarray]:
        walks = np.cumsum(rng.normal(size=(count, 40, 2)), axis=1)
        made = np.lib.stride_tricks.sliding_window_view(walks, 5, axis=1).transpose(0, 1, 3, 2)  # (count, 36, 5, 2)
        return made.reshape(-1, 5, 2), np.repeat(np.arange(count), 36)

    real, number = segments(40)
    perfect, _ = segments(40)
    found = compare(real, np.stack((np.zeros(len(number), int), number), axis=1), perfect, rng)
    assert found["nearest_generated"] == pytest.approx(found["nearest_real"], rel=0.2)
    assert found["wasserstein_generated"] < 2 * found["wasserstein_real"]
    overlapping = compare(real, apart(len(real)), perfect, rng)
    assert overlapping["wasserstein_real"] < 0.5 * found["wasserstein_real"]
    assert overlapping["nearest_real"] < found["nearest_real"]


def test_one_prompt_is_too_few() -> None:
    with pytest.raises(ValueError, match="two real prompts are needed"):
        compare(np.zeros((1, 2, 3)), apart(1), np.zeros((4, 2, 3)), np.random.default_rng(0))
