"""What one out of a stage can show of itself, as PNG: for Dagster and for the folders of published numbers.

Each function takes an out and gives figures by title, none where there is nothing to draw; `stages` names them.
"""

import pkgutil
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from pd_pipeline.evaluation import offline_results, results
from pd_pipeline.reporting.canvas import BLUE, png
from pd_pipeline.reporting.curves import (
    LOGGED,
    guidance_gradients,
    guidance_losses,
    learning_curves,
    logged,
    tuning_curves,
)
from pd_pipeline.reporting.gather import phase, read_table
from pd_pipeline.reporting.plots import (
    comparison,
    data_coverage,
    data_returns,
    fit_distances,
    offline_comparison,
    offline_per_task,
    per_task,
)
from pd_pipeline.reporting.study import figure, load, searched
from pd_pipeline.storage import read_json

Figures = dict[str, Figure]


def drawn(plots: str, out: Path) -> dict[str, bytes]:
    """PNG by title of an out, by the function that is named as `module:function`."""
    return {title: png(figure) for title, figure in pkgutil.resolve_name(plots)(out).items()}


def trajectories(out: Path) -> Figures:
    """Returns of the data, and how much of the state space they visit."""
    summary = read_json(out / "summary.json")
    return {"returns": data_returns(summary), "states visited and episodes lost": data_coverage(summary)}


def training(out: Path) -> Figures:
    """Losses of a pre-training."""
    return {"learning curves": learning_curves({0: read_table(out / "losses.csv")})}


def tuning(out: Path) -> Figures:
    """What a method logged; nothing where it logs nothing."""
    if not (out / "log.csv").exists():
        return {}
    table = read_table(out / "log.csv")
    if "l_dt" not in table:
        return {LOGGED[logged([table])][0]: tuning_curves([table], BLUE)}
    figures = {"L_DM and L_DT": guidance_losses([table]), "gradients": guidance_gradients([table])}
    if "return" in table:  # episodes after the gradient steps
        tried = phase(table, int(table["phase"].max()))
        figures[LOGGED[logged([tried])][0]] = tuning_curves([tried], BLUE)
    return figures


def evaluation(out: Path) -> Figures:
    """Scores of all methods, together and per task; offline where no simulator knows the targets."""
    if offline_results.is_offline(out / "metrics.json"):
        offline = offline_results.load_offline(out / "metrics.json").methods
        if not offline:
            return {}
        return {
            f"offline: {results.OFFLINE}": offline_comparison(offline),
            f"offline: {results.OFFLINE}, per task": offline_per_task(offline),
        }
    metrics = results.load(out / "metrics.json").methods
    scores = pl.read_parquet(out / "scores.parquet")
    return {"comparison": comparison(metrics), "per task": per_task(scores, list(metrics))}


def study(out: Path) -> Figures:
    """The curve or the intervals of a study, per family, and return against episodes where methods searched."""
    figures = {}
    for found in load(out):
        figures[f"{found.title} {found.family}"] = figure(found)
        figures |= {f"{found.family} {found.points[number].label} episodes": image for number, image in searched(found)}
    return figures


def prompt_fit(out: Path) -> Figures:
    """Distances of generated prompts from real ones."""
    return {"fit of generated prompts": fit_distances([read_json(out / "fit.json")])}
