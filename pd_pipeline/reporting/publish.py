"""A small copy of a run's numbers, to keep in version control: results/<family>/."""

from pathlib import Path
from typing import Any

import polars as pl

from pd_pipeline.evaluation.scores import method_metrics
from pd_pipeline.graph import Graph, load
from pd_pipeline.rendering import address
from pd_pipeline.reporting.plots import stage_plots
from pd_pipeline.reporting.provenance import effective_parameters, git_revision, machine, versions
from pd_pipeline.stage import Key
from pd_pipeline.storage import COST_FILE, atomic_directory, atomic_file, digest, read_json, write_json


def publish(root: Path, family: str, destination: Path) -> list[Path]:
    """Write metrics, scores, fit, plots and what made them into `destination`; returns the files."""
    graph = load(root)
    params = graph.params
    with atomic_directory(destination) as folder:
        tables: list[pl.DataFrame] = []
        sources: dict[str, str] = {}
        summaries: dict[str, list[dict[str, Any]]] = {}
        seconds: dict[str, float] = {}
        for seed in params.run.seeds:
            evaluation = graph.root / graph.out("evaluation", Key(family, None, seed))
            tables.append(pl.read_parquet(evaluation / "scores.parquet"))
            sources[evaluation.relative_to(graph.root).as_posix()] = digest(evaluation)
            metrics = read_json(evaluation / "metrics.json")
            write_json(folder / f"metrics-{seed}.json", metrics)
            write_json(folder / f"fit-{seed}.json", read_json(evaluation / "fit.json"))
            for title, png in stage_plots("evaluation", evaluation).items():
                with atomic_file(folder / f"{title.lower().replace(' ', '-')}-{seed}.png") as file:
                    file.write_bytes(png)
            for method, values in metrics["methods"].items():
                seconds[method] = seconds.get(method, 0.0) + values["seconds"]
                summaries.setdefault(method, []).append(values)
        scores = pl.concat(tables)
        with atomic_file(folder / "scores.csv") as file:
            scores.write_csv(file)
        write_json(folder / "metrics.json", {"methods": method_metrics(scores, summaries, seconds, 0, 2000)})
        write_json(folder / "provenance.json", _provenance(graph, family) | {"digests": sources})
    return sorted(destination.iterdir())


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
        "machine": machine(),
        "seconds": costs,
    }
