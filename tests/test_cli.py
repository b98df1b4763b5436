"""The command line: what it prints and how it exits."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pd_pipeline import doctor, lineage, locks, records
from pd_pipeline.cli import app
from pd_pipeline.doctor import Finding
from pd_pipeline.graph import Graph, load
from pd_pipeline.incoming.ingest import ingest
from pd_pipeline.piece import is_made
from pd_pipeline.progress import silent
from pd_pipeline.records import Record
from pd_pipeline.stage import Key
from pd_pipeline.storage import write_json
from pd_pipeline.trajectories.reading import read_metadata, stream, write
from tests import accepted
from tests.builders import columns, metadata
from tests.dvc_project import BIN, ENVIRONMENT, SMALL_PARAMS, call, change, dvc, make_project, start

DEAD_PROCESS = 2**22 + 1  # above the largest process id


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_makes_all_keys_and_prints_their_metrics(root: Path) -> None:
    result = invoke("run", "behavior_policies")
    assert result.exit_code == 0
    assert "behavior_policies point_robot: " in result.stdout
    assert "behavior_policies other: " in result.stdout


def test_run_skips_what_is_up_to_date(root: Path) -> None:
    make_project(root)
    arguments = ("run", "behavior_policies", "--key", "other")
    assert "up to date" not in invoke(*arguments).stdout
    assert "behavior_policies other: up to date" in invoke(*arguments).stdout
    assert "up to date" not in invoke(*arguments, "--force").stdout


def test_run_without_record_leaves_no_trace_in_dvc(root: Path) -> None:
    make_project(root)
    assert invoke("run", "behavior_policies", "--key", "other", "--no-record").exit_code == 0
    assert not (root / "dvc.lock").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing"), "unknown stage 'nothing'"),
        (("run", "plmm"), "unknown stage 'plmm': did you mean 'plm'?"),
        (("run", "plm", "--key", "x-0"), "has no key 'x-0'"),
        (("run", "prompts", "--key", "other"), "run `pd-pipeline run trajectories --key other` first"),
        (("graph", "--check"), "graph --write"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(root: Path, arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_a_folder_without_params_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (("graph",), ("params",), ("run", "plm")):
        result = invoke(*arguments)
        assert result.exit_code == 1
        assert "no such file" in result.stderr


def test_graph_is_written_once_and_checked(root: Path) -> None:
    assert "written" in invoke("graph", "--write").stdout
    assert invoke("graph", "--write").stdout == ""
    assert invoke("graph", "--check").exit_code == 0
    change(root, "[point_robot, other]", "[other]")
    result = invoke("graph", "--check")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1


def test_graph_shows_stages_and_keys(root: Path) -> None:
    lines = invoke("graph").stdout.splitlines()
    assert "plm after trajectories, prompts: point_robot-0 other-0" in lines


def test_rendering_imports_nothing_heavy(root: Path) -> None:
    code = (
        "import sys; from pd_pipeline.cli import app; app(['graph', '--write'], standalone_mode=False);"
        "print(sorted({'torch', 'dvc', 'dagster', 'pyarrow', 'polars', 'matplotlib', 'mujoco'} & set(sys.modules)))"
    )
    call(root, sys.executable, "-c", code)  # the first time every block of params.yaml is checked
    assert call(root, sys.executable, "-c", code).splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "from pd_pipeline.cli import app; app(['ingest', '--no-work'], standalone_mode=False)",
        "from pd_pipeline.incoming.standing import status; from pd_pipeline import graph; [*status(graph.load(here))]",
        "from pd_pipeline.deployment import trace",
        "from assets.definitions import build; build(here)",
    ],
)
def test_what_only_looks_does_not_import_pytorch(root: Path, code: str) -> None:
    """It takes seconds; Dagster loads the definitions for each of its processes."""
    text = f"import sys; from pathlib import Path; here = Path.cwd(); {code}; print('torch' in sys.modules)"
    assert call(root, sys.executable, "-c", text).splitlines()[-1] == "False"


def test_params_shows_the_value_of_every_parameter(root: Path) -> None:
    from ruamel.yaml import YAML

    result = invoke("params")
    shown = YAML(typ="safe").load(result.stdout)
    plm = shown["families"]["other"]["plm"]
    assert plm["width"] == 8  # of the file
    assert plm["learning_rate"] == 1e-3  # of the code
    assert shown["families"]["other"]["environment"]["horizon"] == 6
    assert shown["run"]["methods"] == ["prompt_dt", "noise_prompt"]


def test_validate_accepts_good_files(trained_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained_project)
    files = sorted((trained_project / "data/trajectories/point_robot").glob("*.parquet"))
    result = invoke("validate", *map(str, files))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == len(files)
    assert "good: 38 episodes, 456 steps" in lines[0]


def test_validate_looks_at_the_family_of_the_file_alone(
    trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have no block; and the folder of another one, which is not run, may be elsewhere."""
    text = "run: {families: [point_robot], methods: [prompt_dt]}\nfamilies: {mine: {environment: {data: nowhere}}}\n"
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    file = trained_project / "data/trajectories/point_robot/expert.parquet"
    assert "unknown family" not in invoke("validate", str(file)).stderr
    write(renamed := tmp_path / "a.parquet", read_metadata(file).model_copy(update={"family": "mine"}), stream(file))
    assert "nowhere: no such folder" in invoke("validate", str(renamed)).stderr


def test_validate_refuses_each_bad_file_and_still_reads_the_others(
    trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained_project)
    good = trained_project / "data/trajectories/point_robot/expert.parquet"
    truncated = tmp_path / "truncated.parquet"
    shutil.copy(good, truncated)
    truncated.write_bytes(truncated.read_bytes()[:-100])
    other = tmp_path / "other.txt"
    other.write_text("nothing")
    result = invoke("validate", str(truncated), str(other), str(tmp_path / "none.parquet"), str(good))
    assert result.exit_code == 1
    assert f"{good}: good" in result.stdout
    assert len([line for line in result.stderr.splitlines() if line.startswith("refused: ")]) == 3


def test_validate_checks_new_data_of_a_target(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    made, goals = columns(tasks=(57,), d_s=2), {57: {"position": [0.5]}}
    write(tmp_path / "new.parquet", metadata(**accepted.ABOUT, horizon=12, goals=goals), [made])
    new = str(tmp_path / "new.parquet")
    assert invoke("validate", new).exit_code == 1, "no target of the family yet"
    result = invoke("validate", new, "--target", "point_robot-57")
    assert (result.exit_code, result.stdout) == (0, f"{new}: good: 2 episodes, 10 steps\n")
    accepted.drop(project, 57, 1, 2, "point_robot", 12)
    ingest(project, {"point_robot": load(project).family("point_robot")}, 0)
    write(
        tmp_path / "more.parquet",
        metadata(**accepted.ABOUT, horizon=12, goals=goals),
        [columns(tasks=(57,), d_s=2, seed=1, episodes=2)],
    )
    more = invoke("validate", str(tmp_path / "more.parquet"), "--target", "point_robot-57")
    assert more.stdout.endswith(": good: 2 episodes, 10 steps, 2 of them copies, which would be left out\n")
    for target, message in {
        "point_robot-58": f"{new}: holds task 57, but the target is task 58: one file per target",
        "point_robot-0": f"{new}: task 0 is a training task of point_robot, not a target: use another number",
        "reach-57": f"{new}: 'reach' is not among run.families of params.yaml (point_robot): add it there",
        "57": "--target 57: name a family and a task, such as reach-57",
    }.items():
        result = invoke("validate", new, "--target", target)
        assert (result.exit_code, result.stderr) == (1, f"refused: {message}\n")
    missing = invoke("validate", "none.parquet", "--target", "point_robot-57")
    assert missing.stderr == "refused: none.parquet: no such file\n"


def levels(root: Path) -> dict[str, str]:
    return {finding.text: finding.level for finding in (*doctor.dvc_project(doctor.graphs.load(root)),)}


def test_doctor_reports_a_dvc_yaml_that_is_out_of_date(root: Path) -> None:
    make_project(root)
    assert "problem" in levels(root).values()
    invoke("graph", "--write")
    assert set(levels(root).values()) == {"ok"}


def test_doctor_removes_a_lock_file_that_a_kill_left_empty(root: Path) -> None:
    make_project(root)
    invoke("run", "behavior_policies", "--key", "other")
    (root / ".dvc/tmp/rwlock").write_text("")
    assert "fixed" in levels(root).values()
    assert "up to date" in dvc(root, "status", "behavior_policies@other")


def test_doctor_removes_what_killed_processes_left(root: Path) -> None:
    data, one, two = root / "data/plm", "other-0", "point_robot-0"
    for name in (f".{one}.{DEAD_PROCESS}.tmp", f".{one}.{DEAD_PROCESS}.old", f".{two}.{DEAD_PROCESS}.old", two):
        (data / name).mkdir(parents=True)
    (data / f".{one}.{DEAD_PROCESS}.old/weights").write_text("made earlier")
    findings = list(doctor.leftovers(load(root)))
    assert [finding.level for finding in findings] == ["fixed"] * 2
    assert sorted(path.name for path in data.iterdir()) == [one, two]
    assert (data / one / "weights").read_text() == "made earlier"


def test_doctor_keeps_what_a_live_process_is_writing(root: Path) -> None:
    living = root / "data/plm/.other-0.1.tmp"
    living.mkdir(parents=True)
    with locks.held(root, "plm", "other-0"):
        assert [finding.level for finding in doctor.leftovers(load(root))] == ["ok"]
    assert living.exists()


def test_doctor_names_stale_resume_folders(root: Path) -> None:
    (root / ".work/behavior_policies/other/0123456789abcdef").mkdir(parents=True)
    (finding,) = doctor.resume_folders(doctor.graphs.load(root))
    assert finding.level == "note"
    assert ".work/behavior_policies/other/0123456789abcdef" in finding.text


def test_doctor_names_outs_that_are_asked_for_no_more(root: Path) -> None:
    """Such as those of a former target, which would still be recorded as what the evaluation read."""
    (finding,) = doctor.former_outs(load(root))
    assert finding.level == "ok"
    for family in ("other", "point_robot"):
        lineage.run(load(root), "behavior_policies", Key(family), silent, record=False)
    (root / "params.yaml").write_text(SMALL_PARAMS.replace("[point_robot, other]", "[point_robot]"))
    (finding,) = doctor.former_outs(load(root))
    assert finding.level == "note"
    assert finding.text.endswith(": data/behavior_policies/other")


def test_doctor_leaves_studies_alone_that_were_run_by_name(root: Path) -> None:
    (root / "studies").mkdir()
    for name in ("few", "gone"):
        file = records.path(root, f"study_{name}", Key())
        (root / f"data/study_{name}").mkdir(parents=True)
        write_json(file, Record(out=f"data/study_{name}", made="", files={}, seconds=0.0).model_dump(mode="json"))
    (root / "studies/few.yaml").write_text("title: Few\ngrid: {plm.steps: [1, 2]}\n")
    (finding,) = doctor.former_outs(load(root))
    assert finding.text.endswith(": data/study_gone")


def test_an_out_of_an_earlier_commit_is_the_pipelines_own(root: Path) -> None:
    """`dvc checkout` puts it there, and its record is that of the later one."""
    make_project(root)
    piece = "behavior_policies", Key("other")
    lineage.run(load(root), *piece, silent)
    first = (root / "dvc.lock").read_bytes()
    for before, noise in (("{}", 0.4), ("{levels: {expert: {noise: 0.4}}}", 0.5)):
        after = f"{{levels: {{expert: {{noise: {noise}}}}}}}"
        change(root, f"{before}\n    trajectories", f"{after}\n    trajectories")
        lineage.run(load(root), *piece, silent)
    change(root, after, "{}")
    (root / "dvc.lock").write_bytes(first)
    dvc(root, "checkout", "--force", "behavior_policies@other")
    assert records.foreign(root / "data/behavior_policies/other", records.find(root, *piece))
    assert list(doctor.own_files(load(root))) == []
    (root / "data/behavior_policies/other/notes.txt").write_text("mine")
    (finding,) = doctor.own_files(load(root))
    assert "not made by stage behavior_policies" in finding.text


def test_inputs_that_are_out_of_date_are_named(root: Path) -> None:
    """The stage that is asked for reads them as they are."""
    make_project(root)
    for stage in ("behavior_policies", "trajectories"):
        assert "note" not in invoke("run", stage).output
    change(root, "train: 3,", "train: 4,")
    found = invoke("run", "prompts", "--key", "other")
    assert "note: out of date, and read as it is: trajectories other\n" in found.output
    assert "note" not in invoke("run", "prompts", "--key", "other", "--no-record").output
    invoke("run", "trajectories", "--key", "other")
    assert "note" not in invoke("run", "prompts", "--key", "other").output


def test_what_a_clone_pulled_can_be_compared(root: Path) -> None:
    """Its outs are up to date, though no record beside them says so."""
    make_project(root)
    run = ("run", "behavior_policies", "--key", "other")
    invoke(*run)
    shutil.rmtree(root / "data/records")
    key = Key("other")
    assert not is_made(load(root), "behavior_policies", key)
    assert lineage.is_current(load(root), "behavior_policies", key)
    change(root, "horizon: 6", "horizon: 7")
    assert not lineage.is_current(load(root), "behavior_policies", key)


def test_a_new_project_has_nothing_in_use(root: Path) -> None:
    found = invoke("status")
    assert found.exit_code == 0
    assert "no target has new data or a policy in use" in found.stdout
    assert "`pd-pipeline promote point_robot-1`" in found.stdout
    assert "no studies" in invoke("study").output


def test_clean_leaves_what_the_user_put_there(root: Path) -> None:
    invoke("run", "behavior_policies", "--key", "other")
    (root / "data/mine.txt").write_text("mine")
    found = invoke("clean")
    assert (found.exit_code, [*(root / "data").iterdir()]) == (0, [root / "data/mine.txt"])
    assert "mine.txt" in found.stdout
    (root / "params.yaml").unlink()
    (root / ".work").mkdir()
    found = invoke("clean")
    assert (found.exit_code, (root / ".work").is_dir()) == (1, True)
    assert "no params.yaml here, so this is no project" in found.stderr


def test_doctor_exits_with_1_only_on_a_problem(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _: iter([Finding("fixed", "x"), Finding("note", "y")]))
    assert invoke("doctor").exit_code == 0
    monkeypatch.setattr(doctor, "examine", lambda _: iter([Finding("ok", "x"), Finding("problem", "y")]))
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "problem y" in result.stdout


def test_doctor_compares_installed_with_required_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in doctor.versions()] == ["ok"]
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda _: ["torch==1.0", "no-such-package", "ruff; extra == 'test'"]
    )
    assert [finding.text.split()[0] for finding in doctor.versions()] == ["torch", "no-such-package"]


def test_run_all_goes_through_every_piece_in_the_order_of_the_graph(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def done(project: Graph, stage: str, key: Key, *_: object, **__: object) -> lineage.Outcome:
        asked.append((stage, str(key)))
        return lineage.Outcome({}, True, None)

    monkeypatch.setattr(lineage, "run", done)
    assert invoke("run", "all").exit_code == 0
    project = load(root)
    assert asked == [(name, str(key)) for name in project.stages for key in project.keys(name)]
    assert asked[0][0] == "behavior_policies"
    assert asked[-1] == ("report", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "all", "--key", "other"), "--key other: `run all` runs every key"),
        (("publish", "nothing"), "nothing"),
        (("publish", "../x"), "../x"),
        (("publish", "other"), "other"),  # of which nothing was made yet
        (("validate", "."), "."),
    ],
)
def test_impossible_requests_give_one_line(root: Path, arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr


def test_costs_are_shown_of_what_was_made(root: Path) -> None:
    assert invoke("run", "behavior_policies").exit_code == 0
    lines = invoke("costs").stdout.splitlines()
    assert lines[0].split() == ["family", "stage", "recorded", "seconds", "device", "precision"]
    (line,) = [line for line in lines if line.startswith("other") and "behavior_policies" in line]
    assert "1 of 1" in line


def limited(root: Path, most_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that cannot write files larger than `most_bytes`: simulates a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    command = [str(BIN / "pd-pipeline"), *arguments]
    return subprocess.run(
        command, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, check=False, preexec_fn=limit
    )


def test_a_full_disk_gives_one_line_and_work_resumes_later(root: Path) -> None:
    assert invoke("run", "behavior_policies", "--key", "other").exit_code == 0
    done = limited(root, 3000, "run", "trajectories", "--key", "other")  # a shard fits, the final file does not
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "File too large" in errors[0]
    assert list((root / ".work/trajectories/other").rglob("*.safetensors")), "finished shards are kept"
    assert not (root / "data/trajectories/other").exists()
    assert invoke("run", "trajectories", "--key", "other").exit_code == 0


def test_a_dangling_link_gives_one_line(root: Path) -> None:
    (root / "data").mkdir()
    (root / "data/behavior_policies").symlink_to(root / "a disk that is not mounted")
    result = invoke("run", "behavior_policies", "--key", "other")
    assert result.exit_code == 1
    assert "data/behavior_policies" in result.stderr


NO_SIMULATOR = """\
from pd_pipeline.families.point_robot import PointRobot


class Recorded(PointRobot):
    def make(self, task):
        raise NotImplementedError("this robot has no simulator")
"""


def test_a_family_without_a_simulator_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    (project / "recorded_only_family.py").write_text(NO_SIMULATOR)
    for stage in (f"tuned_{method}" for method in load(project).params.run.methods):
        assert invoke("run", stage).exit_code == 0
    change(project, "environment: {", 'environment: {entry_point: "recorded_only_family:Recorded", ')
    result = invoke("run", "evaluation")
    assert result.exit_code == 1
    assert "raised NotImplementedError: this robot has no simulator" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("place", ["alone", "top of git", "inside git"])
def test_init_makes_a_project_that_works(place: str, tmp_path: Path) -> None:
    top, root = tmp_path, tmp_path / "mine" if place != "top of git" else tmp_path
    if place != "alone":
        subprocess.run(["git", "init", "-q", str(top)], check=True)
    (root / "notes.txt").parent.mkdir(exist_ok=True)
    (root / "notes.txt").write_text("mine")
    assert "edit params.yaml, then: " in call(tmp_path, "pd-pipeline", "init", str(root))
    assert (root / ".dvc/config").is_file()
    assert "up to date" not in call(root, "pd-pipeline", "run", "behavior_policies")
    assert "behavior_policies@point_robot" in (root / "dvc.lock").read_text()
    process = start(tmp_path, "pd-pipeline", "init", str(root))
    output, _ = process.communicate()
    assert (process.returncode, output.count("\n")) == (1, 1)
    assert "params.yaml: already exists" in output
    assert (root / "notes.txt").read_text() == "mine"
