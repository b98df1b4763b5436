import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pd_pipeline import graph
from pd_pipeline.evaluation.offline_results import OfflineResult, OfflineTask
from pd_pipeline.evaluation.results import Given, MethodResult
from pd_pipeline.evaluation.statistics import Estimate
from pd_pipeline.reporting.canvas import CSS_VARIABLES, INK, PAPER, method_styles, svg
from pd_pipeline.reporting.curves import joined_phases, learning_curves, running_mean
from pd_pipeline.reporting.formatting import number
from pd_pipeline.reporting.plots import comparison, offline_comparison, offline_per_task, per_task
from pd_pipeline.reporting.stage_plots import drawn
from tests.evaluation.builders import FREE

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("stage", "out", "titles"),
    [
        ("trajectories", "trajectories/point_robot", {"returns", "states visited and episodes lost"}),
        ("plm", "plm/point_robot-0", {"learning curves"}),
        ("diffuser", "diffuser/point_robot-0", {"learning curves"}),
        ("tuned_prompt_diffuser", "tuned_prompt_diffuser/point_robot-0/1", {"L_DM and L_DT", "gradients"}),
        ("tuned_full_finetune", "tuned_full_finetune/point_robot-0/1", {"loss"}),
        ("evaluation", "evaluation/point_robot-0", {"comparison", "per task"}),
        ("prompt_fit", "prompt_fit/point_robot-0", {"fit of generated prompts"}),
        ("tuned_prompt_dt", "tuned_prompt_dt/point_robot-0/1", set()),
        ("prompts", "prompts/point_robot", set()),
    ],
)
def test_stage_plots(reported_project: Path, stage: str, out: str, titles: set[str]) -> None:
    plots = graph.load(reported_project).stages[stage].plots
    found = {} if plots is None else drawn(plots, reported_project / "data" / out)
    assert set(found) == titles
    assert all(image.startswith(PNG) and len(image) > 3000 for image in found.values())


def outcome(mean: float, low: float | None = None, high: float | None = None) -> MethodResult:
    """The result of a method whose mean and IQM have the same interval, by default one to either side."""
    found = Estimate(mean, mean - 1 if low is None else low, mean + 1 if high is None else high)
    return MethodResult(given=Given("x"), mean=found, iqm=found, episodes=1, costs=FREE, tasks={})


def scores(metrics: dict[str, MethodResult]) -> pl.DataFrame:
    rows = [
        {"method": method, "task": task, "seed": 0, "prompt": prompt, "return": result.mean.value + task}
        for method, result in metrics.items()
        for task in (0, 1)
        for prompt in range(3)
    ]
    return pl.DataFrame(rows)


@pytest.mark.parametrize(("floor", "beyond"), [(-232.0, True), (-25.0, False)])
def test_a_floor_far_below_does_not_take_the_scale(floor: float, beyond: bool) -> None:
    metrics = {"prompt_diffuser": outcome(-19.0), "prompt_dt": outcome(-24.0), "noise_prompt": outcome(floor)}
    axes = comparison(metrics).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ([f"\N{BLACK LEFT-POINTING SMALL TRIANGLE} {number(floor, 1)}, off the scale"] if beyond else [])
    assert -30.0 < axes.get_xlim()[0] < -25.0 < -18.0 < axes.get_xlim()[1]
    tasks = per_task(scores(metrics), list(metrics)).axes[0]
    assert tasks.get_ylim()[0] > -30
    arrows = [line for line in tasks.lines if line.get_marker() == r"$\downarrow$"]
    assert sum(len(line.get_xdata()) for line in arrows) == (2 if beyond else 0)  # type: ignore[arg-type]


def test_a_floor_within_the_scale_stays_drawn_however_wide_its_interval() -> None:
    wide = outcome(-20.0, low=-900.0)
    axes = comparison({"prompt_diffuser": outcome(-19.0), "prompt_dt": outcome(-24.0), "noise_prompt": wide}).axes[0]
    assert not axes.texts
    assert axes.get_xlim()[0] > -30


@pytest.mark.filterwarnings("error")
def test_equal_returns_have_a_scale() -> None:
    metrics = {name: outcome(5.0, 5.0, 5.0) for name in ("prompt_diffuser", "prompt_dt", "noise_prompt")}
    assert not comparison(metrics).axes[0].texts
    assert not comparison({"prompt_dt": metrics["prompt_dt"], "noise_prompt": outcome(0.0)}).axes[0].texts


def test_svg_follows_the_page() -> None:
    table = {"step": np.arange(5.0), "loss": np.linspace(2, 1, 5)}
    first, second = (svg(learning_curves({0: table}), title) for title in ("one", "two"))
    assert first == svg(learning_curves({0: table}), "one")
    assert "var(--ink)" in first
    assert not any(color in first for color in CSS_VARIABLES)
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r"url\(#([^)]+)\)", first)) | set(re.findall(r'href="#([^"]+)"', first))
    assert used <= ids[0]


def test_method_styles_are_stable_and_apart() -> None:
    names = [f"method_{i}" for i in range(60)]
    styles = method_styles(names)
    assert list(styles) == names
    assert len({color for color, _ in styles.values()}) == 60, "bars have no markers"
    assert len({marker for _, marker in list(styles.values())[:14]}) == 14
    assert method_styles(names[:5]) == {name: styles[name] for name in names[:5]}, "by order"
    assert set(styles.values()).isdisjoint({(PAPER, "o"), (INK, "o")})


def test_running_mean_keeps_constants_and_length() -> None:
    assert running_mean(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    assert running_mean(np.arange(3.0), 1.0) == pytest.approx([0.5, 1.0, 1.5])


def test_phases_follow_each_other_on_one_axis() -> None:
    nan = np.nan
    table = {
        "phase": np.array([1.0, 1, 2, 2]),
        "step": np.array([5.0, 10, 1, 2]),
        "loss": np.array([4.0, 3, 9, 9]),
        "l_dm": np.array([nan, nan, 2, 1]),
    }
    joined = joined_phases(table)
    assert joined["step"].tolist() == [5, 10, 11, 12]
    assert joined["l_dm"].tolist() == [4, 3, 2, 1]
    assert table["step"].tolist() == [5, 10, 1, 2]


def test_offline_the_lowest_action_loss_is_on_top() -> None:
    def offline(loss: float) -> OfflineResult:
        tasks = {task: OfflineTask(loss + task, loss, loss + 2 * task, 3) for task in (1, 4)}
        return OfflineResult(Given("x"), FREE, Estimate(loss, loss - 0.01, loss + 0.01), 6, tasks)

    metrics = {"good": offline(0.1), "bad": offline(0.4), "middling": offline(0.2)}
    (axes,) = offline_comparison(metrics).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "middling", "good"]
    assert axes.get_xlim()[0] == 0
    assert "Offline: action loss on held-out trajectories" in axes.get_title(loc="left")
    (axes,) = offline_per_task(metrics).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["task 1", "task 4"]
    drawn_losses = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn_losses["bad"] == [1.4, 4.4]
