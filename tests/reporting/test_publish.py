"""The small copy of a run's numbers."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation import results
from pd_pipeline.evaluation.results import Given, MethodResult, TaskResult
from pd_pipeline.evaluation.statistics import Estimate
from pd_pipeline.graph import load
from pd_pipeline.reporting.costs import table
from pd_pipeline.reporting.publish import given_to, metrics_of, publish, read_scores, recompute
from pd_pipeline.storage import digest, read_json, write_json
from tests.evaluation.builders import FREE
from tests.recorded_project import record_project


def test_numbers_plots_and_what_made_them_are_copied(reported_project: Path, tmp_path: Path) -> None:
    files = publish(reported_project, "point_robot", tmp_path / "results")
    names = {file.name for file in files}
    assert {"metrics.json", "metrics-0.json", "fit-0.json", "scores.csv", "provenance.json"} <= names
    assert {"comparison-0.png", "per-task-0.png", "fit-of-generated-prompts-0.png"} <= names
    evaluation = reported_project / "data/evaluation/point_robot-0"
    folder = tmp_path / "results/point_robot"
    assert len(pl.read_csv(folder / "scores.csv")) == len(pl.read_parquet(evaluation / "scores.parquet"))
    ours, theirs = (read_json(file)["methods"] for file in (folder / "metrics.json", evaluation / "metrics.json"))
    assert ours == theirs, "one seed, the same draws"
    assert read_json(folder / "metrics.json")["precision"] == "float32"
    assert (folder / "params.yaml").read_text() == (reported_project / "params.yaml").read_text()
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
    assert made["device"]["plm@point_robot-0"] == "cpu"
    assert made["precision"]["evaluation@point_robot-0"] == "float32"


def test_offline_scores_are_not_published_as_returns(trained_project: Path, tmp_path: Path) -> None:
    root = record_project(trained_project, tmp_path / "project")
    with pytest.raises(PipelineError, match="family 'my_robot' has no simulator: its scores are offline"):
        publish(root, "my_robot", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_uncommitted_code_or_parameters_are_not_published(reported_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(reported_project, root)
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for arguments in (("init", "-q"), ("add", "params.yaml"), (*who, "commit", "-q", "-m", "parameters")):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    assert publish(root, "point_robot", tmp_path / "good")
    (root / "params.yaml").write_text((root / "params.yaml").read_text() + "# another\n")
    with pytest.raises(PipelineError, match=r"publish: code or parameters of .*project are not committed"):
        publish(root, "point_robot", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_what_runs_nowhere_is_not_published(reported_project: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"'reach' is no family or study that runs here: choose one of point_robot"):
        publish(reported_project, "reach", tmp_path)


def test_metrics_follow_from_what_is_kept(reported_project: Path, tmp_path: Path) -> None:
    publish(reported_project, "point_robot", tmp_path)
    folder = tmp_path / "point_robot"
    before = {name: (folder / name).read_bytes() for name in ("metrics.json", "metrics-0.json")}
    assert metrics_of(folder).keys() == before.keys()
    recompute(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    scores = read_scores(folder).with_columns(pl.col("return") + 5)
    scores.write_csv(folder / "scores.csv")
    earlier = results.load(folder / "metrics.json").methods
    moved = metrics_of(folder)["metrics.json"].methods
    assert moved.keys() == earlier.keys()
    assert all(abs(moved[m].mean.value - earlier[m].mean.value - 5) < 1e-9 for m in moved)


def test_a_piece_without_a_record_has_no_seconds(reported_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(reported_project, root)
    (root / "data/records/plm/point_robot-0.json").unlink()
    publish(root, "point_robot", tmp_path)
    made = read_json(tmp_path / "point_robot/provenance.json")
    assert made["seconds"]["plm@point_robot-0"] is made["device"]["plm@point_robot-0"] is None
    assert made["seconds"]["diffuser@point_robot-0"] > 0


def test_costs_sum_the_records_of_each_stage(reported_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(reported_project, root)
    for task, seconds in ((1, 1000.0), (4, 500.5)):
        file = root / f"data/records/tuned_prompt_dt/point_robot-{task}-0.json"
        write_json(file, read_json(file) | {"seconds": seconds})
    (root / "data/records/tuned_prompt_gradient/point_robot-4-0.json").unlink()
    rows = {row[1].strip(): [cell.strip() for cell in row] for row in table(load(root))}
    assert rows["tuned_prompt_dt"] == ["point_robot", "tuned_prompt_dt", "2 of 2", "1,500.5", "cpu", "float32"]
    assert rows["tuned_prompt_gradient"][2] == "1 of 2"
    assert rows["evaluation"][2:] == ["1 of 1", rows["evaluation"][3], "cpu", "float32"]
    shutil.rmtree(root / "data/records/plm")
    gone = {row[1].strip(): [cell.strip() for cell in row] for row in table(load(root))}
    assert gone["plm"] == ["point_robot", "plm", "0 of 1", "-", "-", "-"]


def test_old_runs_are_told_from_their_parameters_and_nothing_is_invented(tmp_path: Path) -> None:
    parameters = {"tuned_full_finetune_all": {"quality": "expert", "few_shot": None}}
    parameters["tuned_prompt_diffuser_medium"] = {"quality": "medium", "few_shot": 3, "candidates": 64, "chain": 3}
    write_json(tmp_path / "data.json", {"expert": {"tasks": {"1": {"episodes": 7}, "2": {"episodes": 7}}}})
    tasks = {1: TaskResult(0.0), 2: TaskResult(0.0)}
    certain = Estimate(0.0, 0.0, 0.0)
    old = MethodResult(given=Given("x"), mean=certain, iqm=certain, episodes=2, costs=FREE, tasks=tasks)
    assert given_to(tmp_path, {"parameters": parameters}, "full_finetune_all", old) == Given(
        "full_finetune", frozen=False, quality="expert", few_shot=7
    )
    assert given_to(tmp_path, {"parameters": parameters}, "prompt_diffuser_medium", old) == Given(
        "prompt_diffuser", frozen=True, quality="medium", few_shot=3, candidates=64, chain=3
    )
    recorded = Given("x", quality="random")
    assert given_to(tmp_path, {"parameters": {}}, "x", replace(old, given=recorded)) == recorded


def test_metrics_that_record_less_are_made_again_from_the_parameters(reported_project: Path, tmp_path: Path) -> None:
    """The oldest published files, and what their recomputation adds to them."""
    folder = tmp_path / "point_robot"
    publish(reported_project, "point_robot", tmp_path)
    today = metrics_of(folder)["metrics-0.json"]
    provenance = read_json(folder / "provenance.json")
    for stage, block in provenance["parameters"].items():
        for name in ("few_shot", "quality") if stage.startswith("tuned_") else ():
            block[name] = block.pop(f"target.{name}")
    write_json(folder / "provenance.json", provenance)
    file = read_json(folder / "metrics-0.json")
    del file["precision"]
    for values in file["methods"].values():
        for name in ("method", "frozen", "quality", "few_shot", "shown", "candidates", "chain", "normalized_low"):
            del values[name]
        for name in ("normalized_high", "difference_to_full_finetune", "difference_to_prompt_dt", "share"):
            del values[name]
        del values["difference_to_prompt_diffuser"]["reference"]
    write_json(folder / "metrics-0.json", file)
    again = metrics_of(folder)["metrics-0.json"]
    assert again.precision is None
    assert again.methods.keys() == today.methods.keys()
    for method, result in again.methods.items():
        assert replace(result, given=today.methods[method].given) == today.methods[method]
        assert (result.given.quality, result.given.few_shot) == ("expert", 5)
