"""What DVC records: the parts of dvc's API that lineage uses, the guard, and two processes at once."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from pd_pipeline import doctor, graph, guard, lineage, records, rendering
from pd_pipeline.clean import clean
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.storage import read_json
from tests.dvc_project import SMALL_PARAMS, call, change, dvc, make_project, start, write_graph

POLICIES, TRAJECTORIES = "behavior_policies", "trajectories"
KEY = Key("point_robot")

# A family that, during collection, changes the project as the environment variable says.
EDITING_FAMILY = """\
import os
from pathlib import Path

from pd_pipeline.families.point_robot import PointRobot

HERE = Path(__file__).parent


class Own(PointRobot):
    def make(self, task):
        if os.environ.get("EDIT_WHILE_RUNNING") and (HERE / ".work/trajectories").is_dir():  # not when it is tried
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
    """A project whose family edits one of its files during a stage; each test has its own module name."""
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
    assert "up to date" in dvc(root, "status", "behavior_policies@point_robot")
    printed = call(root, "dvc", "repro", "-s", "behavior_policies@point_robot")
    assert "didn't change, skipping" in printed


def test_up_to_date_work_is_skipped_unless_forced(project: Graph) -> None:
    made = lineage.run(project, POLICIES, KEY, silent)
    again = lineage.run(project, POLICIES, KEY, silent)
    assert (again.skipped, again.data_version) == (True, made.data_version)
    assert not lineage.run(project, POLICIES, KEY, silent, force=True).skipped


def test_works_from_another_working_directory(
    project: Graph, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    made = lineage.run(project, POLICIES, KEY, silent)
    assert lineage.up_to_date(project, POLICIES, KEY) == made.data_version
    assert lineage.data_versions(project) == {(POLICIES, KEY): made.data_version}


def test_what_was_edited_or_removed_is_not_up_to_date(root: Path, project: Graph) -> None:
    lineage.run(project, POLICIES, KEY, silent)
    change(root, "horizon: 6", "horizon: 7")
    assert lineage.up_to_date(graph.load(root), POLICIES, KEY) is None
    change(root, "horizon: 7", "horizon: 6")
    assert lineage.up_to_date(project, POLICIES, KEY) is not None
    (root / "data/behavior_policies/point_robot/policies.json").write_text("{}")
    assert lineage.up_to_date(project, POLICIES, KEY) is None
    assert lineage.data_versions(project) == {}


def test_the_lock_speaks_only_of_outs_that_are_as_recorded(root: Path, project: Graph) -> None:
    pieces = [(POLICIES, KEY), (TRAJECTORIES, KEY)]
    assert lineage.lock_entries(project, pieces) == {}, "no dvc.lock yet"
    made = {stage: lineage.run(project, stage, KEY, silent).data_version for stage, _ in pieces}
    found = lineage.lock_entries(project, [*pieces, ("prompts", KEY)])
    assert found.keys() == {*pieces}
    for stage, key in pieces:
        assert found[stage, key].md5 == made[stage]
        assert found[stage, key].digests == rendering.digests(project, stage, key)
    assert found[TRAJECTORIES, KEY].inputs == {"data/behavior_policies/point_robot": made[POLICIES]}
    file = root / "data/behavior_policies/point_robot/policies.json"
    file.write_text("{}")
    assert lineage.lock_entries(project, pieces).keys() == {(TRAJECTORIES, KEY)}
    shutil.rmtree(file.parent)
    assert lineage.lock_entries(project, pieces) == found, "one that is not here is not another one"


def test_the_version_of_a_stage_follows_code_and_parameters_only(root: Path, project: Graph) -> None:
    stages = list(project.stages)
    before = {stage: guard.version(project, stage) for stage in stages}
    lineage.run(project, POLICIES, KEY, silent)
    assert {stage: guard.version(project, stage) for stage in stages} == before
    change(root, "prompts: 4", "prompts: 3")
    fresh = graph.load(root)
    differ = [stage for stage in stages if guard.version(fresh, stage) != before[stage]]
    assert differ == ["tuned_noise_prompt", "report"], "the report shows every parameter"


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


def test_outside_a_dvc_project_work_is_done_without_records(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    project = graph.load(tmp_path)
    assert lineage.run(project, POLICIES, KEY, silent).data_version is None
    assert lineage.data_versions(project) == {}
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
    with pytest.raises(PipelineError, match=f"{named}.* changed during the work"):
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
    assert f"{code} changed during the work" in output
    assert "Traceback" not in output
    assert lock_entry(editing, "trajectories@point_robot") is None


def test_a_process_that_runs_old_code_is_refused(editing: Path) -> None:
    file = next(editing.glob("editing_family_*.py"))
    file.write_text(file.read_text() + "# edited between two runs of one process\n")
    with pytest.raises(PipelineError, match="edited after this process loaded it"):
        lineage.run(graph.load(editing), TRAJECTORIES, KEY, silent)


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    used = psutil.Process(process.pid).cpu_times()
    return used.user + used.system


def test_two_processes_that_record_at_once_both_succeed(root: Path) -> None:
    from dvc.repo import Repo

    keys = ("point_robot", "other")
    with Repo(str(root)) as repo, repo.lock:  # so that both wait for it, and then try to take it at the same moment
        processes = [start(root, "pd-pipeline", "run", POLICIES, "--key", key) for key in keys]
        seconds, before = [cpu_seconds(process) for process in processes], [0.0, 0.0]
        while any(
            now - then > 0.1 for now, then in zip(seconds, before, strict=True)
        ):  # until they do nothing but wait
            time.sleep(1.0)
            seconds, before = [cpu_seconds(process) for process in processes], seconds
        time.sleep(4.0)  # longer than DVC itself would wait
        assert [process.poll() for process in processes] == [None, None]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert "up to date" in dvc(root, "status", *(f"behavior_policies@{key}" for key in keys))


# One reading of parameters


def test_parameters_that_change_between_loading_and_working_are_used_and_recorded(root: Path, project: Graph) -> None:
    """The parameters in dvc.lock are those that were used."""
    lineage.run(project, POLICIES, KEY, silent)
    change(root, "train: 3", "train: 2")
    lineage.run(project, TRAJECTORIES, KEY, silent)
    summary = read_json(root / "data/trajectories/point_robot/summary.json")
    assert summary["expert"]["tasks"]["0"]["episodes"] == 2
    entry = lock_entry(root, "trajectories@point_robot")
    assert entry is not None
    digests = rendering.digests(graph.load(root), "trajectories", Key("point_robot"))
    assert entry["params"] == {"digests.json": {"trajectories.point_robot": digests}}
    assert digests != rendering.digests(project, "trajectories", Key("point_robot"))
    record = records.find(root, "trajectories", "point_robot")
    assert record is not None
    assert record.parameters["episodes"]["expert"]["train"] == 2
    assert "up to date" in dvc(root, "status", "trajectories@point_robot")


def test_an_old_graph_does_not_restore_an_old_dvc_yaml(root: Path, project: Graph) -> None:
    lineage.run(project, POLICIES, KEY, silent)
    change(root, "methods: [prompt_dt, noise_prompt]", "methods: [prompt_dt]")
    lineage.run(project, POLICIES, KEY, silent)
    rendering.check(graph.load(root))


def test_a_piece_no_longer_in_params_yaml_is_refused(root: Path, project: Graph) -> None:
    change(root, "[point_robot, other]", "[other]")
    with pytest.raises(
        PipelineError, match=r"behavior_policies has no key 'point_robot': the keys in params\.yaml are other"
    ):
        lineage.run(project, POLICIES, KEY, silent)


# Files in an out that the pipeline did not make


@pytest.fixture
def collected(root: Path, project: Graph) -> Path:
    """The folder of trajectories of the project, made and recorded."""
    for stage in (POLICIES, TRAJECTORIES):
        lineage.run(project, stage, KEY, silent)
    return root / "data/trajectories/point_robot"


@pytest.mark.parametrize("door", ["library", "dvc repro", "forced"])
def test_a_file_that_the_stage_did_not_make_is_never_removed(
    root: Path, project: Graph, collected: Path, door: str
) -> None:
    (collected / "mine.parquet").write_bytes(b"hours of a robot")
    change(root, "train: 3", "train: 2")
    if door == "dvc repro":
        process = start(root, "dvc", "repro", "trajectories@point_robot")
        message, _ = process.communicate()
        assert process.returncode != 0
        assert "Traceback" not in message
    else:
        with pytest.raises(PipelineError) as caught:
            lineage.run(project, TRAJECTORIES, KEY, silent, force=door == "forced")
        message = str(caught.value)
    assert "mine.parquet: not written by stage trajectories" in message
    assert "data/incoming" in message
    assert (collected / "mine.parquet").read_bytes() == b"hours of a robot"
    assert (collected / "expert.parquet").is_file()


def test_a_file_that_somebody_changed_is_never_replaced(root: Path, project: Graph, collected: Path) -> None:
    (collected / "expert.parquet").write_bytes(b"my own episodes, added by hand")
    with pytest.raises(PipelineError, match=r"expert\.parquet: not written by stage trajectories"):
        lineage.run(project, TRAJECTORIES, KEY, silent)
    assert (collected / "expert.parquet").read_bytes() == b"my own episodes, added by hand"


def test_after_the_file_is_moved_away_the_stage_works(root: Path, project: Graph, collected: Path) -> None:
    (collected / "mine.parquet").write_bytes(b"hours of a robot")
    (root / "data/incoming").mkdir()
    (collected / "mine.parquet").rename(root / "data/incoming/mine.parquet")
    change(root, "train: 3", "train: 2")
    assert not lineage.run(project, TRAJECTORIES, KEY, silent).skipped


def test_an_out_checked_out_from_dvc_may_be_replaced(root: Path, project: Graph, collected: Path) -> None:
    """There is no record of its files, but DVC has them in its cache."""
    shutil.rmtree(root / "data")
    dvc(root, "checkout", *(f"{stage}@point_robot" for stage in (POLICIES, TRAJECTORIES)))
    change(root, "train: 3", "train: 2")
    assert not lineage.run(project, TRAJECTORIES, KEY, silent).skipped


def test_an_older_version_checked_out_from_dvc_may_be_replaced(root: Path, project: Graph, collected: Path) -> None:
    """Its record is of a later version, but the files are those of dvc.lock."""
    lock = (root / "dvc.lock").read_bytes()
    params = (root / "params.yaml").read_text()
    for count in (4, 5):
        (root / "params.yaml").write_text(params.replace("train: 3", f"train: {count}"))
        lineage.run(project, TRAJECTORIES, KEY, silent)
    (root / "params.yaml").write_text(params)
    (root / "dvc.lock").write_bytes(lock)
    dvc(root, "checkout", "trajectories@point_robot")
    change(root, "train: 3", "train: 2")
    assert not lineage.run(project, TRAJECTORIES, KEY, silent).skipped


def test_files_of_unknown_origin_are_not_replaced(root: Path, project: Graph, collected: Path) -> None:
    shutil.rmtree(root / "data/records")
    (collected / "mine.parquet").write_bytes(b"hours of a robot")
    with pytest.raises(PipelineError, match="not written by stage trajectories"):
        lineage.run(project, TRAJECTORIES, KEY, silent)


# Several processes


def test_two_commands_at_once_make_every_piece_once(root: Path) -> None:
    """The second process waits for the piece, finds it made and continues: both succeed."""
    change(root, "[point_robot, other]", "[point_robot]")
    change(root, "[prompt_dt, noise_prompt]", "[prompt_dt]")
    processes = [start(root, "pd-pipeline", "run", "all") for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    project = graph.load(root)
    pieces = [f"{stage} {key}".strip() for stage in project.stages for key in project.keys(stage)]
    lines = [line.split(": ", 1) for output in outputs for line in output.splitlines() if ": " in line]
    ends = [(name, said) for name, said in lines if name in pieces and not re.search(r"\d of \d|waiting for", said)]
    assert sorted(name for name, said in ends if said != "up to date") == sorted(pieces), "each is made once"
    assert sorted(name for name, _ in ends) == sorted(2 * pieces), "and both processes report it"
    assert "up to date" in dvc(root, "status")


def test_dvc_repro_and_run_all_at_once_both_succeed(root: Path) -> None:
    change(root, "[point_robot, other]", "[point_robot]")
    change(root, "[prompt_dt, noise_prompt]", "[prompt_dt]")
    write_graph(root)
    processes = [
        start(root, "dvc", "--wait-for-lock", "repro", "plm@point_robot-0"),
        start(root, "pd-pipeline", "run", "all"),
    ]
    outputs = [process.communicate(timeout=280)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "Traceback" not in "".join(outputs)
    assert "up to date" in dvc(root, "status")


def test_a_lock_whose_pid_was_reused_is_named_and_fixed(root: Path, project: Graph) -> None:
    lineage.run(project, POLICIES, KEY, silent)
    other = subprocess.Popen(["sleep", "60"])
    try:
        held = {
            "write": {str(root / "data/behavior_policies/point_robot"): {"pid": other.pid, "cmd": "/bin/dvc repro"}}
        }
        (root / ".dvc/tmp/rwlock").write_text(json.dumps(held | {"read": {}}))
        waiting = start(root, "pd-pipeline", "run", POLICIES, "--key", "point_robot", "--force")
        assert waiting.stdout is not None
        line = next(line for line in waiting.stdout if "lock" in line)
        assert f"process {other.pid} ('/bin/dvc repro')" in line
        assert "is 'sleep 60': the lock is stale: `pd-pipeline doctor` removes it" in line
        fixed = [finding for finding in doctor.stale_locks(root) if finding.level == "fixed"]
        assert len(fixed) == 1
        assert waiting.wait(timeout=60) == 0
    finally:
        other.kill()
        other.wait()


def test_an_empty_lock_file_is_an_error_that_names_the_doctor(root: Path, project: Graph) -> None:
    lineage.run(project, POLICIES, KEY, silent)
    (root / ".dvc/tmp/rwlock").write_text("")
    with pytest.raises(PipelineError, match="doctor"):
        lineage.up_to_date(project, POLICIES, KEY)


def test_work_with_an_override_is_not_recorded_and_is_redone_later(root: Path, project: Graph) -> None:
    lineage.run(project, POLICIES, KEY, silent)
    lineage.run(project, TRAJECTORIES, KEY, silent)
    before = lock_entry(root, "trajectories@point_robot")
    call(root, "pd-pipeline", "run", TRAJECTORIES, "--key", str(KEY), "--set", "trajectories.episodes.expert.train=2")
    summary = root / "data/trajectories/point_robot/summary.json"
    assert read_json(summary)["expert"]["tasks"]["0"]["episodes"] == 2
    assert lock_entry(root, "trajectories@point_robot") == before
    assert "expert: {train: 3" in (root / "params.yaml").read_text()
    assert not lineage.run(project, TRAJECTORIES, KEY, silent).skipped
    assert read_json(summary)["expert"]["tasks"]["0"]["episodes"] == 3
    assert "up to date" in dvc(root, "status", "trajectories@point_robot")


def test_outs_that_dvc_has_turned_into_links_are_the_stages_own(root: Path, project: Graph) -> None:
    dvc(root, "config", "cache.type", "symlink")
    lineage.run(project, POLICIES, KEY, silent)
    out = root / project.out(POLICIES, KEY)
    link = out / "policies.json"
    assert link.is_symlink()
    cached = link.resolve()
    assert lineage.run(project, POLICIES, KEY, silent).skipped
    assert not lineage.run(project, POLICIES, KEY, silent, force=True).skipped
    assert lineage.up_to_date(project, POLICIES, KEY)
    link.unlink()
    link.symlink_to(root / "params.yaml")
    with pytest.raises(PipelineError, match=r"policies\.json: not written by stage behavior_policies"):
        lineage.run(project, POLICIES, KEY, silent, force=True)
    link.unlink()
    link.symlink_to(cached)
    list(clean(root))
    assert not out.exists()
    assert cached.is_file()
