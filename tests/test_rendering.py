"""dvc.yaml as it is rendered."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pd_pipeline import graph, rendering
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import PACKAGE
from tests.dvc_project import SMALL_PARAMS, change, make_project

REPOSITORY = PACKAGE.parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    return tmp_path


def test_dvc_reads_the_keys_and_edges_of_the_graph(tmp_path: Path) -> None:
    from dvc.repo import Repo

    root = make_project(tmp_path)
    project = graph.load(root)
    rendering.write(project)
    work = [(stage, key) for stage in project.stages for key in project.keys(stage)]
    with Repo(str(root)) as repo:
        found = repo.index.graph
        assert {piece.name for piece in found} == {rendering.address(*one) for one in work}
        edges = {(after.name, before.name) for after, before in found.edges}
    expected = {
        (rendering.address(*one), rendering.address(*other)) for one in work for other in project.upstream(*one)
    }
    assert edges == expected


def test_what_dvc_reads_of_one_piece(tmp_path: Path) -> None:
    from dvc.repo import Repo

    root = make_project(tmp_path)
    rendering.write(graph.load(root))
    with Repo(str(root)) as repo:
        piece = repo.stage.load_one(path=str(root / "dvc.yaml"), name="tuned_prompt_dt@other-3-0")
        assert piece.cmd == "pd-pipeline run tuned_prompt_dt --key other-3-0"
        assert [out.def_path for out in piece.outs] == ["data/tuned_prompt_dt/other-0/3"]
        files = {Path(dep.fs_path) for dep in piece.deps if "params" not in type(dep).__name__.lower()}
        assert files == {root / "data/trajectories/other", root / "data/plm/other-0"}
        assert {dep.def_path: list(dep.params) for dep in piece.params} == {
            "params.yaml": ["families.other.environment", "families.other.tuned_prompt_dt"],
            "code.json": ["tuned_prompt_dt.other"],
        }
        assert piece.outs[0].persist, "DVC must not remove what the stage would refuse to replace"


def test_write_changes_nothing_twice(root: Path) -> None:
    project = graph.load(root)
    assert rendering.write(project)
    stamp = (root / "dvc.yaml").stat().st_mtime_ns
    assert not rendering.write(project)
    assert (root / "dvc.yaml").stat().st_mtime_ns == stamp
    rendering.check(project)


def test_check_names_the_command_that_mends(root: Path) -> None:
    project = graph.load(root)
    with pytest.raises(PipelineError, match="graph --write"):
        rendering.check(project)
    rendering.write(project)
    (root / "params.yaml").write_text(SMALL_PARAMS.replace("seeds: [0]", "seeds: [0, 1]"))
    with pytest.raises(PipelineError, match="graph --write"):
        rendering.check(graph.load(root))


def test_parameter_values_are_not_in_the_file(root: Path) -> None:
    before = rendering.render(graph.load(root))
    (root / "params.yaml").write_text(SMALL_PARAMS.replace("width: 8", "width: 16"))
    assert rendering.render(graph.load(root)) == before


@pytest.mark.parametrize("block", ["plm", "tuned_noise_prompt", "evaluation"])
def test_a_missing_block_is_named(root: Path, block: str) -> None:
    text = "".join(line for line in SMALL_PARAMS.splitlines(True) if not line.strip().startswith(f"{block}:"))
    (root / "params.yaml").write_text(text)
    with pytest.raises(PipelineError, match=f"has no block '{block}'"):
        rendering.render(graph.load(root))


def test_inside_the_repository_paths_are_relative() -> None:
    text = rendering.render(graph.load(REPOSITORY))
    assert text.startswith("# Rendered")
    assert str(REPOSITORY) not in text
    assert "- pd_pipeline/training/loop.py" in text


def test_a_project_within_the_repository_names_the_code_relatively() -> None:
    """So that its dvc.yaml can be under version control, wherever the checkout lies."""
    published = PACKAGE.parent / "published"
    text = rendering.render(graph.load(published))
    assert "- ../pd_pipeline/training/loop.py" in text
    assert str(PACKAGE.parent) not in text
    assert text == (published / "dvc.yaml").read_text()


def test_elsewhere_the_code_of_the_package_is_known_by_its_digest(root: Path) -> None:
    """The same bytes installed at another place are the same code."""
    project = graph.load(root)
    rendering.write(project)
    assert str(PACKAGE) not in (root / "dvc.yaml").read_text()
    digests = json.loads((root / "code.json").read_text())
    assert digests["plm"]["other"] == digests["plm"]["point_robot"], "both are made by the same files"
    assert digests["plm"]["other"] != digests["prompts"]["other"]
    stages = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]
    assert stages["plm"]["do"]["params"][-1] == {"code.json": ["plm.${item.family}"]}
    assert rendering.code_name(PACKAGE / "graph.py", root) == "pd_pipeline/graph.py"


def test_a_family_of_the_project_is_a_dependency_by_its_file(root: Path) -> None:
    (root / "my_family_xyz.py").write_text(
        "from pd_pipeline.families.point_robot import PointRobot\n\n\nclass Mine(PointRobot):\n    pass\n"
    )
    change(root, "pd_pipeline.families.point_robot:PointRobot", "my_family_xyz:Mine")
    stages = YAML(typ="safe").load(rendering.render(graph.load(root)))["stages"]
    assert stages["plm"]["foreach"]["point_robot-0"]["code"] == "my_family_xyz.py"
    assert stages["plm"]["do"]["deps"][0] == "${item.code}"


def test_an_installed_family_has_no_file_of_its_own(root: Path) -> None:
    text = SMALL_PARAMS.replace(
        '{entry_point: "pd_pipeline.families.point_robot:PointRobot", horizon: 6, tasks: 4, test_tasks: [1, 3]}',
        '{entry_point: "installed_family:Installed", horizon: 6}',
    )
    elsewhere = root / "site"
    elsewhere.mkdir()
    (elsewhere / "installed_family.py").write_text(
        "from pd_pipeline.families.point_robot import PointRobot\n\n\nclass Installed(PointRobot):\n    pass\n"
    )
    project_root = root / "project"
    project_root.mkdir()
    (project_root / "params.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(elsewhere))
        stages = YAML(typ="safe").load(rendering.render(graph.load(project_root)))["stages"]
    assert "code" not in stages["plm"]["foreach"]["other-0"]


@pytest.mark.parametrize("name", ["on", "null", "other-family", "_x"])
def test_names_that_yaml_reads_otherwise_survive(root: Path, name: str) -> None:
    (root / "params.yaml").write_text(SMALL_PARAMS.replace("other", f'"{name}"'))
    stages = YAML(typ="safe").load(rendering.render(graph.load(root)))["stages"]
    assert list(stages["trajectories"]["foreach"]) == ["point_robot", name]
    assert stages["trajectories"]["foreach"][name]["family"] == name
