"""What a return costs: methods against the numbers they tune, their passes through the PLM, episodes and seconds."""

import math
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pd_pipeline.evaluation.results import Metrics
from pd_pipeline.reporting.canvas import Styles, legend_below, method_styles, new_figure, styled
from pd_pipeline.reporting.plots import window_of

SUMMED = {"plm_passes": "PLM passes per target", "environment_episodes": "episodes per target"}
MEANING = (
    "What each method's mean return took per target: tuned numbers, passes through the PLM, and, if a method ran any, "
    "episodes in its environment. Up and to the left is better; a noise prompt far below is left out."
)
ABREAST, CROWD = 3, 10  # panels side by side at most, and methods for which they have room there
HEIGHT, WIDE_HEIGHT, LINE = 2.4, 2.2, 0.19  # inches


@styled
def against_cost(
    metrics: Metrics, styles: Styles | None = None, seeds: int = 1, seconds: Mapping[str, float] | None = None
) -> Figure:
    """Mean return of every method, with its 95 % interval, against each of its costs; those that cost nothing at 0.

    Costs are of one target and seed; `metrics` has their sums over targets and `seeds`. `seconds` of tuning per target
    are no part of the metrics, and have a panel if they are known of every method.
    """
    styles = styles or method_styles(metrics)
    costs: dict[str, Mapping[str, float]] = {
        "tuned numbers": {method: found.costs.tuned_parameters for method, found in metrics.items()}
    } | {
        title: {method: getattr(found.costs, cost) / (seeds * len(found.tasks)) for method, found in metrics.items()}
        for cost, title in SUMMED.items()
    }
    if seconds and metrics.keys() <= seconds.keys():
        costs["seconds per target"] = seconds
    shown = {title: values for title, values in costs.items() if any(values.values())}
    columns = max(1, len(shown)) if len(shown) <= ABREAST else 2
    if len(metrics) > CROWD:
        columns = 1
    rows = max(1, math.ceil(len(shown) / columns))
    lines = math.ceil(len(metrics) / 2) * LINE  # of the legend
    figure, panels = new_figure(rows * (HEIGHT if columns > 1 else WIDE_HEIGHT) + lines, rows, columns, sharey=True)
    window = window_of({method: list(found.mean[1:]) for method, found in metrics.items()})
    for axes, (title, values) in zip(panels, shown.items(), strict=False):
        for method, found in metrics.items():
            color, marker = styles[method]
            axes.vlines(values[method], found.mean.low, found.mean.high, color=color, linewidth=1.3)
            axes.plot(values[method], found.mean.value, marker, color=color, markersize=6, label=method)
        _from_zero(axes, [values[method] for method in metrics])
        axes.set_xlabel(title)
    if window:
        panels[0].set_ylim(window)
    for axes in panels[::columns]:
        axes.set_ylabel("return")
    legend_below(figure, panels[0])
    return figure


def _from_zero(axes: Axes, values: list[float]) -> None:
    """A logarithmic axis that also has a place for 0, a decade below the smallest cost."""
    least = 10 ** math.floor(math.log10(min((value for value in values if value), default=1)))
    axes.set_xscale("symlog", linthresh=least)
    axes.set_xlim(-0.3 * least, 3 * max(*values, least))
    decades = round(math.log10(max(*values, least) / least))
    axes.set_xticks([0, *(least * 10**decade for decade in range(decades + 1))])  # not those between 0 and the first
