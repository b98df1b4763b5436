"""A small copy of a run's numbers, to keep in version control: results/<family>/."""

from pathlib import Path
from typing import Any

import polars as pl

from pd_pipeline.evaluation.scores import method_metrics
from pd_pipeline.graph import Graph, load
from pd_pipeline.rendering import address
from pd_pipeline.reporting.canvas import png
from pd_pipeline.reporting.plots import comparison, per_task, stage_plots
from pd_pipeline.reporting.provenance import effective_parameters, git_revision, machine, stage_parameters, versions
from pd_pipeline.stage import Key
from pd_pipeline.storage import COST_FILE, atomic_directory, atomic_file, digest, read_json, write_json


def publish(root: Path, family: str, destination: Path) -> list[Path]:
    """Write metrics, scores, fit, data quality, plots and what made them into `destination`; returns the files."""
    graph = load(root)
    params = graph.params
    with atomic_directory(destination) as folder:
        tables: list[pl.DataFrame] = []
        summaries: dict[str, list[dict[str, Any]]] = {}
        seconds: dict[str, float] = {}
        for seed in params.run.seeds:
            evaluation = graph.root / graph.out("evaluation", Key(family, None, seed))
            tables.append(pl.read_parquet(evaluation / "scores.parquet"))
            metrics = read_json(evaluation / "metrics.json")
            write_json(folder / f"metrics-{seed}.json", metrics)
            write_json(folder / f"fit-{seed}.json", read_json(evaluation / "fit.json"))
            _draw(folder, stage_plots("evaluation", evaluation), f"-{seed}")
            for method, values in metrics["methods"].items():
                seconds[method] = seconds.get(method, 0.0) + values["seconds"]
                summaries.setdefault(method, []).append(values)
        scores = pl.concat(tables)
        with atomic_file(folder / "scores.csv") as file:
            scores.write_csv(file)
        draws = stage_parameters(params, family, "evaluation")["bootstrap"]
        pooled = method_metrics(scores, summaries, seconds, params.run.seeds[0], draws)
        write_json(folder / "metrics.json", {"methods": pooled})
        _draw(folder, {"comparison": png(comparison(pooled)), "per task": png(per_task(scores, list(pooled)))})
        data = graph.root / graph.out("trajectories", Key(family))
        write_json(folder / "data.json", read_json(data / "summary.json"))
        _draw(folder, {f"data {title}": drawn for title, drawn in stage_plots("trajectories", data).items()})
        write_json(folder / "provenance.json", _provenance(graph, family))
    return sorted(destination.iterdir())


def _draw(folder: Path, plots: dict[str, bytes], suffix: str = "") -> None:
    for title, drawn in plots.items():
        with atomic_file(folder / f"{title.lower().replace(' ', '-')}{suffix}.png") as file:
            file.write_bytes(drawn)


def _provenance(graph: Graph, family: str) -> dict[str, Any]:
    pieces = [(stage, key) for stage in graph.stages for key in graph.keys(stage) if key.family == family]
    costs = {
        address(stage, key): read_json(graph.root / graph.out(stage, key) / COST_FILE)["seconds"]
        for stage, key in pieces
        if (graph.root / graph.out(stage, key) / COST_FILE).exists()
    }
    return {
        "command": "pd-pipeline run all",
        "seeds": list(graph.params.run.seeds),
        "parameters": effective_parameters(graph.params, family, graph.root),
        "versions": versions(),
        "revision": git_revision(graph.root),
        "published_with": git_revision(Path(__file__).parents[2]),  # pools seeds and draws
        "machine": machine(),
        "seconds": costs,
        "digests": {
            address(stage, key): digest(graph.root / graph.out(stage, key))
            for stage, key in pieces
            if not stage.startswith("tuned_")
        },
    }
