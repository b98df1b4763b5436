"""Return against cost: where a method stands, and which costs are shown."""

from dataclasses import replace

import pytest

from pd_pipeline.evaluation.results import Costs, MethodResult
from pd_pipeline.reporting.cost_plots import against_cost
from tests.reporting.test_plots import outcome


def costing(mean: float, *costs: int) -> MethodResult:
    """Over two targets."""
    return replace(outcome(mean), costs=Costs(*costs), tasks=dict.fromkeys((3, 8)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("episodes", "panels"), [(0, ["tuned numbers", "PLM passes per target"]), (50, None)])
def test_marks_stand_at_costs_and_returns(episodes: int, panels: list[str] | None) -> None:
    metrics = {"prompt_dt": costing(1.0, 0, 0, 0), "searched": costing(3.0, 220, 60_000, 6 * episodes)}
    figure = against_cost(metrics, seeds=3)
    assert [axes.get_xlabel() for axes in figure.axes] == (
        panels or ["tuned numbers", "PLM passes per target", "episodes per target"]
    )
    for axes, cost in zip(figure.axes, (220, 10_000, 50), strict=False):
        marks = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
        assert marks == {"prompt_dt": (0, 1.0), "searched": (cost, 3.0)}
        low, high = axes.get_xlim()
        assert low < 0 < cost < high


def test_seconds_have_a_panel_if_they_are_known_of_every_method() -> None:
    metrics = {"prompt_dt": costing(1.0, 0, 0, 0), "searched": costing(3.0, 220, 10_000, 50)}
    known = against_cost(metrics, seconds={"prompt_dt": 0.5, "searched": 20.0})
    assert [axes.get_xlabel() for axes in known.axes][-1] == "seconds per target"
    places = {line.get_label(): line.get_xdata()[0] for line in known.axes[-1].lines}
    assert places == {"prompt_dt": 0.5, "searched": 20.0}
    assert len(against_cost(metrics, seconds={"searched": 20.0}).axes) == 3


def test_methods_that_cost_nothing() -> None:
    figure = against_cost({"a": costing(1.0, 0, 0, 0), "b": costing(2.0, 0, 0, 0)})
    assert len(figure.axes) == 1
