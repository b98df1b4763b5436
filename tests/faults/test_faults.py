"""A small form of every attack; `make faults` is the full one."""

import shutil
from pathlib import Path

from tests.faults import files, kills, parameters
from tests.faults.report import Attack, complaint, table


def test_work_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    expected = kills.undisturbed(tmp_path / "quiet")
    found = kills.attack("pd-pipeline run all", 4, tmp_path, expected)
    assert not found.failures, table([found])


def test_damaged_trajectory_files_are_refused_or_read_as_they_were(trained_project: Path, tmp_path: Path) -> None:
    found = files.trajectories(trained_project / "data/trajectories/point_robot/expert.parquet", 60, tmp_path)
    assert not found.failures, table([found])


def test_damaged_outs_are_refused_in_one_line(tuned_project: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned_project, tmp_path / "project")
    found = files.outs(tmp_path / "project", 25)
    assert not found.failures, table([found])


def test_hostile_parameters_are_refused_in_one_line(tmp_path: Path) -> None:
    found = parameters.attack(tmp_path, 60)
    assert not found.failures, table([found])


def test_the_attacks_can_fail() -> None:
    """The counts come from real checks: a failure is noticed."""
    assert complaint("params.yaml: run.seeds: give at least one") is None
    assert complaint("") is not None
    assert complaint("a\nb") is not None
    assert complaint("x" * 2000) is not None
    found = Attack("flips")
    found.survived(None)
    found.survived("read as other rewards")
    assert "| flips | 2 | 1 |" in table([found])
    assert "flips: read as other rewards" in table([found])
