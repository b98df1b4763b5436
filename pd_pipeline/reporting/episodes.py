"""Return against episodes: how good the best prompt of a search is after so many episodes."""

from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from pd_pipeline.evaluation.results import Metrics
from pd_pipeline.evaluation.statistics import Estimate, student
from pd_pipeline.reporting.canvas import Styles, legend_below, method_styles, new_figure, styled

Curve = Mapping[int, Estimate]
"""Episodes -> best return of one of them so far."""


def curves(searches: pl.DataFrame) -> dict[str, Curve]:
    """Method -> its curve, from the rows method, seed, task, step, best of one family.

    The mean over targets; with several seeds with Student's interval, with one without: both ends are the mean. Between
    two steps of a search its best return is that of the earlier one.
    """
    found: dict[str, Curve] = {}
    for (method,), part in searches.group_by("method", maintain_order=True):
        steps = sorted(part["step"].unique().to_list())
        grid = part.select("seed", "task").unique().join(pl.DataFrame({"step": steps}), how="cross")
        filled = grid.join(part, on=["seed", "task", "step"], how="left").sort("step")
        filled = filled.with_columns(pl.col("best").forward_fill().over("seed", "task"))
        seeds = filled.group_by("seed", "step").agg(pl.col("best").mean(), pl.col("best").null_count().alias("missing"))
        curve = {}
        for step in steps:
            at = seeds.filter(pl.col("step") == step)
            if at["missing"].sum():  # a search that has not ended its first round
                continue
            values = at.sort("seed")["best"].to_list()
            mean = float(np.mean(values))
            curve[int(step)] = Estimate(mean, mean, mean) if len(values) == 1 else student(mean, values)
        found[str(method)] = curve
    return found


@styled
def against_episodes(searches: pl.DataFrame, metrics: Metrics, styles: Styles | None = None) -> Figure:
    """Best return so far against episodes, and as level lines what methods without episodes return."""
    figure, (axes,) = new_figure(3.4)
    styles, found = styles or method_styles(metrics), curves(searches)
    for method, curve in found.items():
        color, marker = styles[method]
        steps = list(curve)
        axes.plot(steps, [curve[s].value for s in steps], color=color, marker=marker, markersize=4, label=method)
        axes.fill_between(
            steps, [curve[s].low for s in steps], [curve[s].high for s in steps], color=color, alpha=0.15, linewidth=0
        )
    for method, result in metrics.items():
        if method not in found:
            axes.axhline(result.mean.value, color=styles[method][0], linestyle=(0, (4, 3)), linewidth=1.2, label=method)
    axes.set_xlabel("episodes in the target's environment")
    axes.set_ylabel("best return so far")
    legend_below(figure, axes)
    return figure
