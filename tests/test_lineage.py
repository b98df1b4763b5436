"""What DVC is told: contract of the parts of dvc that lineage uses, the guard, and two processes at once."""

import os
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pd_pipeline import graph, lineage
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from tests.dvc_project import SMALL_PARAMS, call, change, make_project, start

POLICIES, TRAJECTORIES = "behavior_policies", "trajectories"
KEY = Key("point_robot")

# A family that, while its trajectories are collected, does what the environment variable says to the project.
EDITING_FAMILY = """\
import os
from pathlib import Path

from pd_pipeline.families.point_robot import PointRobot

HERE = Path(__file__).parent


class Own(PointRobot):
    def make(self, task):
        if os.environ.get("EDIT_WHILE_RUNNING"):
            file = HERE / os.environ["EDIT_WHILE_RUNNING"]
            file.write_text(file.read_text().replace("6", "7") + "\\n# edited\\n")
        return super().make(task)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.fixture
def project(root: Path) -> Graph:
    return graph.load(root)


@pytest.fixture
def editing(tmp_path: Path) -> Path:
    """A project whose family edits a file of it while it runs; each test has a module name of its own."""
    name = f"editing_family_{os.getpid()}_{time.monotonic_ns()}"
    text = SMALL_PARAMS.replace("pd_pipeline.families.point_robot:PointRobot", f"{name}:Own").replace(", other]", "]")
    root = make_project(tmp_path, text)
    (root / f"{name}.py").write_text(EDITING_FAMILY)
    lineage.run(graph.load(root), POLICIES, KEY, silent)
    return root


def lock_entry(root: Path, address: str) -> dict | None:
    entry = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"].get(address)
    return dict(entry) if entry else None


def test_work_is_recorded_and_dvc_agrees(root: Path, project: Graph) -> None:
    outcome = lineage.run(project, POLICIES, KEY, silent)
    assert not outcome.skipped
    entry = lock_entry(root, "behavior_policies@point_robot")
    assert entry is not None
    assert entry["outs"][0]["md5"] == outcome.data_version
    assert "up to date" in call(root, "dvc", "status", "behavior_policies@point_robot")
    printed = call(root, "dvc", "repro", "-s", "behavior_policies@point_robot")
    assert "didn't change, skipping" in printed


def test_up_to_date_work_is_skipped_unless_forced(project: Graph) -> None:
    made = lineage.run(project, POLICIES, KEY, silent)
    again = lineage.run(project, POLICIES, KEY, silent)
    assert (again.skipped, again.data_version) == (True, made.data_version)
    assert not lineage.run(project, POLICIES, KEY, silent, force=True).skipped


def test_another_working_directory_is_no_hindrance(
    project: Graph, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    made = lineage.run(project, POLICIES, KEY, silent)
    assert lineage.up_to_date(project, POLICIES, KEY) == made.data_version
    assert lineage.standing(project) == {(POLICIES, KEY): made.data_version}


def test_what_was_edited_or_removed_is_not_up_to_date(root: Path, project: Graph) -> None:
    lineage.run(project, POLICIES, KEY, silent)
    change(root, "horizon: 6", "horizon: 7")
    assert lineage.up_to_date(graph.load(root), POLICIES, KEY) is None
    change(root, "horizon: 7", "horizon: 6")
    assert lineage.up_to_date(project, POLICIES, KEY) is not None
    (root / "data/behavior_policies/point_robot/policies.json").write_text("{}")
    assert lineage.up_to_date(project, POLICIES, KEY) is None
    assert lineage.standing(project) == {}


def test_the_version_of_a_stage_follows_code_and_parameters_only(root: Path, project: Graph) -> None:
    stages = list(project.stages)
    before = {stage: lineage.version(project, stage) for stage in stages}
    lineage.run(project, POLICIES, KEY, silent)
    assert {stage: lineage.version(project, stage) for stage in stages} == before
    change(root, "prompts: 4", "prompts: 3")
    fresh = graph.load(root)
    assert [stage for stage in stages if lineage.version(fresh, stage) != before[stage]] == ["tuned_noise_prompt"]


def test_dvc_yaml_is_brought_up_to_date_first(root: Path, project: Graph) -> None:
    lineage.run(project, POLICIES, KEY, silent)
    change(root, "[point_robot, other]", "[other]")
    lineage.run(graph.load(root), POLICIES, Key("other"), silent)
    assert "point_robot" not in (root / "dvc.yaml").read_text().split("plm:")[0].replace("point_robot.py", "")


def test_called_by_dvc_nothing_is_recorded(root: Path, project: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "behavior_policies@point_robot")
    outcome = lineage.run(project, POLICIES, KEY, silent)
    assert outcome.data_version is None
    assert not (root / "dvc.lock").exists()
    assert not (root / "dvc.yaml").exists()


def test_dvc_names_the_stage_to_the_command(root: Path) -> None:
    (root / "dvc.yaml").write_text('stages:\n  one:\n    cmd: echo "[$DVC_STAGE]" > seen\n    outs: [seen]\n')
    call(root, "dvc", "repro", "one")
    assert (root / "seen").read_text().strip() == "[one]"


def test_outside_a_dvc_project_work_is_just_done(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    project = graph.load(tmp_path)
    assert lineage.run(project, POLICIES, KEY, silent).data_version is None
    assert lineage.standing(project) == {}
    assert (tmp_path / "data/behavior_policies/point_robot/policies.json").is_file()
    assert not (tmp_path / "dvc.lock").exists()


@pytest.mark.parametrize("victim", ["code", "params.yaml", "data/behavior_policies/point_robot/policies.json"])
@pytest.mark.parametrize("by_dvc", [False, True], ids=["by hand", "called by dvc"])
def test_what_is_edited_while_a_stage_runs_is_never_recorded_as_having_made_its_out(
    editing: Path, victim: str, by_dvc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = next(editing.glob("editing_family_*.py")).name
    named = code if victim == "code" else victim.removesuffix("/policies.json")
    monkeypatch.setenv("EDIT_WHILE_RUNNING", code if victim == "code" else victim)
    if by_dvc:
        monkeypatch.setenv("DVC_STAGE", "trajectories@point_robot")
    project = graph.load(editing)
    with pytest.raises(PipelineError, match=f"{named}.* changed while it ran"):
        lineage.run(project, TRAJECTORIES, KEY, silent)
    assert lock_entry(editing, "trajectories@point_robot") is None
    assert lineage.up_to_date(project, TRAJECTORIES, KEY) is None


def test_dvc_repro_records_nothing_of_work_whose_code_was_edited(editing: Path) -> None:
    code = next(editing.glob("editing_family_*.py")).name
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(start.__globals__["ENVIRONMENT"], "EDIT_WHILE_RUNNING", code)
        process = start(editing, "dvc", "repro", "-s", "trajectories@point_robot")
        output, _ = process.communicate()
    assert process.returncode != 0
    assert f"{code} changed while it ran" in output
    assert "Traceback" not in output
    assert lock_entry(editing, "trajectories@point_robot") is None


def test_a_process_that_runs_old_code_is_refused(editing: Path) -> None:
    file = next(editing.glob("editing_family_*.py"))
    file.write_text(file.read_text() + "# edited between two runs of one process\n")
    with pytest.raises(PipelineError, match="still runs the old code"):
        lineage.run(graph.load(editing), TRAJECTORIES, KEY, silent)


def test_two_processes_that_record_at_once_both_succeed(root: Path) -> None:
    from dvc.repo import Repo

    keys = ("point_robot", "other")
    outs = [root / "data/behavior_policies" / key / "policies.json" for key in keys]
    with Repo(str(root)) as repo, repo.lock:  # so that both wait for it, and then want it at the same moment
        processes = [start(root, "pd-pipeline", "run", POLICIES, "--key", key) for key in keys]
        deadline = time.monotonic() + 60
        while not all(out.exists() for out in outs) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(4.0)  # longer than DVC itself would wait
        assert [process.poll() for process in processes] == [None, None]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert "up to date" in call(root, "dvc", "status", *(f"behavior_policies@{key}" for key in keys))


def test_a_lock_file_that_a_kill_left_empty_is_an_error_that_names_the_doctor(root: Path, project: Graph) -> None:
    lineage.run(project, POLICIES, KEY, silent)
    (root / ".dvc/tmp/rwlock").write_text("")
    with pytest.raises(PipelineError, match="doctor"):
        lineage.up_to_date(project, POLICIES, KEY)
