"""`pd-pipeline import` and `pd-pipeline export`."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pd_pipeline.cli import app
from pd_pipeline.trajectories.reading import read_metadata
from tests.exchange.builders import trajectory_file
from tests.recorded_project import record_project


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert "Traceback" not in result.output
    return result


def test_an_import_says_what_to_declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = trajectory_file(tmp_path / "a.parquet")
    result = invoke("import", str(source), "--family", "robot", "--quality", "expert", "--reward", "0")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "  reward: 0.0, as asked; success: as recorded" in lines
    (made,) = (tmp_path / "data/imported/robot").iterdir()
    assert f"data/imported/robot/{made.name}: written" in lines
    assert lines[-3:] == ["families:", "  robot:", "    environment: {data: data/imported/robot}"]
    params = "run: {families: [robot], methods: [prompt_dt]}\n" + "\n".join(lines[-3:]) + "\n"
    (tmp_path / "params.yaml").write_text(params)
    assert invoke("validate", str(made)).stdout == f"{made}: good: 5 episodes, 26 steps\n"
    other = trajectory_file(tmp_path / "b.parquet", quality="random")
    assert "add to params.yaml" not in invoke("import", str(other), "--family", "robot").stdout


def test_each_number_of_an_action_may_have_bounds_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = trajectory_file(tmp_path / "a.parquet")
    result = invoke("import", str(source), "--family", "robot", "--action-low", "-1,-2", "--action-high", "3")
    assert result.exit_code == 0, result.output
    (made,) = (tmp_path / "data/imported/robot").iterdir()
    metadata = read_metadata(made)
    assert (metadata.action_low, metadata.action_high) == ((-1, -2), (3, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reward", "much"), "error: --reward much: give a number, or `success`"),
        (("--reward", "nan"), "error: --reward nan: give a number, or `success`"),
        (("--task", "-1"), "error: import.task: Input should be greater than or equal to 0"),
        (("--quality", "../x"), "error: import.quality: String should match pattern"),
        (("--action-low", "-1,x"), "error: --action-low -1,x: give a number, or one for each of an action: -1,-2"),
        (("--action-high", "1,"), "error: --action-high 1,: give a number, or one for each of an action: -1,-2"),
        (
            ("--action-low", "3"),
            "error: {source}: number 0 of an action would be between 3 and 1 (one as asked, the oth",
        ),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = trajectory_file(tmp_path / "a.parquet")
    result = invoke("import", str(source), "--family", "robot", *arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(message.format(source=source))


def test_an_export_of_a_recorded_family(trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = record_project(trained_project, tmp_path / "project")
    monkeypatch.chdir(root)
    for stage in ("behavior_policies", "trajectories"):
        assert invoke("run", stage).exit_code == 0
    result = invoke("export", "out.hdf5", "--family", "my_robot", "--format", "d4rl")
    assert result.stdout == "out.hdf5: 38 episodes, 456 steps\n"
    shutil.rmtree(root / "data/trajectories")
    result = invoke("export", "again.hdf5", "--family", "my_robot", "--format", "d4rl")
    assert result.exit_code == 1
    assert "run `pd-pipeline run trajectories --key my_robot` first" in result.stderr
