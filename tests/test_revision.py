"""The git revision of a project, and the commit in which a file first had a text."""

from pathlib import Path

from pd_pipeline.revision import first_commit_with, git_revision
from tests.dvc_project import git


def commit(root: Path, text: str) -> str:
    (root / "dvc.lock").write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return git(root, "rev-parse", "HEAD").strip()


def test_revision_and_uncommitted_changes(tmp_path: Path) -> None:
    assert git_revision(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "params.yaml").write_text("run: {}\n")
    made = commit(tmp_path, "a\n")
    assert git_revision(tmp_path) == made
    (tmp_path / "dvc.lock").write_text("b\n")
    assert git_revision(tmp_path) == made, "neither code nor parameters"
    (tmp_path / "params.yaml").write_text("run: {x: 1}\n")
    assert git_revision(tmp_path) == f"{made} with uncommitted changes"


def test_the_first_commit_with_a_text(tmp_path: Path) -> None:
    assert first_commit_with(tmp_path, "dvc.lock", "a") is None
    git(tmp_path, "init", "-q")
    commit(tmp_path, "out: 1\n")
    first = commit(tmp_path, "out: 1\nout: 2\n")
    commit(tmp_path, "out: 1\nout: 2\ndep: 2\nout: 2\n")
    assert first_commit_with(tmp_path, "dvc.lock", "out: 2") == first
    assert first_commit_with(tmp_path, "dvc.lock", "out: 3") is None
