"""`make clean` removes what the pipeline made and nothing else."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pd_pipeline import clean as cleaning
from pd_pipeline import graph, rendering
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from tests.accepted import accept
from tests.dvc_project import SMALL_PARAMS, call, dvc, make_project, write_graph
from tests.recorded_project import record_project

PACKAGE = Path(cleaning.__file__).parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with some outs made."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text(SMALL_PARAMS)
    project = graph.load(root)
    for stage in ("behavior_policies", "trajectories", "prompts"):
        for key in project.keys(stage):
            run_piece(project, stage, key, silent)
    (root / "data/.gitkeep").touch()
    return root


def cleaned(root: Path) -> str:
    """As the Makefile calls it, with an interpreter that has none of this package's dependencies."""
    command = [sys.executable, "-S", "-m", "pd_pipeline.clean", str(root)]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    return done.stdout


def test_everything_the_pipeline_made_is_removed(root: Path) -> None:
    for name in (".work/plm/x-0", "data/tensorboard/plm", "data/prompts/.other.123.tmp"):
        (root / name).mkdir(parents=True)
    assert cleaned(root) == ""
    assert sorted(path.name for path in root.iterdir()) == ["data", "params.yaml"]
    assert [path.name for path in (root / "data").iterdir()] == [".gitkeep"]


def test_the_users_own_files_stay_and_are_named(root: Path) -> None:
    kept = [
        "data/incoming/x.parquet",
        "data/incoming/.raw.1.tmp/y",
        "data/incoming/.gitignore",
        "data/trajectories/point_robot/mine.parquet",
        "data/notes.txt",
        "build/mine",
    ]
    for name in kept:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    changed = root / "data/prompts/other/config.json"
    changed.write_text("edited by hand")
    (root / "data/incoming/empty").mkdir()
    printed = cleaned(root)
    assert (root / "data/incoming/empty").is_dir()
    assert all((root / name).read_text() == "mine" for name in kept)
    assert changed.read_text() == "edited by hand"
    assert not (root / "data/trajectories/point_robot/expert.parquet").exists()
    assert not (root / "data/behavior_policies").exists()
    for name in (
        "incoming",
        "trajectories/point_robot/mine.parquet",
        "notes.txt",
        "prompts/other/config.json",
    ):
        assert name in printed


def test_the_digests_are_removed_and_dvc_does_without_them(tmp_path: Path) -> None:
    root = make_project(tmp_path / "recorded")
    call(root, "pd-pipeline", "run", "behavior_policies", "--key", "other")
    before = (root / "digests.json").read_bytes()
    assert cleaned(root) == ""
    assert not (root / "digests.json").exists()
    dvc(root, "checkout", "behavior_policies@other")
    assert (root / "data/behavior_policies/other/policies.json").is_file()
    assert re.search(r"deleted: +digests\.json", dvc(root, "status", "behavior_policies@other"))
    write_graph(root)
    assert (root / "digests.json").read_bytes() == before
    assert "up to date" in dvc(root, "status", "behavior_policies@other")


@pytest.mark.parametrize(
    "content",
    [
        "mine",
        "{}",
        "[]",
        "5",
        '{"stage": {"family": {"code": "x"}}}',
        '{"stage": {"family": {"code": "x", "parameters": "x", "mine": "x"}}}',
        '{"stage": {"family": 5}}',
        '{"stage": 5}',
    ],
)
def test_a_file_of_this_name_that_the_graph_did_not_write_stays(root: Path, content: str) -> None:
    (root / "digests.json").write_text(content)
    assert cleaned(root) == f"left: {root / 'digests.json'} is not the pipeline's\n"
    assert (root / "digests.json").read_text() == content


def test_digests_of_recordings_are_removed_too(trained_project: Path, tmp_path: Path) -> None:
    root = record_project(trained_project, tmp_path / "recorded")
    rendering.write(graph.load(root))
    assert '"recordings"' in (root / "digests.json").read_text()
    assert "digests.json" not in cleaned(root)
    assert not (root / "digests.json").exists()


def test_the_digests_of_a_project_with_accepted_data_are_removed_too(root: Path) -> None:
    rendering.write(accept(root, 57, episodes=4, horizon=6))
    assert "recordings" in (root / "digests.json").read_text()
    assert "digests.json" not in cleaned(root)
    assert not (root / "digests.json").exists()
    assert (root / "data/ingested/point_robot/57/0001-expert.parquet").exists()


def test_digests_behind_a_link_stay(root: Path, tmp_path: Path) -> None:
    rendering.write(graph.load(root))
    (root / "digests.json").rename(tmp_path / "elsewhere.json")
    (root / "digests.json").symlink_to(tmp_path / "elsewhere.json")
    assert "digests.json is not the pipeline's" in cleaned(root)
    assert (root / "digests.json").is_symlink()
    assert (tmp_path / "elsewhere.json").is_file()


def test_nothing_behind_a_link_is_touched(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "data").mkdir(parents=True)
    (elsewhere / "data/precious").write_text("mine")
    (root / "data/linked").symlink_to(elsewhere)
    (root / ".work").rename(elsewhere / "work") if (root / ".work").exists() else (elsewhere / "work").mkdir()
    (root / ".work").symlink_to(elsewhere / "work")
    moved = elsewhere / "trajectories"
    shutil.move(root / "data/trajectories", moved)
    (root / "data/trajectories").symlink_to(moved)
    printed = cleaned(root)
    assert (elsewhere / "data/precious").read_text() == "mine"
    assert (elsewhere / "work").is_dir()
    assert (moved / "point_robot/expert.parquet").is_file()
    assert (root / "data/linked").is_symlink()
    for name in ("data/linked is a link", ".work lies behind a link", "data/trajectories is a link"):
        assert name in printed


def test_a_linked_data_folder_is_left_alone(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "data", tmp_path / "store")
    (root / "data").symlink_to(tmp_path / "store")
    assert "data is a link" in cleaned(root)
    assert (tmp_path / "store/trajectories/point_robot/expert.parquet").is_file()


@pytest.mark.parametrize("out", ["../outside", "data/../../outside", "/etc", "data", "", 5])
def test_a_record_that_names_another_place_removes_nothing(root: Path, out: object) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    for folder in (outside, root / "data"):
        (folder / "file").write_bytes(b"mine")
    record = {"out": out, "made": "x", "files": {"file": hashlib.sha256(b"mine").hexdigest()}, "seconds": 1}
    (root / "data/records/prompts/odd.json").write_text(json.dumps(record))
    cleaned(root)
    assert (outside / "file").is_file()
    assert (root / "data/file").is_file()
    assert not (root / "data/prompts").exists(), "the other records count"
