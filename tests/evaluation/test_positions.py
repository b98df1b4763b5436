"""Places on a scale between two methods, and their intervals, against scipy."""

import numpy as np
import pytest
from scipy import stats

from pd_pipeline.evaluation.statistics import above_middle, normalized, position


def runs_of(*seeds: float) -> list[list[np.ndarray]]:
    """Of each seed two tasks, one unit to either side of its value."""
    return [[np.full(3, value - 1), np.full(3, value + 1)] for value in seeds]


def test_a_position_over_seeds_has_students_interval_of_their_positions() -> None:
    floor, ceiling, ours = runs_of(0.0, 10.0, 20.0), runs_of(10.0, 30.0, 40.0), runs_of(5.0, 25.0, 36.0)
    places = [0.5, 0.75, 0.8]
    expected = stats.ttest_1samp(places, 0.0).confidence_interval(0.95)
    found = position(ours, floor, ceiling, np.random.default_rng(0))
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.value == pytest.approx(36 / 50), "of the means, not the mean of the seeds' positions"
    assert found.high - found.low == pytest.approx(expected.high - expected.low)
    assert (found.low + found.high) / 2 == pytest.approx(found.value)


def test_a_position_of_one_seed_resamples_all_three() -> None:
    rng = np.random.default_rng(1)
    ours, floor, ceiling = ([[rng.normal(centre, 1.0, 20) for _ in range(2)]] for centre in (5.0, 0.0, 10.0))
    found = position(ours, floor, ceiling, np.random.default_rng(0), 4000)

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        means = [sample.mean(axis) for sample in samples]
        place, low, high = (means[i] + means[i + 1] for i in (0, 2, 4))
        return (place - low) / (high - low)

    given = (*ours[0], *floor[0], *ceiling[0])
    expected = stats.bootstrap(given, statistic, n_resamples=4000, method="percentile", vectorized=True, rng=0)
    low, high = expected.confidence_interval
    assert found is not None
    assert found.low == pytest.approx(low, abs=0.08 * (high - low))
    assert found.high == pytest.approx(high, abs=0.08 * (high - low))
    certain = [[np.full(4, 5.0), np.full(4, 5.0)]]
    narrow = position(certain, floor, ceiling, np.random.default_rng(0), 4000)
    assert narrow is not None
    assert narrow.low is not None
    assert narrow.high is not None
    assert 0 < narrow.high - narrow.low < high - low, "the ends of the scale are uncertain too"


def test_above_the_middle_is_paired_by_seed() -> None:
    floor, ceiling, ours = runs_of(0.0, 10.0, 20.0), runs_of(10.0, 30.0, 40.0), runs_of(5.0, 25.0, 36.0)
    each = [0.0, 5.0, 6.0]
    expected = stats.ttest_1samp(each, 0.0).confidence_interval(0.95)
    found = above_middle(ours, floor, ceiling, np.random.default_rng(0))
    assert found == pytest.approx((np.mean(each), expected.low, expected.high))
    assert above_middle(ceiling, floor, ceiling, np.random.default_rng(0)).value == pytest.approx(
        -above_middle(floor, floor, ceiling, np.random.default_rng(0)).value
    )


def test_above_the_middle_of_one_seed_resamples_all_three() -> None:
    rng = np.random.default_rng(1)
    ours, floor, ceiling = ([[rng.normal(centre, 1.0, 20) for _ in range(2)]] for centre in (7.0, 0.0, 10.0))
    found = above_middle(ours, floor, ceiling, np.random.default_rng(0), 4000)
    assert found.value == pytest.approx(np.mean(ours) - (np.mean(floor) + np.mean(ceiling)) / 2)
    # the variance of a mean of forty runs of deviation one, and that of the middle of two such means
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(1 / 40 + 2 / 160), rel=0.2)


def test_there_is_no_position_without_a_scale() -> None:
    rng = np.random.default_rng(0)
    assert position(runs_of(1.0), runs_of(5.0), runs_of(5.0), rng) is None
    assert position(runs_of(1.0, 2.0), runs_of(5.0, 6.0), runs_of(5.0, 4.0), rng) is None


def test_a_position_has_no_interval_where_a_seed_or_draw_has_no_scale() -> None:
    rng = np.random.default_rng(0)
    assert position(runs_of(5.0, 5.0), runs_of(0.0, 10.0), runs_of(20.0, 9.0), rng) == (0.0, None, None)
    wide = [[np.array([0.0, 10.0])]]
    assert position([[np.array([5.0, 5.0])]], [[np.array([4.0, 4.0])]], wide, rng) == (1.0, None, None)


def test_normalized() -> None:
    assert normalized(5.0, 0.0, 10.0) == 0.5
    assert normalized(-5.0, -10.0, 0.0) == 0.5
    assert normalized(12.0, 0.0, 10.0) == pytest.approx(1.2)
    assert normalized(1.0, 2.0, 2.0) is None
    assert normalized(1.0, 3.0, 2.0) is None, "upside down, the worst would be best"


def test_draws_where_both_ends_meet_are_no_scale() -> None:
    rng = np.random.default_rng(0)
    floor, ceiling = [[np.array([4.0, 4.0])]], [[np.array([4.0, 10.0])]]
    assert position([[np.array([5.0, 5.0])]], floor, ceiling, rng) == (pytest.approx(1 / 3), None, None)


def test_tasks_weigh_alike_in_a_position_however_many_runs_they_have() -> None:
    ours, floor, ceiling = (
        [[np.full(1, low), np.full(3, high)]] for low, high in ((2.0, 8.0), (0.0, 0.0), (10.0, 30.0))
    )
    assert position(ours, floor, ceiling, np.random.default_rng(0)) == (0.25, 0.25, 0.25)
