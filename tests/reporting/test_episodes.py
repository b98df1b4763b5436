"""Return against episodes, recomputed by hand."""

import numpy as np
import polars as pl
import pytest

from pd_pipeline.evaluation.statistics import student
from pd_pipeline.reporting.canvas import method_styles
from pd_pipeline.reporting.episodes import against_episodes, curves
from tests.reporting.test_verdict import metrics

Row = tuple[str, int, int, int, float]


def searches(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["method", "seed", "task", "step", "best"], orient="row")


def test_a_curve_is_the_mean_over_targets_with_the_interval_of_the_seeds() -> None:
    rows: list[Row] = []
    for seed, shift in ((0, 0.0), (1, 2.0), (2, 7.0)):
        for task, own in ((4, 1.0), (9, 3.0)):
            rows += [("a", seed, task, 10, shift + own), ("a", seed, task, 20, 2 * shift + own)]
    found = curves(searches(rows))["a"]
    assert found[10] == pytest.approx(student(5.0, [2.0, 4.0, 9.0]))
    assert found[20] == pytest.approx(student(8.0, [2.0, 6.0, 16.0]))


def test_between_its_steps_a_search_keeps_its_best_and_before_the_first_it_has_none() -> None:
    rows: list[Row] = [("a", 0, 1, 5, 1.0), ("a", 0, 1, 15, 3.0), ("a", 0, 2, 10, 5.0), ("a", 0, 2, 20, 9.0)]
    found = curves(searches(rows))["a"]
    assert {step: value.value for step, value in found.items()} == {10: 3.0, 15: 4.0, 20: 6.0}
    assert found[10].low == found[10].high == 3.0, "no interval of one seed"


def test_methods_without_episodes_are_level_lines() -> None:
    compared = metrics(0.1, prompt_dt=80.0, prompt_diffuser=95.0)
    rows: list[Row] = [("prompt_diffuser", seed, 1, step, 50.0 + step + seed) for seed in (0, 1) for step in (10, 20)]
    axes = against_episodes(searches(rows), compared).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines.keys() == {"prompt_dt", "prompt_diffuser"}
    assert list(lines["prompt_dt"].get_ydata()) == pytest.approx([80.0, 80.0])
    np.testing.assert_allclose(lines["prompt_diffuser"].get_xydata(), [[10, 60.5], [20, 70.5]])
    assert lines["prompt_dt"].get_color() == method_styles(compared)["prompt_dt"][0]
