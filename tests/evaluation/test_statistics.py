"""The statistics against scipy and rliable."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rliable import library, metrics
from scipy import stats

from pd_pipeline.evaluation.statistics import (
    estimate,
    interquartile_mean,
    mean,
    paired_difference,
    position,
    success_rate,
    wilson,
)


def scores(tasks: int = 5, runs: int = 8, seed: int = 0, shift: float = 0.0) -> list[list[np.ndarray]]:
    """Of one seed."""
    rng = np.random.default_rng(seed)
    return [[rng.normal(10 * task + shift, 1 + task, runs) for task in range(tasks)]]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_iqm_is_the_trimmed_mean(values: list[float]) -> None:
    expected = stats.trim_mean(values, 0.25)
    assert float(interquartile_mean(np.array(values))) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_iqm_of_many_at_once() -> None:
    values = np.random.default_rng(0).normal(size=(6, 11))
    np.testing.assert_allclose(interquartile_mean(values), [stats.trim_mean(row, 0.25) for row in values])


@pytest.mark.parametrize("runs", [4, 8, 10])
def test_point_estimates_are_those_of_rliable(runs: int) -> None:
    given = scores(runs=runs)
    matrix = np.stack(given[0], axis=1)  # (runs, tasks)
    rng = np.random.default_rng(0)
    assert estimate(given, interquartile_mean, rng, 10).value == pytest.approx(metrics.aggregate_iqm(matrix))
    assert estimate(given, mean, rng, 10).value == pytest.approx(metrics.aggregate_mean(matrix))


@pytest.mark.filterwarnings("ignore:random_state is deprecated")
@pytest.mark.parametrize(
    ("ours", "theirs"), [(interquartile_mean, metrics.aggregate_iqm), (mean, metrics.aggregate_mean)]
)
def test_intervals_are_those_of_rliable(ours, theirs) -> None:
    given = scores(runs=10)
    matrix = np.stack(given[0], axis=1)
    _, intervals = library.get_interval_estimates(
        {"x": matrix},
        lambda x: np.array([theirs(x)]),
        reps=4000,
        random_state=np.random.RandomState(0),
    )
    low, high = intervals["x"][:, 0]
    found = estimate(given, ours, np.random.default_rng(0), 4000)
    width = high - low
    assert found.low == pytest.approx(low, abs=0.06 * width)
    assert found.high == pytest.approx(high, abs=0.06 * width)
    assert found.low <= found.value <= found.high


def test_runs_are_resampled_within_their_task() -> None:
    """Runs of a task that are all alike leave no uncertainty, however far tasks lie apart."""
    found = estimate([[np.full(5, 0.0), np.full(5, 100.0)]], mean, np.random.default_rng(0), 200)
    assert found == (50.0, 50.0, 50.0)


def test_tasks_may_have_different_numbers_of_runs() -> None:
    found = estimate([[np.zeros(2), np.ones(6)]], mean, np.random.default_rng(0), 100)
    assert found.value == pytest.approx(0.75)


def test_confidence_widens_the_interval() -> None:
    narrow, wide = (estimate(scores(), mean, np.random.default_rng(0), 1000, c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_covers_as_often_as_it_says() -> None:
    """95 % intervals of the mean of 30 runs hold the true mean in about 93 % of draws (percentile bootstrap)."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        found = estimate([[rng.normal(size=15), rng.normal(1, 1, 15)]], mean, rng, 400)
        covered += found.low <= 0.5 <= found.high
    assert 0.88 < covered / 300 < 0.98


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 7), (0, 9), (0, 10), (10, 10), (17, 17), (3, 10), (1, 1), (39, 40), (200, 400)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_that_of_scipy(successes: int, trials: int, confidence: float) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    found = wilson(successes, trials, confidence)
    assert found.value == successes / trials
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_paired_difference_by_hand() -> None:
    found = paired_difference(
        [[np.array([3.0]), np.array([10.0, 12.0])]],
        [[np.array([1.0]), np.array([10.0])]],
        np.random.default_rng(0),
        400,
    )
    assert found.value == pytest.approx(((3 - 1) + (11 - 10)) / 2)
    assert (found.low, found.high) == (1.0, 2.0)


def test_paired_difference_is_that_of_a_bootstrap_of_scipy() -> None:
    one, other = scores(3, 12, 0, shift=1.0), scores(3, 12, 1)
    samples = (*one[0], *other[0])

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([samples[i].mean(axis) - samples[i + 3].mean(axis) for i in range(3)], axis=0)

    expected = stats.bootstrap(
        samples, statistic, n_resamples=4000, method="percentile", vectorized=True, rng=0
    ).confidence_interval
    found = paired_difference(one, other, np.random.default_rng(0), 4000)
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.high, abs=0.06 * width)


def test_pairing_removes_what_differs_between_tasks() -> None:
    """Tasks on very different scales of return: only the difference within a task counts."""
    far = [[np.array([0.0, 0.1]), np.array([1000.0, 1000.1])]]
    found = paired_difference([[task + 1 for task in far[0]]], far, np.random.default_rng(0), 500)
    assert found.value == pytest.approx(1)
    assert found.high - found.low < 0.3


def several_seeds(effects: Sequence[float], rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Twenty runs of each of three tasks, which share the effect of their seed."""
    return [[effect + rng.normal(size=20) for _ in range(3)] for effect in effects]


def test_over_several_seeds_the_interval_is_students_of_their_values() -> None:
    given = several_seeds((0.0, 3.0, 9.0), np.random.default_rng(0))
    for statistic in (mean, interquartile_mean):
        values = [float(statistic(np.concatenate(seed))) for seed in given]
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        found = estimate(given, statistic, np.random.default_rng(0))
        assert found.value == pytest.approx(float(statistic(np.concatenate([r for seed in given for r in seed]))))
        assert found.high - found.value == pytest.approx((expected.high - expected.low) / 2)
        assert found.value - found.low == pytest.approx((expected.high - expected.low) / 2)


@pytest.mark.parametrize("effect", [0.0, 0.3, 3.0])
def test_the_interval_covers_over_three_seeds_too(effect: float) -> None:
    """However much seeds differ; a bootstrap of three covers 70 % where they differ more than runs."""
    rng = np.random.default_rng(0)
    found = [estimate(several_seeds(effect * rng.normal(size=3), rng), mean, rng) for _ in range(400)]
    assert 0.92 < np.mean([one.low <= 0 <= one.high for one in found]) < 0.98


def test_the_difference_pairs_seeds() -> None:
    """What a seed's policy gives to both methods is not in their difference."""
    rng = np.random.default_rng(0)
    one, other = several_seeds((101.0, 201.0, 1.0), rng), several_seeds((100.0, 200.0, 0.0), rng)
    found = paired_difference(one, other, rng)
    values = [
        np.mean([a.mean() - b.mean() for a, b in zip(*pair, strict=True)]) for pair in zip(one, other, strict=True)
    ]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found == pytest.approx((np.mean(values), expected.low, expected.high))
    assert found.high - found.low < 3


def test_success_over_seeds_is_as_uncertain_as_the_more_uncertain_of_both() -> None:
    alike = [np.array([True] * 19 + [False])] * 3
    assert success_rate(alike) == wilson(57, 60), "alike seeds leave the runs"
    apart = [np.ones(20, bool), np.zeros(20, bool), np.ones(20, bool)]
    assert success_rate(apart) == (pytest.approx(2 / 3), 0.0, 1.0)
    assert success_rate(apart[:1]) == wilson(20, 20)


def test_methods_must_cover_the_same_tasks() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_difference(scores(3), scores(2), np.random.default_rng(0), 10)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_difference(scores(3) * 2, scores(3) * 3, np.random.default_rng(0), 10)


def test_confidence_is_that_of_every_interval_over_seeds() -> None:
    """Half of what is certain: Student's t of two degrees of freedom."""
    rng = np.random.default_rng(0)
    ours, floor, ceiling = (several_seeds(values, rng) for values in ((1.0, 2.0, 6.0), (0.0, 2.0, 1.0), (10.0,) * 3))
    means, low, high = (np.array([np.mean(seed) for seed in each]) for each in (ours, floor, ceiling))
    place = position(ours, floor, ceiling, rng, confidence=0.5)
    assert place is not None
    assert place.low is not None
    assert place.high is not None
    for width, values in (
        (np.ptp(estimate(ours, mean, rng, confidence=0.5)[1:]), means),
        (np.ptp(paired_difference(ours, floor, rng, confidence=0.5)[1:]), means - low),
        (place.high - place.low, (means - low) / (high - low)),
    ):
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.5)
        assert width == pytest.approx(expected.high - expected.low)
    assert success_rate([np.array([True, False]), np.array([True, True])], 0.5)[1:] == pytest.approx((0.5, 1.0))
    alike = [np.array([True] * 19 + [False])] * 3
    assert success_rate(alike, 0.5) == wilson(57, 60, 0.5)


def test_confidence_is_that_of_every_interval_of_draws() -> None:
    """Half of what is certain: from quartile to quartile."""
    ours, floor, ceiling = (scores(1, 9, seed, shift) for seed, shift in enumerate((4.0, 0.0, 9.0)))
    rng = np.random.default_rng(1)
    drawn = [each[0][0][rng.integers(0, 9, (300, 9))].mean(1) for each in (ours, floor, ceiling)]
    found = estimate(ours, mean, np.random.default_rng(1), 300, 0.5)
    assert found[1:] == pytest.approx(np.quantile(drawn[0], (0.25, 0.75)))
    found = paired_difference(ours, floor, np.random.default_rng(1), 300, 0.5)
    assert found[1:] == pytest.approx(np.quantile(drawn[0] - drawn[1], (0.25, 0.75)))
    place = position(ours, floor, ceiling, np.random.default_rng(1), 300, 0.5)
    assert place is not None
    expected = (drawn[0] - drawn[1]) / (drawn[2] - drawn[1])
    assert place[1:] == pytest.approx(np.quantile(expected, (0.25, 0.75)))


def test_as_many_draws_are_taken_as_asked_for() -> None:
    """Of a single draw both ends of an interval are the same."""
    given, other, third = scores(2, 5, 1), scores(2, 5, 2, shift=-9.0), scores(2, 5, 3, shift=50.0)
    rng = np.random.default_rng(0)
    for found in (
        estimate(given, mean, rng, 1),
        paired_difference(given, other, rng, 1),
        position(given, other, third, rng, 1),
    ):
        assert found is not None
        assert found.low == found.high != found.value


def test_a_seed_with_more_runs_weighs_more_in_a_mean_of_runs() -> None:
    given = [[np.array([1.0, 1.0, 1.0])], [np.array([5.0])]]
    assert estimate(given, mean, np.random.default_rng(0)).value == 2.0


def test_the_middle_half_of_several_seeds_is_of_all_runs_of_a_seed() -> None:
    """Not of each task: of the runs 0 to 7 the middle is 2 to 5."""
    given = [[np.arange(4.0), np.arange(4.0, 8.0)], [np.array([0.0, 0.0, 9.0, 9.0]), np.array([1.0, 1.0, 1.0, 1.0])]]
    found = estimate(given, interquartile_mean, np.random.default_rng(0))
    expected = stats.ttest_1samp([3.5, 1.0], 0.0).confidence_interval(0.95)
    assert found.high - found.low == pytest.approx(expected.high - expected.low)


@pytest.mark.filterwarnings("error")
def test_success_of_one_seed_needs_no_interval_over_seeds() -> None:
    assert success_rate([np.array([True, False, True])]) == wilson(2, 3)
