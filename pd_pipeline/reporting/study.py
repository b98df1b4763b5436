"""What a study shows: its curve or intervals, and its table, on the page and in the terminal."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from pd_pipeline.evaluation.results import MethodResult, Metrics
from pd_pipeline.evaluation.statistics import Estimate
from pd_pipeline.reporting.canvas import legend_below, method_styles, new_figure, styled, svg
from pd_pipeline.reporting.cost_plots import MEANING, against_cost
from pd_pipeline.reporting.episodes import against_episodes
from pd_pipeline.reporting.formatting import decimals, interval, percent
from pd_pipeline.storage import read_json
from pd_pipeline.studies.stage import FILE, SEARCHES, load_metrics

EVEN_RATIO = 8.0
"""A parameter whose largest value is more than so many times its least is drawn on a logarithmic axis."""


@dataclass(frozen=True)
class PointResults:
    """What one point gave for one family."""

    label: str
    values: Mapping[str, Any]
    metrics: Metrics
    to_first: Mapping[str, Estimate]
    """Method -> how far its mean return lies above that at the first point, seeds and targets paired."""
    fit: Mapping[str, Mapping[str, float]]
    """State of a tuned diffuser -> median distances to the nearest real prompt."""
    searches: pl.DataFrame | None = None
    """Best return so far over the episodes of methods that searched; None if none did."""


@dataclass(frozen=True)
class StudyResults:
    """What a study gave for one family."""

    title: str
    note: str
    names: tuple[str, ...]
    family: str
    seeds: int
    points: tuple[PointResults, ...]

    @property
    def methods(self) -> list[str]:
        """Those of all points, in the order of the first that has them."""
        return list(dict.fromkeys(method for point in self.points for method in point.metrics))


def load(out: Path) -> list[StudyResults]:
    """The results in an out of a study's stage, one record per family. Raises PipelineError where it is not one."""
    file = out / FILE
    values = read_json(file)
    searches = _searches(out)
    families = list(dict.fromkeys(family for point in values["points"] for family in point["families"]))
    return [
        StudyResults(
            values["title"],
            values["note"],
            tuple(values["names"]),
            family,
            max(len(point["seeds"]) for point in values["points"]),
            tuple(
                PointResults(
                    point["label"],
                    point["values"],
                    _in_order(load_metrics(point["families"][family], str(file)), point["methods"]),
                    {method: Estimate(**d) for method, d in point["families"][family]["to_first"].items()},
                    point["families"][family]["fit"],
                    _of_point(searches, number_, family),
                )
                for number_, point in enumerate(values["points"])
                if family in point["families"]
            ),
        )
        for family in families
    ]


def _searches(out: Path) -> pl.DataFrame | None:
    """The searches in an out, or in a published study."""
    if (file := out / SEARCHES).is_file():
        return pl.read_parquet(file)
    return pl.read_csv(file) if (file := (out / SEARCHES).with_suffix(".csv")).is_file() else None


def _of_point(searches: pl.DataFrame | None, number_: int, family: str) -> pl.DataFrame | None:
    if searches is None:
        return None
    found = searches.filter(pl.col("point") == number_, pl.col("family") == family)
    return found if len(found) else None


def _in_order(metrics: Metrics, methods: list[str]) -> Metrics:
    return {method: metrics[method] for method in methods}


def searched(results: StudyResults) -> Iterator[tuple[int, Figure]]:
    """The numbers of the points at which methods searched, with their figures of return against episodes."""
    for number_, point in enumerate(results.points):
        if point.searches is not None:
            yield number_, against_episodes(point.searches, point.metrics)


def costs(results: StudyResults, seconds: Mapping[str, float] | None = None) -> Iterator[Figure]:
    """Return against cost, if the study compares methods at one point. `seconds`: of tuning per target, by method."""
    if len(results.points) == 1:
        yield against_cost(results.points[0].metrics, None, results.seeds, seconds)


@styled
def figure(results: StudyResults) -> Figure:
    """Mean return of every method with its interval: over the parameter if it is one number, else point by point."""
    return _curve(results) if _numbers(results) else _intervals(results)


def _numbers(results: StudyResults) -> list[float]:
    """The values of the grid's one parameter; empty where there are more, or they are no numbers."""
    if len(results.names) > 1 or len(results.points) < 2:
        return []
    values = [point.values[results.names[0]] for point in results.points]
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return [float(value) for value in values] if plain else []


def _curve(results: StudyResults) -> Figure:
    drawn, (axes,) = new_figure(3.0)
    places = _numbers(results)
    for method, (color, marker) in method_styles(results.methods).items():
        known = sorted(
            (x, point.metrics[method].mean)
            for x, point in zip(places, results.points, strict=True)
            if method in point.metrics
        )
        xs, means = [x for x, _ in known], [mean for _, mean in known]
        errors = [[m.value - m.low for m in means], [m.high - m.value for m in means]]
        axes.errorbar(xs, [m.value for m in means], yerr=errors, color=color, marker=marker, capsize=3, label=method)
    if min(places) > 0 and max(places) / min(places) > EVEN_RATIO:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.set_xlabel(results.names[0])
    axes.set_ylabel("return, mean over targets")
    legend_below(drawn, axes)
    return drawn


def _intervals(results: StudyResults) -> Figure:
    methods = method_styles(results.methods)
    drawn, (axes,) = new_figure(0.9 + len(results.points) * max(0.3, 0.16 * len(methods)))
    offsets = np.linspace(-0.3, 0.3, len(methods)) if len(methods) > 1 else np.zeros(1)
    for (method, (color, marker)), offset in zip(methods.items(), offsets, strict=True):
        rows = [(i, p.metrics[method].mean) for i, p in enumerate(results.points) if method in p.metrics]
        errors = [[mean.value - mean.low for _, mean in rows], [mean.high - mean.value for _, mean in rows]]
        heights = [row + offset for row, _ in rows]
        axes.errorbar([mean.value for _, mean in rows], heights, xerr=errors, color=color, fmt=marker, label=method)
    axes.set_yticks(range(len(results.points)), [point.label for point in results.points])
    axes.invert_yaxis()
    axes.set_xlabel("return, mean over targets")
    legend_below(drawn, axes)
    return drawn


@dataclass(frozen=True)
class Row:
    """One line of a study's table: a method at a point."""

    point: str
    method: str
    result: MethodResult
    to_first: Estimate | None
    """None at the first point, and for a method that it does not have."""


def rows(results: StudyResults) -> list[Row]:
    """The table, point by point."""
    return [
        Row(point.label, method, result, point.to_first.get(method) if number_ else None)
        for number_, point in enumerate(results.points)
        for method, result in point.metrics.items()
    ]


def section(out: Path) -> list[dict[str, Any]]:
    """What the page shows of a study, one entry per family."""
    return [
        {
            "results": results,
            "rows": rows(results),
            "digits": decimals(point.metrics[m].mean.value for point in results.points for m in point.metrics),
            "figures": [
                {
                    "title": "Return at the points",
                    "sentence": "Mean over targets, seeds and prompts, with its 95 % interval.",
                    "image": svg(figure(results), f"{results.title} ({results.family})"),
                },
                *(
                    {
                        "title": _titled("Return against episodes", results, number_),
                        "sentence": "Best return of the episodes so far, mean over targets, with its 95 % interval "
                        "over seeds; dashed: methods without episodes. The best of noisy returns flatters a search: "
                        "what its prompt returns in other episodes is in the table.",
                        "image": svg(image, f"{results.title} ({results.family}): episodes {number_}"),
                    }
                    for number_, image in searched(results)
                ),
                *(
                    {
                        "title": "Return against cost",
                        "sentence": MEANING,
                        "image": svg(image, f"{results.title} ({results.family}): cost"),
                    }
                    for image in costs(results)
                ),
            ],
        }
        for results in load(out)
    ]


def _titled(title: str, results: StudyResults, number_: int) -> str:
    return f"{title}, {results.points[number_].label}" if len(results.points) > 1 else title


def table(out: Path) -> list[str]:
    """The same for a terminal: lines of text."""
    lines = []
    for results in load(out):
        digits = decimals(point.metrics[m].mean.value for point in results.points for m in point.metrics)
        cells = [("point", "method", "return (95 % interval)", "success", "to the first point")]
        cells += [
            (
                row.point,
                row.method,
                interval(row.result.mean, digits),
                "-" if row.result.success is None else percent(row.result.success.value),
                "-" if row.to_first is None else interval(row.to_first, digits),
            )
            for row in rows(results)
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines.append(f"{results.title} {results.family}, {results.seeds} seed{'s' if results.seeds > 1 else ''}")
        lines += [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
        ]
    return lines
