"""Scores to compare: those of a project, or of files that evaluations, studies and published results leave."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pd_pipeline import lineage
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph

NEEDED = ("method", "task", "seed", "prompt", "return")


def of_project(graph: Graph) -> dict[str, pl.DataFrame]:
    """Family -> scores of all its seeds. Raises PipelineError where a family's evaluation is not made."""
    found = {}
    for family in graph.params.run.families:
        if graph.family(family).is_recorded:
            continue  # scored offline, without returns
        keys = [key for key in graph.keys("evaluation") if key.family == family]
        if missing := [key for key in keys if not lineage.is_current(graph, "evaluation", key)]:
            raise PipelineError(f"evaluation {missing[0]} is not made, or out of date: run `pd-pipeline run all` first")
        files = [graph.root / graph.out("evaluation", key) / "scores.parquet" for key in keys]
        found[family] = pl.concat([pl.read_parquet(file) for file in files], how="diagonal_relaxed")
    if not found:
        raise PipelineError("compare: no family here has a simulator: offline scores are no returns")
    return found


def of_files(files: Sequence[Path], point: int | None = None) -> dict[str, pl.DataFrame]:
    """Family -> scores, from scores.csv or scores.parquet of evaluations, studies or published results.

    A file without a column `family` is named by its folder. Raises PipelineError for a file that is not one of these,
    for scores that two files have, and where a study has several points and `point` does not say which.
    """
    found: dict[str, list[pl.DataFrame]] = {}
    seen: dict[tuple[str, str, int, int], Path] = {}
    for file in files:
        table = _at_point(file, _read(file), point)
        if "family" not in table.columns:
            table = table.with_columns(pl.lit(_family_of(file, table)).alias("family"))
        for cell in table.select("family", "method", "seed", "task").unique().sort(pl.all()).rows():
            if cell in seen:
                family, method, seed, task = cell
                raise PipelineError(
                    f"{file}: has scores of {family}, {method}, seed {seed}, task {task}, as {seen[cell]} does: "
                    "compare them one by one"
                )
            seen[cell] = file
        for (family,), part in table.group_by("family", maintain_order=True):
            found.setdefault(str(family), []).append(part.select(NEEDED))
    return {family: pl.concat(parts, how="vertical_relaxed") for family, parts in found.items()}


def _at_point(file: Path, table: pl.DataFrame, point: int | None) -> pl.DataFrame:
    if "point" not in table.columns:
        if point is not None:
            raise PipelineError(f"{file}: these are no scores of a study: leave out --point")
        return table
    points = sorted(table["point"].unique().to_list())
    if point is None and len(points) > 1:
        raise PipelineError(f"{file}: a study of {len(points)} points: choose one with --point, 0 to {points[-1]}")
    if point is not None and point not in points:
        raise PipelineError(f"{file}: no point {point}: choose one from 0 to {points[-1]}")
    return table.filter(pl.col("point") == (points[0] if point is None else point))


def _family_of(file: Path, table: pl.DataFrame) -> str:
    """The name of the folder, without the seed that the folder of an evaluation ends with."""
    folder, seeds = file.absolute().parent.name, table["seed"].unique().to_list()
    return folder.removesuffix(f"-{seeds[0]}") if len(seeds) == 1 else folder


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
