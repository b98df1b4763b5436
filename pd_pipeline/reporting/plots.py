"""Every plot of the report, drawn from tables and metrics; also offered as PNG for one stage's out (Dagster)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pd_pipeline.evaluation.offline_results import OfflineMetrics
from pd_pipeline.evaluation.results import OFFLINE, Metrics
from pd_pipeline.evaluation.scores import FLOOR, by_task
from pd_pipeline.evaluation.statistics import Estimate, estimate, mean
from pd_pipeline.reporting.canvas import (
    BLUE,
    MUTED,
    ORANGE,
    PAPER,
    QUALITY_COLORS,
    Styles,
    legend_below,
    method_styles,
    new_figure,
    styled,
)
from pd_pipeline.reporting.formatting import decimals, number


@styled
def comparison(metrics: Metrics, styles: Styles | None = None) -> Figure:
    """Return (mean and interquartile mean) and success of every method, with 95 % intervals."""
    styles = styles or method_styles(metrics)
    order = sorted(metrics, key=lambda method: metrics[method].mean.value)
    succeeds = all(result.success is not None for result in metrics.values())
    size = 0.34 * len(order) + 1.15
    if succeeds:
        figure, (returns, success) = new_figure(size, 1, 2, sharey=True, width_ratios=(3, 2))
    else:
        figure, (returns,) = new_figure(size)
    window = window_of({method: [*found.mean[1:], *found.iqm[1:]] for method, found in metrics.items()})
    for row, method in enumerate(order):
        found, style = metrics[method], styles[method]
        if window and found.mean.value < window[0]:
            mean_return = number(found.mean.value, decimals(result.mean.value for result in metrics.values()))
            beyond = f"\N{BLACK LEFT-POINTING SMALL TRIANGLE} {mean_return}, off the scale"
            returns.annotate(beyond, (0.02, row), xycoords=("axes fraction", "data"), va="center")
        else:
            _interval(returns, row + 0.12, found.mean, style)
            _interval(returns, row - 0.18, found.iqm, style, hollow=True)
        if succeeds and found.success:
            _interval(success, row, Estimate(*(100 * value for value in found.success)), style)
    if window:
        returns.set_xlim(window)
    returns.set_yticks(range(len(order)), order)
    returns.set_ylim(-0.6, len(order) - 0.4)
    returns.set_title("Return (filled: mean, hollow: IQM)" if not succeeds else "Return\n(filled: mean, hollow: IQM)")
    if succeeds:
        success.set_title("Success, %")
        success.set_xlim(-4, 104)
    for axes in figure.axes:
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    return figure


def window_of(values: Mapping[str, Sequence[float]]) -> tuple[float, float] | None:
    """Limits that show what lies between the better methods, where the floor would take most of the scale.

    With the floor go all methods that lie as far below as it does: no more than half of them.
    """
    if FLOOR not in values:
        return None
    order = sorted(values, key=lambda method: min(values[method]))
    for count in range(order.index(FLOOR) + 1, len(order) // 2 + 1):
        others = [value for method in order[count:] for value in values[method]]
        low, high = min(others), max(others)
        below = max(min(values[method]) for method in order[:count])
        if low < high and low - below >= 1.5 * (high - low):
            return low - 0.2 * (high - low), high + 0.08 * (high - low)
    return None


def _interval(axes: Axes, row: float, found: Estimate, style: tuple[str, str], *, hollow: bool = False) -> None:
    color, marker = style
    axes.hlines(row, found.low, found.high, color=color, linewidth=1.3 if hollow else 2.2)
    face, size = (PAPER, 5) if hollow else (color, 7)
    axes.plot(found.value, row, marker, color=face, markeredgecolor=color, markersize=size)


@styled
def per_task(scores: pl.DataFrame, methods: Sequence[str]) -> Figure:
    """Mean return of every method on each target task, with its 95 % interval."""
    tasks, styles = sorted(scores["task"].unique().to_list()), method_styles(methods)
    figure, (axes,) = new_figure(2.9)
    width, rng = 0.82 / len(methods), np.random.default_rng(0)
    estimates = {
        method: [estimate(by_task(scores.filter(pl.col("task") == task), method), mean, rng, 500) for task in tasks]
        for method in methods
    }
    window = window_of({method: [v for e in each for v in (e.low, e.high)] for method, each in estimates.items()})
    for i, (method, each) in enumerate(estimates.items()):
        color, marker = styles[method]
        x = np.arange(len(tasks)) + (i - (len(methods) - 1) / 2) * width
        axes.vlines(x, [e.low for e in each], [e.high for e in each], color=color, linewidth=1.6)
        axes.plot(x, [e.value for e in each], marker, color=color, markersize=5.5, label=method)
        below = [place for place, e in zip(x, each, strict=True) if window and e.value < window[0]]
        edge = axes.get_xaxis_transform()
        arrow: dict[str, Any] = {"marker": r"$\downarrow$", "markersize": 9, "linestyle": ""}
        axes.plot(below, [0.06] * len(below), color=color, transform=edge, **arrow)
    if window:
        axes.set_ylim(window)
    axes.set_xticks(range(len(tasks)), [f"task {task}" for task in tasks])
    axes.set_ylabel("return")
    axes.grid(axis="x", visible=False)
    legend_below(figure, axes)
    return figure


@styled
def offline_comparison(metrics: OfflineMetrics, styles: Styles | None = None) -> Figure:
    """Action loss on held-out trajectories of every method, with 95 % intervals: the best on top."""
    styles = styles or method_styles(metrics)
    order = sorted(metrics, key=lambda method: -metrics[method].action_loss.value)
    figure, (axes,) = new_figure(0.34 * len(order) + 1.0)
    for row, method in enumerate(order):
        _interval(axes, row, metrics[method].action_loss, styles[method])
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlim(left=0)
    axes.set_title(f"Offline: {OFFLINE}\n(lower is better)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure


@styled
def offline_per_task(metrics: OfflineMetrics, styles: Styles | None = None) -> Figure:
    """Action loss on held-out trajectories of every method for each target task, with its 95 % interval."""
    styles = styles or method_styles(metrics)
    tasks = sorted({task for result in metrics.values() for task in result.tasks})
    figure, (axes,) = new_figure(2.9)
    width = 0.82 / len(metrics)
    for i, (method, result) in enumerate(metrics.items()):
        color, marker = styles[method]
        x = np.arange(len(tasks)) + (i - (len(metrics) - 1) / 2) * width
        found = [result.tasks[task] for task in tasks]
        lows, highs = [f.action_loss_low for f in found], [f.action_loss_high for f in found]
        axes.vlines(x, lows, highs, color=color, linewidth=1.6)
        axes.plot(x, [f.action_loss for f in found], marker, color=color, markersize=5.5, label=method)
    axes.set_xticks(range(len(tasks)), [f"task {task}" for task in tasks])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("action loss, held-out trajectories")
    axes.grid(axis="x", visible=False)
    legend_below(figure, axes)
    return figure


@styled
def data_returns(
    summary: Mapping[str, Mapping[str, Any]], targets: Iterable[int] = (), bar: float | None = None
) -> Figure:
    """Mean return of the behaviour data of each task, one row per quality; target tasks are marked, `bar` is drawn."""
    figure, (axes,) = new_figure(0.42 * len(summary) + 0.9)
    chosen, qualities = set(targets), list(summary)
    for row, quality in enumerate(reversed(qualities)):
        color = QUALITY_COLORS.get(quality, "#CC79A7")
        for task, values in summary[quality].get("tasks", {}).items():
            target = int(task) in chosen
            axes.plot(
                values["return_mean"],
                row + (0.14 if target else -0.14),
                "D" if target else "o",
                color=color,
                alpha=1.0 if target else 0.45,
                markersize=5,
                markeredgecolor=PAPER,
                markeredgewidth=0.4,
            )
    if bar is not None:
        axes.axvline(bar, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(qualities)), list(reversed(qualities)))
    axes.set_ylim(-0.5, len(qualities) - 0.5)
    axes.set_xlabel("mean return of a task" + (" (diamonds: target tasks)" if chosen else ""))
    axes.grid(axis="y", visible=False)
    return figure


@styled
def data_coverage(summary: Mapping[str, Mapping[str, Any]]) -> Figure:
    """State coverage and share of early ends of each quality of data."""
    qualities = list(summary)[::-1]
    figure, panels = new_figure(0.3 * len(qualities) + 0.75, 1, 2, sharey=True)
    for axes, name, title in zip(
        panels, ("coverage", "early_ends"), ("State coverage, %", "Early ends, %"), strict=True
    ):
        values = [100 * summary[quality][name] for quality in qualities]
        colors = [QUALITY_COLORS.get(quality, "#CC79A7") for quality in qualities]
        axes.barh(range(len(qualities)), values, 0.6, color=colors)
        axes.set_xlim(0, 100)
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(qualities)), qualities)
    return figure


def _state_and_chain(name: str, chain: Sequence[int]) -> str:
    """Two lines: the state of a diffuser and the steps of its chain; of a method of the user's own, by whom."""
    state, _, method = name.partition(" by ")
    parts = [state, f"{' or '.join(map(str, chain))} steps"] if chain else [state]
    return f"{', '.join(parts)}\nby {method}" if method else "\n".join(parts)


@styled
def fit_distances(fits: Sequence[Mapping[str, Any]]) -> Figure:
    """Generated against real prompts: distances and action loss, one row per state of the diffuser and its chain."""
    states = {"pretrained": [fit["pretrained"] for fit in fits if "pretrained" in fit]}
    for target in (target for fit in fits for target in fit.get("targets", {}).values()):
        for name, value in target.items():
            states.setdefault(name, []).append(value)
    measures = {
        "wasserstein": "Wasserstein distance per channel",
        "nearest": "Distance to the nearest real prompt",
        "action_loss": "Action loss of the PLM on unseen trajectories",
    }
    chains = {name: sorted({value["chain"] for value in values if "chain" in value}) for name, values in states.items()}
    shown = {k: title for k, title in measures.items() if any(f"{k}_real" in v for vs in states.values() for v in vs)}
    states_of = {k: [name for name, values in states.items() if values and f"{k}_real" in values[0]] for k in shown}
    heights = [0.6 + 0.36 * len(rows) for rows in states_of.values()]  # inches: a label has two lines
    figure, panels = new_figure(sum(heights) + 0.5, len(shown), height_ratios=heights)
    for axes, (key, title) in zip(panels, shown.items(), strict=True):
        rows = states_of[key]
        for row, name in enumerate(reversed(rows)):
            for kind, color, marker in (("real", MUTED, "|"), ("generated", BLUE, "o")):
                values = [value[f"{key}_{kind}"] for value in states[name]]
                axes.plot(values, [row] * len(values), marker, color=color, alpha=0.4, markersize=5)
                axes.plot(np.mean(values), row, marker, color=color, markersize=13 if kind == "real" else 7.5,
                          markeredgewidth=2 if kind == "real" else 0.5, label=kind if row == 0 else None)  # fmt: skip
            if kept := [value[f"{key}_kept"] for value in states[name] if f"{key}_kept" in value]:
                once = None if "evaluated" in axes.get_legend_handles_labels()[1] else "evaluated"
                axes.plot(np.mean(kept), row, "D", color=PAPER, markeredgecolor=ORANGE, markersize=6, label=once)
        axes.set_yticks(range(len(rows)), [_state_and_chain(name, chains[name]) for name in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
    legend_below(figure, panels[min(1, len(panels) - 1)])  # of the distances that evaluated prompts have too
    return figure


@styled
def fit_channels(fit: Mapping[str, Any]) -> Figure:
    """Wasserstein distance of each channel of the prompts: generated (pre-trained diffuser) against real."""
    figure, (axes,) = new_figure(2.9)
    real = np.array(fit["wasserstein_real_per_channel"])
    made = np.array(fit["wasserstein_generated_per_channel"])
    both = np.concatenate((real, made))
    low, high = both[both > 0].min() / 1.5, both.max() * 1.5
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="as good as real")
    axes.plot(
        np.maximum(real, low), np.maximum(made, low), "o", color=BLUE, alpha=0.75, markersize=5, label="a channel"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("distance between two real samples")
    axes.set_ylabel("distance of generated to real")
    axes.legend()
    return figure
