import fcntl
import os
import shutil
from pathlib import Path

import pytest

from pd_pipeline import graph
from tests.conftest import run_stages


@pytest.fixture(scope="session")
def reported_project(trained_project: Path) -> Path:
    """The tiny project with every stage made, leftovers of a family that params.yaml does not ask for among them."""
    root = trained_project.parent / "reported_project"
    with (trained_project.parent / "reported_project.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            building = trained_project.parent / f"reporting-{os.getpid()}"
            shutil.copytree(trained_project, building)
            tuned = [f"tuned_{method}" for method in graph.load(building).params.run.methods]
            run_stages(building, *tuned, "evaluation", "prompt_fit")
            for stage in ("trajectories", "target_data", "plm", "diffuser", "evaluation", "prompt_fit", *tuned):
                leftover = building / "data" / stage / "forgotten-0"
                leftover.mkdir()
                (leftover / "summary.json").write_text("{")
            run_stages(building, "report")
            building.rename(root)
    return root


@pytest.fixture(scope="session")
def page(reported_project: Path) -> str:
    return (reported_project / "data/reports/index.html").read_text()
