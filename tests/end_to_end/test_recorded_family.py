"""A family without a simulator goes through all stages, by the command line, DVC and Dagster."""

import re
from pathlib import Path

import dagster as dg
import pytest

from assets.definitions import build
from pd_pipeline.clean import clean
from pd_pipeline.storage import digest, read_json
from tests.dvc_project import call, dvc, make_project, write_graph
from tests.recorded_project import FAMILY, FOLDER, RECORDED_PARAMS, record, record_project

PARAMS = RECORDED_PARAMS.replace("prompt_dt, full_finetune, noise_prompt", "prompt_dt")
OUT = Path(f"data/evaluation/{FAMILY}-0")


@pytest.fixture
def root(trained_project: Path, tmp_path: Path) -> Path:
    return record_project(trained_project, make_project(tmp_path / "project", PARAMS), PARAMS)


def test_all_doors(root: Path, trained_project: Path) -> None:
    brought = digest(root / FOLDER)
    call(root, "pd-pipeline", "run", "all")
    the_page_shows_no_return_of_a_method(root)
    assert dvc(root, "status").strip() == "Data and pipelines are up to date."
    a_new_file_makes_the_trajectories_stale_in_dvc(root, trained_project)
    with dg.DagsterInstance.ephemeral() as instance:
        dagster_says_that_the_scores_are_offline(root, instance)
    (root / FOLDER / "more.parquet").unlink()
    list(clean(root))
    assert digest(root / FOLDER) == brought
    assert not (root / "data/trajectories").exists()


def the_page_shows_no_return_of_a_method(root: Path) -> None:
    page = re.sub(r"<style>.*?</style>|<details.*?</details>", "", (root / "data/reports/index.html").read_text())
    assert "scored offline: action loss on held-out trajectories" in re.sub(r"<[^>]+>", "", page)
    before_the_data, _, _ = page.partition("<h3>Data</h3>")
    without_saying_so = before_the_data.replace("there are no returns of the methods", "")
    assert "return" not in without_saying_so.replace("A low action loss does not promise a high return", "").lower()
    assert "<h3>Rollouts</h3>" not in page
    assert read_json(root / "data/reports/metrics.json")[FAMILY]["prompt_dt"].keys() == {"offline_action_loss"}


def a_new_file_makes_the_trajectories_stale_in_dvc(root: Path, trained: Path) -> None:
    source = trained / "data/trajectories/point_robot/expert.parquet"
    record(source, root / FOLDER / "more.parquet", [4], shift=50)
    status = dvc(root, "status")
    assert "digests:" in status
    write_graph(root)
    stale = {line.rstrip(":") for line in dvc(root, "status").splitlines() if line and line[0] != "\t"}
    assert stale == {f"trajectories@{FAMILY}"}
    assert "Running stage" in call(root, "dvc", "repro", "--single-item", f"trajectories@{FAMILY}")


def dagster_says_that_the_scores_are_offline(root: Path, instance: dg.DagsterInstance) -> None:
    result = build(root).resolve_job_def("bring_up_to_date").execute_in_process(instance=instance)
    assert result.success
    (event,) = result.asset_materializations_for_node("make_evaluation")
    shown = {title for title in event.metadata if title.startswith("offline: action loss on held-out trajectories")}
    assert len(shown) == 2
    assert not any("return" in title for title in event.metadata)
    for method in read_json(root / OUT / "metrics.json")["methods"].values():
        assert {task: found["trajectories"] for task, found in method["tasks"].items()} == {"1": 4, "4": 11}
