"""From a file in the drop zone to a policy in use, by one command."""

import json
import shutil
from pathlib import Path

import pytest

from pd_pipeline import graph, load_policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import read_json
from tests.accepted import drop
from tests.dvc_project import (
    SMALL_PARAMS,
    call,
    change,
    definitions,
    definitions_by_dvc,
    invoke,
    make_project,
    start,
)

pytestmark = [pytest.mark.xdist_group("retuning"), pytest.mark.usefixtures("undrawn")]  # all is made once
NEW = 57
PARAMS = (
    SMALL_PARAMS.replace("noise_prompt]}", "noise_prompt, many], variants: {many: prompt_dt}}")
    .replace("    tuned_prompt_dt", "    target: {few_shot: 2}\n    tuned_prompt_dt")
    .replace("    tuned_noise_prompt", "    tuned_many: {target: {few_shot: 6}}\n    tuned_noise_prompt")
)
"""The variant wants more trajectories than the methods."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("retuning"), PARAMS)
    invoke(root, "run", "all")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A project in which all is made."""
    return shutil.copytree(made, tmp_path / "project", symlinks=True)


def out_of_date(root: Path) -> list[str]:
    """The pieces that DVC names as stale."""
    return sorted(json.loads(call(root, "dvc", "status", "--json")))


def done(text: str) -> list[str]:
    """The pieces that a command did."""
    return [line.removesuffix(": done") for line in text.splitlines() if line.endswith(": done")]


def page(root: Path) -> str:
    return (root / "data/reports/index.html").read_text()


def test_outside_a_dvc_project_nothing_is_done_twice(root: Path) -> None:
    shutil.rmtree(root / ".dvc")
    drop(root, NEW, 1)
    text = invoke(root, "ingest")
    assert "report" in done(text)
    assert str(root / "data/reports/index.html") in text.splitlines()
    assert done(invoke(root, "ingest")) == []
    text = invoke(root, "run", "all")
    assert [line for line in text.splitlines() if ": up to date" not in line] == [str(root / "data/reports/index.html")]
    drop(root, NEW, 2)
    assert "tuned_prompt_dt other-57-0" in done(invoke(root, "ingest"))


def test_a_new_target_and_then_more_data_of_it(root: Path) -> None:
    drop(root, NEW, 1)
    text = call(root, "pd-pipeline", "ingest")
    assert "data/incoming/other/57/1.parquet: accepted: data/ingested/other/57/0001-expert.parquet: 4 episodes" in text
    made = ["target_data other-57", "tuned_prompt_dt other-57-0", "tuned_noise_prompt other-57-0"]
    assert done(text) == [*made, "target_evaluation other-57-0", "report"], "and no PLM, and no other target"
    assert "other-57: promoted: it is the first one" in text
    assert load_policy(root / "data/promoted/other-57").description.task == NEW
    assert out_of_date(root) == []
    project = graph.load(root)
    assert definitions(project) == definitions_by_dvc(project)
    assert "many: 4 of 6 trajectories of quality expert" in page(root), "a method that lacks data is left out"
    assert read_json(root / "data/reports/metrics.json")["other-57"].keys() == {"prompt_dt", "noise_prompt"}
    assert "tuned_prompt_dt@other-57-0" in (root / "dvc.lock").read_text()
    assert "other-57: version 1 since" in invoke(root, "status")

    quiet = invoke(root, "ingest")
    assert done(quiet) == []
    assert "promoted" not in quiet

    drop(root, NEW, 2)
    text = invoke(root, "ingest")
    assert "0002-expert.parquet: 4 episodes" in text
    assert "action loss on" in text, "nothing can simulate this target"
    decision = read_json(root / "data/promoted/other-57/decisions/0002.json")
    assert decision["measure"] == "action_loss"
    assert decision["outcome"] in ("promoted", "refused")
    assert f"other-57: {decision['outcome']}: " in text
    assert "tuned_many other-57-0" in done(text), "now it has enough"
    assert decision["reason"] in page(root)
    assert read_json(root / "data/reports/metrics.json")["other-57"].keys() == {"prompt_dt", "noise_prompt", "many"}
    assert out_of_date(root) == []

    invoke(root, "promote", "point_robot-1")
    assert out_of_date(root) == ["report"], "it shows the decisions"
    call(root, "dvc", "repro", "--quiet")
    assert out_of_date(root) == []
    assert '<tr><td>point_robot-1</td>\n<td class="text">version 1' in page(root)


def test_too_little_data_waits(root: Path) -> None:
    drop(root, NEW, 1, episodes=1)
    text = invoke(root, "ingest")
    assert "other-57: waits: 1 of 2 trajectories of quality expert" in text
    status = invoke(root, "status")
    assert "other-57: nothing in use" in status
    assert "waits: 1 of 2 trajectories of quality expert" in status
    assert done(text) == ["target_data other-57", "report"]
    assert "prompt_dt, noise_prompt: 1 of 2 trajectories of quality expert" in page(root)
    assert out_of_date(root) == []


def test_more_data_of_a_benchmark_target_tunes_for_it_alone(root: Path) -> None:
    drop(root, 3, 1)
    text = invoke(root, "ingest")
    tuned = [f"tuned_{method} other-3-0" for method in ("prompt_dt", "noise_prompt", "many")]
    assert done(text) == ["target_data other-3", *tuned, "target_evaluation other-3-0", "report"]
    assert out_of_date(root) == ["evaluation@other-0"], "the comparison of all targets"
    assert "other-3: promoted: it is the first one" in text


def test_a_target_waits_if_too_few_trajectories_are_left_to_compare_policies_on(root: Path) -> None:
    drop(root, NEW, 1, episodes=3)
    assert "other-57: promoted" in invoke(root, "ingest")
    change(root, "  other:\n    <<: *tiny", "  other:\n    <<: *tiny\n    target: {few_shot: 2, choose: newest}")
    text = invoke(root, "ingest")
    assert "other-57: waits: " in text
    assert "that an interval needs are left to be scored on" in text
    change(root, "target: {few_shot: 2,", "target: {few_shot: 0,")
    with pytest.raises(PipelineError, match=r"^params\.yaml: families\.other\.target\.few_shot: Input"):
        graph.load(root)


def test_a_bad_file_and_a_missing_evaluation_do_not_hold_up_a_good_file(root: Path) -> None:
    drop(root, NEW, 1)
    shutil.rmtree(root / "data/evaluation/point_robot-0")
    bad = root / "data/incoming/other/58/bad.parquet"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"nothing")
    bad.with_name("bad.parquet.done").touch()
    process = start(root, "pd-pipeline", "ingest")
    text, _ = process.communicate()
    assert process.returncode == 1
    assert "bad.parquet: quarantined: not a readable Parquet file" in text
    assert "other-57: promoted" in text
    assert "report: waits for evaluation point_robot-0: run `pd-pipeline run all`" in text
    assert (root / "data/quarantine/other/58/bad.parquet.reason.txt").is_file()
    status = invoke(root, "status")
    assert "\nin data/quarantine/:\n  data/incoming/other/58/bad.parquet: not a readable Parquet file" in status
