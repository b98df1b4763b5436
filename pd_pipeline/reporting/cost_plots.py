"""What a return costs: methods against the numbers they tune, their passes through the PLM and their episodes."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pd_pipeline.evaluation.results import Metrics
from pd_pipeline.reporting.canvas import Styles, legend_below, method_styles, new_figure, styled
from pd_pipeline.reporting.plots import window_of

COSTS = {
    "tuned_parameters": "tuned numbers",
    "plm_passes": "PLM passes",
    "environment_episodes": "episodes",
}


@styled
def against_cost(metrics: Metrics, styles: Styles | None = None) -> Figure:
    """Mean return of every method, with its 95 % interval, against each of its costs; those that cost nothing at 0."""
    styles = styles or method_styles(metrics)
    shown = [cost for cost in COSTS if any(getattr(found.costs, cost) for found in metrics.values())]
    figure, panels = new_figure(3.4, 1, max(1, len(shown)), sharey=True)
    window = window_of({method: list(found.mean[1:]) for method, found in metrics.items()})
    for axes, cost in zip(panels, shown, strict=False):
        for method, found in metrics.items():
            color, marker = styles[method]
            x = getattr(found.costs, cost)
            axes.vlines(x, found.mean.low, found.mean.high, color=color, linewidth=1.3)
            axes.plot(x, found.mean.value, marker, color=color, markersize=6, label=method)
        _from_zero(axes, [getattr(found.costs, cost) for found in metrics.values()])
        axes.set_xlabel(COSTS[cost])
    if window:
        panels[0].set_ylim(window)
    panels[0].set_ylabel("return")
    legend_below(figure, panels[0])
    return figure


def _from_zero(axes: Axes, values: list[int]) -> None:
    """A logarithmic axis that also has a place for 0, a decade below the smallest cost."""
    least = 10 ** math.floor(math.log10(min((value for value in values if value), default=1)))
    axes.set_xscale("symlog", linthresh=least)
    axes.set_xlim(-0.3 * least, 3 * max(*values, least))
