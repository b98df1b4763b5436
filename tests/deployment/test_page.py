"""The page about taking the policy out: its files and commands are run, one after another, as they stand."""

import io
import json
import re
import runpy
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pd_pipeline.cli import app
from pd_pipeline.deployment import onnx_export
from pd_pipeline.deployment.folder import CONTENTS, describe
from tests.docs.pages import ROOT, lay_out

pytestmark = pytest.mark.xdist_group("onnx")  # the policy is translated once
PAGE = ROOT / "docs/deploy.md"
EXAMPLE = ROOT / "docs/examples/act_with_onnx.py"
TESTED = {"point_robot-3": "point_robot-4", "task=3": "task=4", '"prompt_diffuser"': '"prompt_dt"'}
"""The target and method of the page -> those of the tests' policy, which is translated to ONNX once for all tests."""


def for_the_tests(text: str) -> str:
    for of_page, of_tests in TESTED.items():
        text = text.replace(of_page, of_tests)
    return text


def commands() -> list[str]:
    """The commands of the page, without what installs packages."""
    lines = re.findall(r"^    ((?:python|pd-pipeline) .*)$", PAGE.read_text(), flags=re.MULTILINE)
    return [for_the_tests(line) for line in lines]


def called(command: str) -> str:
    """What a command of the page prints."""
    program, *arguments = shlex.split(command)
    if program == "pd-pipeline":
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout
    given = io.StringIO(Path(arguments.pop()).read_text() if "<" in arguments else "")
    printed, before = io.StringIO(), (sys.argv, sys.stdin)
    sys.argv, sys.stdin = [argument for argument in arguments if argument != "<"], given
    try:
        with redirect_stdout(printed):
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.argv, sys.stdin = before
    return printed.getvalue()


def test_the_page_works_from_top_to_bottom(
    tuned_project: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(PAGE, tmp_path)
    for file in tmp_path.glob("*.py"):
        file.write_text(for_the_tests(file.read_text()))
    (tmp_path / EXAMPLE.name).write_text(EXAMPLE.read_text())
    params = (tuned_project / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(f"promotion: {{method: prompt_dt}}\n{params}")
    (tmp_path / "data").mkdir()
    for made in (tuned_project / "data").iterdir():
        (tmp_path / "data" / made.name).symlink_to(made)
    monkeypatch.setattr(onnx_export, "_write_model", lambda loaded, path: shutil.copy(exported / "policy.onnx", path))
    monkeypatch.chdir(tmp_path)
    printed = {command: called(command) for command in commands()}
    assert [command.split()[1] for command in printed] == [
        "promote",
        "robot_loop.py",
        "many_robots.py",
        "take_out.py",
        "export-policy",
        "act_with_onnx.py",
        "rollout",
        "rollout",
    ]
    said = list(printed.values())
    assert said[0] == "point_robot-4: promoted: it is the first one\n"
    assert re.fullmatch(r"at \[.*\]\n", said[1])
    assert said[2] == "(8, 2)\n"
    assert said[3] == "actor 0 of 8: the lowest action loss on the few-shot trajectories\n"
    assert describe(Path("taken_out")) == describe(Path("data/promoted/point_robot-4/0001"))
    assert "largest difference to PyTorch on 12 real windows" in said[4]
    assert np.array([json.loads(line) for line in said[5].splitlines()]).shape == (2, 2)
    assert [line.split(":")[0] for line in said[6].splitlines()] == ["episode 1", "episode 2"]
    assert said[7].splitlines()[-1] == "point_robot-4.mp4"
    assert Path("point_robot-4.mp4").stat().st_size > 1000


def test_the_table_of_files_is_complete() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), flags=re.MULTILINE)
    assert {row.rstrip("/") for row in rows} == set(CONTENTS)
