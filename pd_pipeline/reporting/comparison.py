"""Tables and figures that compare all methods, ready for a paper: text, Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.evaluation.comparison import ALL, Compared, compared, normalised, over_families, profile
from pd_pipeline.evaluation.scores import CEILING, FLOOR, by_task, check_complete
from pd_pipeline.evaluation.statistics import Estimate, Scores
from pd_pipeline.graph import Graph, is_made
from pd_pipeline.reporting.canvas import Styles, legend_below, method_styles, new_figure, styled
from pd_pipeline.reporting.formatting import number

Format = Literal["text", "markdown", "latex", "csv"]
COLUMNS = ("family", "method", "seeds", "targets", "IQM", "P(better)", "difference", "p", "p corrected", "verdict")
NEEDED = ("method", "task", "seed", "prompt", "return")


def of_project(graph: Graph) -> dict[str, pl.DataFrame]:
    """Family -> scores of all its seeds. Raises PipelineError where a family's evaluation is not made."""
    found = {}
    for family in graph.params.run.families:
        keys = [key for key in graph.keys("evaluation") if key.family == family]
        if missing := [key for key in keys if not is_made(graph, "evaluation", key)]:
            raise PipelineError(f"evaluation {missing[0]} is not made, or out of date: run `pd-pipeline run all` first")
        files = [graph.root / graph.out("evaluation", key) / "scores.parquet" for key in keys]
        found[family] = pl.concat([pl.read_parquet(file) for file in files], how="diagonal_relaxed")
    return found


def of_files(files: Sequence[Path], point: int | None = None) -> dict[str, pl.DataFrame]:
    """Family -> scores, from scores.csv or scores.parquet of evaluations, studies or published results.

    A file without a column `family` is named by its folder. Raises PipelineError for a file that is not one of these,
    and where a study has several points and `point` does not say which.
    """
    found: dict[str, list[pl.DataFrame]] = {}
    for file in files:
        table = _read(file)
        if "point" in table.columns:
            points = sorted(table["point"].unique().to_list())
            if point is None and len(points) > 1:
                raise PipelineError(
                    f"{file}: a study of {len(points)} points: choose one with --point, 0 to {points[-1]}"
                )
            if point is not None and point not in points:
                raise PipelineError(f"{file}: no point {point}: choose one from 0 to {points[-1]}")
            table = table.filter(pl.col("point") == (points[0] if point is None else point))
        if "family" not in table.columns:
            table = table.with_columns(pl.lit(file.absolute().parent.name).alias("family"))
        for (family,), part in table.group_by("family", maintain_order=True):
            found.setdefault(str(family), []).append(part.select(NEEDED))
    return {family: pl.concat(parts) for family, parts in found.items()}


def _read(file: Path) -> pl.DataFrame:
    try:
        table = pl.read_csv(file, infer_schema_length=None) if file.suffix == ".csv" else pl.read_parquet(file)
    except FileNotFoundError:
        raise PipelineError(f"{file}: no such file") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise PipelineError(f"{file}: no table of scores: {error}") from None
    if missing := [column for column in NEEDED if column not in table.columns]:
        raise PipelineError(f"{file}: no table of scores: it has no column '{missing[0]}'")
    return table


def on_one_scale(
    scores: Mapping[str, pl.DataFrame], floor: str = FLOOR, ceiling: str = CEILING
) -> dict[str, dict[str, Scores]]:
    """Family -> method -> normalised runs; with several families `ALL` too. Raises PipelineError."""
    families = {}
    for family, table in scores.items():
        methods = table["method"].unique(maintain_order=True).to_list()
        for name in (floor, ceiling):
            _known(name, methods, family)
        check_complete(table, methods)
        families[family] = normalised({method: by_task(table, method) for method in methods}, floor, ceiling, family)
    return families | ({ALL: over_families(families)} if len(families) > 1 else {})


def _known(name: str, methods: Sequence[str], family: str) -> None:
    if name not in methods:
        raise PipelineError(f"{family}: no scores of '{name}': {suggestion(name, sorted(methods))}")


def rows(scale: Mapping[str, Mapping[str, Scores]], reference: str, draws: int = 2000) -> list[Compared]:
    """Every method against `reference`, family by family."""
    found = []
    for family, runs in scale.items():
        _known(reference, list(runs), family)
        found += compared(family, runs, reference, np.random.default_rng(0), draws)
    return found


def table(found: Sequence[Compared], form: Format) -> str:
    """The rows as text, Markdown, LaTeX (booktabs) or CSV, which has the numbers in full."""
    if form == "csv":
        return _csv(found)
    cells = [_cells(row) for row in found]
    if form == "latex":
        return _latex(cells)
    if form == "markdown":
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
