"""The small copy of a run's numbers."""

from pathlib import Path

import polars as pl

from pd_pipeline.reporting.publish import publish
from pd_pipeline.storage import digest, read_json


def test_numbers_plots_and_what_made_them_are_copied(reported_project: Path, tmp_path: Path) -> None:
    files = publish(reported_project, "point_robot", tmp_path / "results" / "point_robot")
    names = {file.name for file in files}
    assert {"metrics.json", "metrics-0.json", "fit-0.json", "scores.csv", "provenance.json"} <= names
    assert {"comparison-0.png", "per-task-0.png", "fit-of-generated-prompts-0.png"} <= names
    evaluation = reported_project / "data/evaluation/point_robot-0"
    folder = tmp_path / "results/point_robot"
    assert len(pl.read_csv(folder / "scores.csv")) == len(pl.read_parquet(evaluation / "scores.parquet"))
    ours, theirs = (read_json(file)["methods"] for file in (folder / "metrics.json", evaluation / "metrics.json"))
    assert ours == theirs, "one seed, the same draws"
    made = read_json(folder / "provenance.json")
    trajectories = reported_project / "data/trajectories/point_robot"
    assert made["digests"]["evaluation@point_robot-0"] == digest(evaluation)
    assert made["digests"]["trajectories@point_robot"] == digest(trajectories)
    assert read_json(folder / "data.json") == read_json(trajectories / "summary.json")
    assert {"comparison.png", "per-task.png", "data-returns.png"} <= names
    assert made["parameters"]["plm"]["steps"] == 60
    assert {"revision", "published_with"} <= made.keys()
    assert made["seconds"]["plm@point_robot-0"] > 0
    assert made["seconds"]["tuned_prompt_diffuser@point_robot-1-0"] > 0
