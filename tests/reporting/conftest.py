import shutil
from pathlib import Path

import pytest

from pd_pipeline import graph
from tests.conftest import run_stages, shared_project


@pytest.fixture(scope="session")
def reported_project(tmp_path_factory: pytest.TempPathFactory, tuned_project: Path) -> Path:
    """The tiny project with every stage made, leftovers of a family that params.yaml does not ask for among them."""

    def build(root: Path) -> None:
        shutil.copytree(tuned_project, root)
        tuned = [f"tuned_{method}" for method in graph.load(root).params.run.methods]
        for stage in ("trajectories", "target_data", "plm", "diffuser", "evaluation", "prompt_fit", *tuned):
            leftover = root / "data" / stage / "forgotten-0"
            leftover.mkdir()
            (leftover / "summary.json").write_text("{")
        run_stages(root, "report")

    return shared_project(tmp_path_factory, "reported_project", build)


@pytest.fixture(scope="session")
def page(reported_project: Path) -> str:
    return (reported_project / "data/reports/index.html").read_text()
