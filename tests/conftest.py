"""What all tests share: one thread per process, and a tiny point_robot project trained once per session."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: equal bytes on any machine, and xdist uses the cores
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from pd_pipeline import graph
from pd_pipeline.families.base import load_family
from pd_pipeline.families.point_robot import PointRobot
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent

# the same examples every time, and no deadline: a busy machine is not a failure
hypothesis.settings.register_profile("pipeline", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis.settings.load_profile("pipeline")

TINY_PARAMS = """\
run:
  families: [point_robot]
  seeds: [0]
  methods: [prompt_dt, prompt_diffuser, prompt_gradient, full_finetune, noise_prompt, no_prompt]
machine: {device: cpu}
families:
  point_robot:
    environment: {horizon: 12, tasks: 6, test_tasks: [1, 4]}
    behavior_policies: {}
    trajectories:
      workers: 1
      episodes: {expert: {train: 6, test: 7}, random: {train: 2, test: 2}}
    prompts: {length: 3, stride: 1}
    plm: {steps: 60, batch_per_task: 4, width: 16, layers: 2, context: 6, log_every: 10}
    diffuser:
      {steps: 80, batch: 32, log_every: 20, diffusion: {steps: 8}, denoiser: {width: 32, blocks: 1}}
    tuned_prompt_dt: {}
    tuned_prompt_diffuser: {adapt: {steps: 12}, steps: 8, batch: 8, candidates: 12, chain: 3, prompts: 4}
    tuned_prompt_gradient: {steps: 8, windows: 4}
    tuned_full_finetune: {steps: 8, batch: 8}
    tuned_noise_prompt: {}
    tuned_no_prompt: {}
    evaluation: {workers: 1, bootstrap: 200}
    prompt_fit: {prompts: 16}
"""


def run_stages(root: Path, *stages: str) -> None:
    """Run every key of some stages of the project at `root`."""
    project = graph.load(root)
    for stage in stages:
        for key in project.keys(stage):
            run_piece(project, stage, key, silent)


def shared_project(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]) -> Path:
    """A project built by the first worker that needs it and used by all: tests must not write to it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            building = shared / f"{name}.building"
            shutil.rmtree(building, ignore_errors=True)
            build(building)
            building.rename(root)
    return root


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with trajectories, prompts, PLM and diffuser."""

    def build(root: Path) -> None:
        root.mkdir()
        (root / "params.yaml").write_text(TINY_PARAMS)
        run_stages(root, "behavior_policies", "trajectories", "target_data", "prompts", "plm", "diffuser")

    return shared_project(tmp_path_factory, "trained_project", build)


@pytest.fixture(scope="session")
def tuned_project(tmp_path_factory: pytest.TempPathFactory, trained_project: Path) -> Path:
    """The trained project with every method tuned for every target, and evaluated."""

    def build(root: Path) -> None:
        shutil.copytree(trained_project, root)
        stages = graph.load(root).stages
        run_stages(root, *(name for name in stages if name.startswith("tuned_")), "evaluation", "prompt_fit")

    return shared_project(tmp_path_factory, "tuned_project", build)


@pytest.fixture
def project(trained_project: Path, tmp_path: Path) -> Path:
    """A private copy of the trained project."""
    shutil.copytree(trained_project, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that this process makes have no pictures: for tests that look at their text, or at what is made."""
    monkeypatch.setattr("pd_pipeline.reporting.sections.svg", lambda figure, title: "<svg></svg>")


@pytest.fixture
def point_robot() -> PointRobot:
    """The plane of the tiny project."""
    family = load_family("point_robot", {"horizon": 12, "tasks": 6, "test_tasks": [1, 4]}, Path.cwd())
    assert isinstance(family, PointRobot)
    return family
