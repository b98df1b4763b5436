"""A DVC project with tiny parameters in a temporary folder, and commands run in it."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from pd_pipeline import graph, lineage, preflight, rendering
from pd_pipeline.cli import app
from pd_pipeline.graph import Graph

SMALL_PARAMS = """\
run: {families: [point_robot, other], seeds: [0], methods: [prompt_dt, noise_prompt]}
machine: {device: cpu}
report: {rollouts: false}
families:
  point_robot: &tiny
    environment: &plane
      {entry_point: "pd_pipeline.families.point_robot:PointRobot", horizon: 6, tasks: 4, test_tasks: [1, 3]}
    behavior_policies: {}
    trajectories: {workers: 1, episodes: {expert: {train: 3, test: 6}}}
    prompts: {length: 3, stride: 1}
    plm: {steps: 4, batch_per_task: 2, width: 8, layers: 1, context: 4}
    diffuser: {steps: 4, batch: 8, diffusion: {steps: 4}, denoiser: {width: 8, blocks: 1}}
    tuned_prompt_dt: {}
    tuned_noise_prompt: {prompts: 4}
    evaluation: {workers: 1, bootstrap: 50}
  other:
    <<: *tiny
"""
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("DVC_STAGE", "DVC_ROOT")},
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "true",
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
}


def make_project(folder: Path, params: str = SMALL_PARAMS) -> Path:
    """A new DVC project, outside git."""
    from dvc.repo import Repo

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(params)
    Repo.init(str(folder), no_scm=True).close()
    (folder / ".dvcignore").write_text("__pycache__\n.*.tmp\n.*.old\n")
    return folder


def change(root: Path, old: str, new: str) -> None:
    """Edit params.yaml."""
    text = (root / "params.yaml").read_text()
    assert old in text
    (root / "params.yaml").write_text(text.replace(old, new, 1))


def start(root: Path, *command: str) -> subprocess.Popen[str]:
    """Start a command in the project."""
    return subprocess.Popen(
        command, cwd=root, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def call(root: Path, *command: str) -> str:
    """Run a command in the project, which must succeed; returns its output."""
    process = start(root, *command)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def write_graph(root: Path) -> None:
    """What `pd-pipeline graph --write` does, in this process: the command would import PyTorch."""
    project = graph.load(root)
    preflight.check(project)
    lineage.keep_rendered(project)


def invoke(root: Path, *arguments: str) -> str:
    """Run a `pd-pipeline` command in this process and in the project, where it must succeed; returns its output."""
    with contextlib.chdir(root):
        result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def dvc(root: Path, *arguments: str) -> str:
    """Run a `dvc` command in this process and in the project, where it must succeed; returns what it printed."""
    from dvc.cli import main as command

    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.chdir(root), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        failed = command(list(arguments))
    assert not failed, printed.getvalue() + errors.getvalue()
    return printed.getvalue()


def definitions(project: Graph) -> dict[str, Any]:
    """What the library knows of each piece of work without reading dvc.yaml."""
    pieces = [(stage, key) for stage in project.stages for key in project.keys(stage)]
    return {rendering.address(*piece): rendering.definition(project, *piece) for piece in pieces}


def definitions_by_dvc(project: Graph) -> dict[str, Any]:
    """What DVC reads in dvc.yaml of the same pieces."""
    from dvc.dvcfile import load_file
    from dvc.repo import Repo

    with Repo(str(project.root)) as repo:
        resolver = load_file(repo, str(project.root / "dvc.yaml")).resolver
        found = {name: resolver.resolve_one(name)[name] for name in resolver.get_keys()}
    del found[rendering.DIGESTS_STAGE]
    return found


def git(root: Path, *arguments: str) -> str:
    """Run git in the project as somebody; returns its output."""
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout
