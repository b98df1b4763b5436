"""Policy folders of the tiny project."""

from pathlib import Path

import pytest

from pd_pipeline import graph
from pd_pipeline.deployment.onnx_export import export_onnx
from pd_pipeline.deployment.writing import write_policy
from pd_pipeline.stage import Key

TARGET = Key("point_robot", 4, 0)


@pytest.fixture(scope="session")
def written(tuned_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy of prompt_dt for a target: tests must not write to it."""
    folder = tmp_path_factory.mktemp("policies") / "prompt_dt"
    write_policy(graph.load(tuned_project), "prompt_dt", TARGET, folder)
    return folder


@pytest.fixture(scope="session")
def exported(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same policy as ONNX: exporting takes seconds, so tests share it and must not write to it."""
    out = tmp_path_factory.mktemp("exported") / "prompt_dt"
    export_onnx(written, out)
    return out
