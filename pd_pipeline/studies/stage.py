"""Stage study_<name>: collect the results of all points of a study.

study.json      title, note, parameters of the grid; per point and family the results of every method over all seeds
scores.parquet  the scores of all points, with a column `point`, numbered from zero
searches.parquet  best return so far over the episodes of every method that logs it, if one does; `point` as above
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pd_pipeline.evaluation.results import Evaluation, Metrics, Tuned, from_json, to_json
from pd_pipeline.evaluation.scores import by_task, method_metrics, tuned_of
from pd_pipeline.evaluation.stage import Params as EvaluationParams
from pd_pipeline.evaluation.statistics import paired_difference
from pd_pipeline.stage import Key, StageContext
from pd_pipeline.storage import atomic_file, read_json, write_json
from pd_pipeline.studies.plan import Plan, PlannedPoint
from pd_pipeline.tuning import summary

Params = Plan
FILE, SEARCHES = "study.json", "searches.parquet"


def run(context: StageContext) -> dict[str, Any]:
    """Write `study.json`, `scores.parquet` and, if a method searched by return, `searches.parquet`."""
    plan: Plan = context.params
    tables: list[pl.DataFrame] = []
    searches: list[pl.DataFrame] = []
    points: list[dict[str, Any]] = []
    first: dict[str, pl.DataFrame] = {}
    for number, point in enumerate(plan.points):
        families: dict[str, Any] = {}
        for family, targets in point.targets.items():
            folders = [context.root / point.evaluation[str(Key(family, None, seed))] for seed in point.seeds]
            scores = pl.concat([pl.read_parquet(folder / "scores.parquet") for folder in folders])
            tables.append(scores.with_columns(pl.lit(number).alias("point"), pl.lit(family).alias("family")))
            found = _searches(context.root, point, family, targets)
            searches += [
                table.with_columns(pl.lit(number).alias("point"), pl.lit(family).alias("family")) for table in found
            ]
            draws = point.bootstrap[family] or EvaluationParams().bootstrap
            metrics = method_metrics(scores, _tuned(context.root, point, family, targets), point.seeds[0], draws)
            families[family] = to_json(Evaluation(metrics)) | {
                "to_first": _differences(scores, first.setdefault(family, scores), point.seeds[0], draws),
                "fit": _fit(context.root, point, family, targets),
            }
        listed = {"label": point.label, "values": point.values, "seeds": point.seeds, "methods": list(point.tuned)}
        points.append(listed | {"families": families})
    write_json(context.out / FILE, {"title": plan.title, "note": plan.note, "names": plan.names, "points": points})
    with atomic_file(context.out / "scores.parquet") as temporary:
        pl.concat(tables, how="diagonal_relaxed").write_parquet(temporary)
    if searches:
        with atomic_file(context.out / SEARCHES) as temporary:
            pl.concat(searches).write_parquet(temporary)
    return {"points": len(points)}


def _tuned(root: Path, point: PlannedPoint, family: str, targets: tuple[int, ...]) -> dict[str, list[Tuned]]:
    """Method -> the summaries of its tuned outs, one per seed and target."""
    return {
        method: [
            tuned_of(summary.load(root / folders[str(Key(family, None, seed))] / str(task)), task)
            for seed in point.seeds
            for task in targets
        ]
        for method, folders in point.tuned.items()
    }


def _searches(root: Path, point: PlannedPoint, family: str, targets: tuple[int, ...]) -> list[pl.DataFrame]:
    """The steps (episodes) and the best return so far that methods logged, one table per method, seed and target."""
    found = []
    for method, folders in point.tuned.items():
        for seed in point.seeds:
            for task in targets:
                log = root / folders[str(Key(family, None, seed))] / str(task) / "log.csv"
                if log.is_file() and "best" in (table := pl.read_csv(log, infer_schema_length=None)).columns:
                    about = {"method": method, "seed": seed, "task": task}
                    rows = table.select(pl.col("step").cast(pl.Int64), pl.col("best").cast(pl.Float64))
                    rows = rows.drop_nulls()  # steps of another kind, before the episodes
                    found.append(rows.with_columns(pl.lit(value).alias(name) for name, value in about.items()))
    return found


def _differences(scores: pl.DataFrame, first: pl.DataFrame, seed: int, draws: int) -> dict[str, Any]:
    """Method -> difference of its mean return to that at the first point, paired by seed and target."""
    same = (
        scores.select("seed", "task")
        .unique()
        .sort("seed", "task")
        .equals(first.select("seed", "task").unique().sort("seed", "task"))
    )
    methods = [m for m in scores["method"].unique(maintain_order=True) if m in first["method"].unique()] if same else []
    return {
        method: paired_difference(
            by_task(scores, method), by_task(first, method), np.random.default_rng(seed), draws
        )._asdict()
        for method in methods
    }


def _fit(root: Path, point: PlannedPoint, family: str, targets: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """State of a tuned diffuser -> median distances to the nearest real prompt, averaged over targets and seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in point.seeds:
        if (folder := point.fits.get(str(Key(family, None, seed)))) is None:
            continue
        fits = read_json(root / folder / "fit.json")["targets"]
        for task in targets:
            for state, values in fits.get(str(task), {}).items():
                for name in (name for name in values if name.startswith("nearest_")):
                    found.setdefault(state, {}).setdefault(name, []).append(values[name])
    return {state: {name: float(np.mean(each)) for name, each in of.items()} for state, of in found.items()}


def load_metrics(family: dict[str, Any], where: str) -> Metrics:
    """The results of one family at one point of `study.json`. `where` names it in errors."""
    return from_json({"methods": family["methods"]}, where).methods
