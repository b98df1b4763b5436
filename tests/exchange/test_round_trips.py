"""What is exported and imported again is what it was, in every format."""

from pathlib import Path

import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.exporting import send
from pd_pipeline.exchange.formats import WRITERS
from pd_pipeline.trajectories.reading import read_metadata
from tests.exchange.builders import FAMILY, OUTS, assert_same, every, exported, imported, trajectory_file


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return trajectory_file(tmp_path / "original/medium.parquet")


@pytest.mark.parametrize("named", [*WRITERS, "parquet"])
def test_nothing_is_lost(tmp_path: Path, original: Path, named: str) -> None:
    source = original if named == "parquet" else exported(named, tmp_path, original)
    (made,), said = imported(tmp_path / "project", source)
    assert_same(every(made), every(original))
    before, after = read_metadata(original), read_metadata(made)
    origin = after.origin[-1]
    assert after.model_copy(update={"family": before.family, "origin": ()}) == before
    assert (origin.format, origin.source, origin.options) == (named, str(source), {})
    assert len(origin.digest) == 64
    assert {"pd-pipeline", "numpy"} < origin.versions.keys()
    assert f"{named}, 5 episodes of at most 10 steps" in said
    assert "task 2 -> task 2 of robot, quality medium {'position': [0.1, 2.0]}" in said


@pytest.mark.parametrize("named", WRITERS)
def test_through_another_format_and_back(tmp_path: Path, original: Path, named: str) -> None:
    """An export of an import: the origin of the first import is kept."""
    (first,), _ = imported(tmp_path / "one", exported("d4rl", tmp_path, original))
    (second,), _ = imported(tmp_path / "two", exported(named, tmp_path / "again", first))
    assert_same(every(second), every(original))
    assert [origin.format for origin in read_metadata(second).origin] == ["d4rl", named]


@pytest.mark.parametrize("named", WRITERS)
def test_the_outs_of_a_project_are_exported(trained_project: Path, tmp_path: Path, named: str) -> None:
    out = tmp_path / OUTS[named]
    assert send(trained_project, "point_robot", "random", named, out) == (12, 144)
    (made,), _ = imported(tmp_path, out)
    assert_same(every(made), every(trained_project / "data/trajectories/point_robot/random.parquet"))
    with pytest.raises(PipelineError, match="is there already"):
        send(trained_project, "point_robot", "random", named, out)


def test_what_cannot_be_exported_is_said(trained_project: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="--format hdf: cannot be written: choose one of minari, lerobot, d4rl"):
        send(trained_project, "point_robot", "expert", "hdf", tmp_path / "x")
    with pytest.raises(PipelineError, match="no trajectories of quality 'medium': found expert, random"):
        send(trained_project, "point_robot", "medium", "d4rl", tmp_path / "x")
    with pytest.raises(PipelineError, match="stage trajectories has no key 'reach'"):
        send(trained_project, "reach", "expert", "d4rl", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_an_import_that_was_written_is_a_family(tmp_path: Path, original: Path) -> None:
    from pd_pipeline.families.base import load_family

    root = tmp_path / "project"
    imported(root, original)
    found = load_family(FAMILY, {"data": f"data/imported/{FAMILY}"}, root)
    assert (found.train_tasks, found.test_tasks, found.horizon) == ((2,), (5,), 10)
