"""What a node checks before it works, and what it fetches where it shares no file system with the command."""

import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from pd_pipeline import data_root, graph, lineage, records
from pd_pipeline.data_root import DataRoot
from pd_pipeline.engines import on_node
from pd_pipeline.engines.on_node import PROJECT, asked, compute, compute_parts
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest
from tests import accepted
from tests.dvc_project import SMALL_PARAMS, change, make_project
from tests.recorded_project import FAMILY, FOLDER, RECORDED_PARAMS, record, record_project

POLICIES, TRAJECTORIES, KEY = "behavior_policies", "trajectories", Key("point_robot")
NEW = 57
HERE = rf"node {re.escape(socket.gethostname())}: "


@pytest.fixture
def project(tmp_path: Path) -> Graph:
    """A project with a data root, and its first stage made."""
    (tmp_path / "shared").mkdir()
    machine = f"machine: {{device: cpu, data_root: {str(tmp_path / 'shared')!r}}}"
    params = SMALL_PARAMS.replace("machine: {device: cpu}", machine)
    params = params.replace("    tuned_prompt_dt", "    target: {few_shot: 2}\n    tuned_prompt_dt")
    made = graph.load(make_project(tmp_path / "project", params))
    lineage.run(made, POLICIES, KEY, silent)
    return made


@pytest.fixture
def node(project: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's folder on a node, where nothing was made."""
    folder = tmp_path / "node"
    folder.mkdir()
    shutil.copy(project.root / "params.yaml", folder)
    monkeypatch.setenv(PROJECT, str(folder))
    return folder


def test_it_fetches_what_the_piece_reads_and_leaves_what_it_made(project: Graph, node: Path) -> None:
    metrics = compute(asked(project, TRAJECTORIES, KEY), 1)
    assert not (project.root / "data/trajectories").exists()
    root = data_root.of(project)
    assert root is not None
    assert data_root.take(root, project, TRAJECTORIES, KEY, silent) == metrics
    for folder in ("data/behavior_policies/point_robot", "data/trajectories/point_robot"):
        assert digest(project.root / folder) == digest(node / folder)
    assert not any((node / on_node.UNSENT).iterdir())


def test_work_that_could_not_be_sent_is_sent_the_next_time(
    project: Graph, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece, made = asked(project, TRAJECTORIES, KEY), []
    run_piece = on_node.run_piece
    monkeypatch.setattr(on_node, "run_piece", lambda *given: made.append(1) or run_piece(*given))

    def fails(*_: Any) -> None:
        raise OSError("the bucket is full")

    with monkeypatch.context() as patch:
        patch.setattr(DataRoot, "enter", fails)
        with pytest.raises(OSError, match="full"):
            compute(piece, 1)
    assert compute(piece, 1)["row_count"] > 0
    assert len(made) == 1


def test_a_target_with_data_of_a_user_is_known_there(project: Graph, node: Path) -> None:
    now = accepted.accept(project.root, NEW, 4, horizon=6)
    family, target = Key("point_robot", None, 0), Key("point_robot", NEW, 0)
    for stage, key in (
        (TRAJECTORIES, KEY),
        ("target_data", Key("point_robot", NEW)),
        ("prompts", KEY),
        ("plm", family),
    ):
        lineage.run(now, stage, key, silent)
    compute(asked(now, "tuned_prompt_dt", target), 1)
    assert (node / now.out("tuned_prompt_dt", target) / "prompts.safetensors").is_file()
    assert sorted(path.name for path in (node / f"data/ingested/point_robot/{NEW}").iterdir()) == [
        "0001-expert.json",
        "0001-expert.parquet",
    ]
    file = node / f"data/ingested/point_robot/{NEW}/0001-expert.parquet"
    file.write_bytes(b"another")
    with pytest.raises(PipelineError, match=rf"{HERE}.*0001-expert.parquet: holds something else"):
        compute(asked(now, "tuned_prompt_dt", target), 1)
    assert file.read_bytes() == b"another"


def test_files_of_somebody_are_not_replaced_there(project: Graph, node: Path) -> None:
    own = node / "data/behavior_policies/point_robot/notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(PipelineError, match=rf"trajectories@point_robot: {HERE}.*notes.txt: not written by stage"):
        compute(asked(project, TRAJECTORIES, KEY), 1)
    assert own.read_text() == "mine"


def test_other_code_and_other_parameters_are_refused_before_anything_is_fetched(project: Graph, node: Path) -> None:
    piece = asked(project, TRAJECTORIES, KEY)
    with pytest.raises(PipelineError, match=rf"{HERE}sees other code than the command"):
        compute(piece._replace(code="another"), 1)
    with pytest.raises(PipelineError, match=rf"{HERE}torch .* is installed, but 0.1 where the command runs"):
        compute(piece._replace(packages=piece.packages | {"torch": "0.1"}), 1)
    assert not (node / "data").exists()
    change(node, "train: 3", "train: 4")
    with pytest.raises(PipelineError, match=rf"{HERE}.* has other parameters or inputs than .*the same params.yaml"):
        compute(piece, 1)
    assert not (node / "data/trajectories").exists()
    (node / "params.yaml").unlink()
    with pytest.raises(PipelineError, match=rf"{HERE}.*/node holds no params.yaml: .*{PROJECT}"):
        compute(piece, 1)


def test_without_a_data_root_the_files_must_be_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Graph
) -> None:
    alone = graph.load(make_project(tmp_path / "alone", SMALL_PARAMS))
    lineage.run(alone, POLICIES, KEY, silent)
    piece = asked(alone, TRAJECTORIES, KEY)
    with pytest.raises(PipelineError, match=rf"{HERE}does not see the files in .* or name a `machine.data_root`"):
        compute_parts(piece, 1, print, [], "a token of another node")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(alone.root / "params.yaml", tmp_path / "elsewhere")
    monkeypatch.setenv(PROJECT, str(tmp_path / "elsewhere"))
    with pytest.raises(PipelineError, match=rf"{HERE}data/behavior_policies/point_robot: missing"):
        compute(piece, 1)


def test_an_out_that_is_the_same_there_is_not_fetched_again(
    project: Graph, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project.root / "data/behavior_policies", node / "data/behavior_policies")  # as `dvc pull` does

    def fails(*_: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(DataRoot, "fetch", fails)
    compute(asked(project, TRAJECTORIES, KEY), 1)
    assert records.find(node, POLICIES, KEY) is None


def test_trajectories_of_a_family_without_a_simulator_are_sent(
    trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a node that has the data of no other family of the project either."""
    (tmp_path / "shared").mkdir()
    params = RECORDED_PARAMS.replace(f"families: [{FAMILY}]", f"families: [{FAMILY}, second]")
    params = params.replace("{device: cpu}", f"{{device: cpu, data_root: {str(tmp_path / 'shared')!r}}}")
    params += "  second: {environment: {data: data/imported/second, targets: [1]}}\n"
    root = record_project(trained_project, tmp_path / "project", params)
    source = trained_project / "data/trajectories/point_robot/expert.parquet"
    record(source, root / "data/imported/second/expert.parquet", family="second")
    made, key = graph.load(root), Key(FAMILY)
    lineage.run(made, POLICIES, key, silent)
    folder = tmp_path / "node"
    folder.mkdir()
    shutil.copy(root / "params.yaml", folder)
    monkeypatch.setenv(PROJECT, str(folder))
    compute(asked(made, TRAJECTORIES, key), 1)
    assert digest(folder / FOLDER) == digest(root / FOLDER)
    assert not (folder / "data/imported/second").exists()
    shared = data_root.of(made)
    assert shared is not None
    assert data_root.take(shared, made, TRAJECTORIES, key, silent)
    removed = sorted((root / "data/imported" / FAMILY).glob("*.parquet"))[-1]
    removed.unlink()
    with pytest.raises(PipelineError, match=rf"{HERE}.*{removed.name}: not among the files of the comm.*remove it"):
        compute(asked(graph.load(root), TRAJECTORIES, key), 1)
