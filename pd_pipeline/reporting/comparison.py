"""Tables and figures that compare all methods, ready for a paper: text, Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.evaluation.comparison import ALL, Compared, compared, normalised, over_families, profile
from pd_pipeline.evaluation.scores import CEILING, FLOOR, by_task, check_complete
from pd_pipeline.evaluation.statistics import Estimate, Scores
from pd_pipeline.reporting.canvas import Styles, legend_below, method_styles, new_figure, styled
from pd_pipeline.reporting.formatting import number
from pd_pipeline.reporting.layout import Layout

COLUMNS = (
    *("family", "method", "seeds", "targets"),
    *("normalised IQM", "P(better)", "difference", "p", "p corrected", "verdict"),
)


def on_one_scale(
    scores: Mapping[str, pl.DataFrame], floor: str = FLOOR, ceiling: str = CEILING
) -> dict[str, dict[str, Scores]]:
    """Family -> method -> normalised runs; with several families `ALL` too. Raises PipelineError."""
    families = {}
    for family, table in scores.items():
        methods = table["method"].unique(maintain_order=True).to_list()
        _known(floor, methods, family, "--floor")
        _known(ceiling, methods, family, "--ceiling")
        check_complete(table, methods)
        families[family] = normalised({method: by_task(table, method) for method in methods}, floor, ceiling, family)
    return families | ({ALL: over_families(families)} if len(families) > 1 else {})


def if_one_scale(family: str, scores: pl.DataFrame) -> list[dict[str, Scores]]:
    """Method -> normalised runs of one family, as a list of one; empty where they cannot be normalised."""
    try:
        return [on_one_scale({family: scores})[family]]
    except PipelineError:  # a method is missing, or on some target the ceiling is not above the floor
        return []


def _known(name: str, methods: Sequence[str], family: str, option: str) -> None:
    if name not in methods:
        hint = suggestion(name, sorted(methods))
        raise PipelineError(f"{family}: no scores of '{name}', which is {option}: name another method there: {hint}")


def rows(scale: Mapping[str, Mapping[str, Scores]], reference: str, draws: int = 2000) -> list[Compared]:
    """Every method against `reference`, family by family."""
    found = []
    for family, runs in scale.items():
        _known(reference, list(runs), family, "--to")
        found += compared(family, runs, reference, draws)
    return found


def table(found: Sequence[Compared], form: Layout) -> str:
    """The rows as text, Markdown, LaTeX (booktabs) or CSV, which has the numbers in full."""
    if form is Layout.CSV:
        return _csv(found)
    cells = [_cells(row) for row in found]
    if form is Layout.LATEX:
        return _latex(cells)
    if form is Layout.MARKDOWN:
        lines = [COLUMNS, ("---",) * len(COLUMNS), *cells]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(len(line[i]) for line in (COLUMNS, *cells)) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (COLUMNS, *cells)
    )


def _cells(row: Compared) -> tuple[str, ...]:
    return (
        *(row.family, row.method, str(row.seeds), str(row.targets), _interval(row.iqm)),
        *(_interval(row.improvement), _interval(row.difference), p_text(row.p), p_text(row.corrected), row.verdict),
    )


def _interval(found: Estimate | None) -> str:
    return "-" if found is None else f"{number(found.value, 3)} ({number(found.low, 3)} to {number(found.high, 3)})"


def p_text(p: float | None) -> str:
    """A p value as papers print it."""
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _latex(cells: Sequence[tuple[str, ...]]) -> str:
    body = [[_escaped(cell) for cell in line] for line in (COLUMNS, *cells)]
    lines = [" & ".join(line) + r" \\" for line in body]
    head = [rf"\begin{{tabular}}{{{'ll' + 'r' * (len(COLUMNS) - 3) + 'l'}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*head, *lines[1:], r"\bottomrule", r"\end{tabular}"])


def _escaped(cell: str) -> str:
    return cell.replace("_", r"\_").replace("<", "$<$").replace("\N{MINUS SIGN}", "$-$")


def _csv(found: Sequence[Compared]) -> str:
    file = io.StringIO()
    ends = ("", "_low", "_high")
    names = [f"{name}{end}" for name in ("iqm", "improvement", "difference") for end in ends]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["family", "method", "seeds", "targets", *names, "p", "p_corrected", "verdict"])
    for row in found:
        three = [value for e in (row.iqm, row.improvement, row.difference) for value in (e or ("", "", ""))]
        p = ["" if value is None else value for value in (row.p, row.corrected)]
        writer.writerow([row.family, row.method, row.seeds, row.targets, *three, *p, row.verdict])
    return file.getvalue().rstrip("\n")


@styled
def profiles(runs: Mapping[str, Scores], styles: Styles | None = None) -> Figure:
    """Share of runs above each normalised return: the higher a line, the better its method (bands: over seeds)."""
    figure, (axes,) = new_figure(3.2)
    every = np.concatenate([r for scores in runs.values() for seed in scores for r in seed])
    levels = np.linspace(max(-0.1, float(every.min())), float(np.quantile(every, 0.999)) + 0.02, 201)
    for method, (color, _) in (styles or method_styles(runs)).items():
        value, low, high = profile(runs[method], levels)
        axes.plot(levels, 100 * value, color=color, label=method)
        axes.fill_between(levels, 100 * low, 100 * high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("normalised return")
    axes.set_ylabel("runs above it, %")
    legend_below(figure, axes)
    return figure
