"""Statistics of collected data on synthetic episodes, and the bars that expert data must reach."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pd_pipeline.families.base import ExpertBars, Family, load_family
from pd_pipeline.trajectories.quality import CELLS, coverage, missed_bars, summarise
from tests.builders import trajectories


@pytest.fixture
def plane() -> Family:
    return load_family("point_robot", {"horizon": 5}, Path.cwd())


def test_every_task_has_the_same_weight_whatever_its_number_of_episodes(plane: Family) -> None:
    data = trajectories((5, 5, 3, 5), (0, 0, 0, 1))
    found = summarise(plane, {"expert": data})["expert"]
    returns = data.episode_returns
    assert found["return_mean"] == pytest.approx((returns[:3].mean() + returns[3]) / 2)
    assert found["tasks"][0]["episodes"] == 3
    assert found["tasks"][0]["early_ends"] == pytest.approx(1 / 3)
    assert found["early_ends"] == pytest.approx(1 / 6)
    assert found["steps"] == 18
    assert found["episodes"] == 4
    assert found["success_rate"] == 0.0


def test_a_family_without_success_has_no_rate(plane: Family) -> None:
    plane.has_success = False
    found = summarise(plane, {"expert": trajectories((5,), (0,))})["expert"]
    assert found["success_rate"] is None
    assert found["tasks"][0]["success_rate"] is None


def test_coverage_counts_cells() -> None:
    grid = (np.arange(CELLS) + 0.5)[:, None] / CELLS
    low, high = np.zeros(1), np.ones(1)
    assert coverage(grid, low, high) == pytest.approx(1.0)
    assert coverage(grid[: CELLS // 2], low, high) == pytest.approx(0.5)
    assert coverage(np.repeat(grid[:1], 9, axis=0), low, high) == pytest.approx(1 / CELLS)
    assert coverage(grid + 5, low, high) == 0.0
    constant = np.concatenate([grid, np.ones_like(grid)], axis=1)
    assert coverage(constant, np.array([0.0, 1.0]), np.array([1.0, 1.0])) == pytest.approx(1.0), (
        "what never varies does not count"
    )


def test_wider_data_covers_more(plane: Family) -> None:
    wide = trajectories((5,) * 50, (0,) * 50)
    narrow = replace(wide, observations=1.0 + 0.1 * (wide.observations - 1.0))
    found = summarise(plane, {"expert": narrow, "random": wide})
    assert found["random"]["coverage"] > 2 * found["expert"]["coverage"]


GOOD = {"expert": {"return_mean": 710.0, "success_rate": 0.97, "early_ends": 0.02}}


def test_good_data_misses_no_bar() -> None:
    assert missed_bars(GOOD, ExpertBars(700.0, 0.95, 0.05)) == []
    assert missed_bars(GOOD, ExpertBars()) == []
    assert missed_bars({"medium": GOOD["expert"]}, ExpertBars(9000.0)) == [], "bars apply only to expert data"


@pytest.mark.parametrize(
    ("bars", "text"),
    [
        (ExpertBars(return_mean=720.0), "mean return 710.0 is below 720"),
        (ExpertBars(success_rate=0.99), "success rate 97.0% is below 99%"),
        (ExpertBars(early_ends=0.01), "2.0% of episodes end early, above 1%"),
    ],
)
def test_every_missed_bar_is_reported(bars: ExpertBars, text: str) -> None:
    assert missed_bars(GOOD, bars) == [text]
