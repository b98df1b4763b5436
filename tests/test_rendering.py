"""Rendering of dvc.yaml."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pd_pipeline import graph, rendering
from pd_pipeline.code_names import code_name
from pd_pipeline.errors import PipelineError
from pd_pipeline.sources import PACKAGE
from tests.dvc_project import SMALL_PARAMS, change, definitions, definitions_by_dvc, make_project

REPOSITORY = PACKAGE.parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    return tmp_path


def changes(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> set[tuple[str, str]]:
    """(stage, family) of the digests that differ."""
    return {
        (stage, family_of(stage, name))
        for stage, each in before.items()
        for name in each
        if each[name] != after[stage][name]
    }


def family_of(stage: str, name: str) -> str:
    """The family of an entry of digests.json."""
    return name.rpartition("-")[0] if stage == "target_data" else name


def test_dvc_reads_the_keys_and_edges_of_the_graph(tmp_path: Path) -> None:
    from dvc.repo import Repo

    root = make_project(tmp_path)
    project = graph.load(root)
    rendering.write(project)
    work = [(stage, key) for stage in project.stages for key in project.keys(stage)]
    with Repo(str(root)) as repo:
        found = repo.index.graph
        assert {piece.name for piece in found} == {rendering.address(*one) for one in work} | {"digests"}
        edges = {(after.name, before.name) for after, before in found.edges}
    expected = {
        (rendering.address(*one), rendering.address(*other)) for one in work for other in project.upstream(*one)
    }
    assert edges == expected | {(rendering.address(*one), "digests") for one in work}


def test_a_definition_is_what_dvc_makes_of_dvc_yaml(tmp_path: Path) -> None:
    root = make_project(tmp_path)
    project = graph.load(root)
    rendering.write(project)
    assert definitions(project) == definitions_by_dvc(project)


def test_dvcs_view_of_one_piece(tmp_path: Path) -> None:
    from dvc.repo import Repo

    root = make_project(tmp_path)
    rendering.write(graph.load(root))
    with Repo(str(root)) as repo:
        piece = repo.stage.load_one(path=str(root / "dvc.yaml"), name="tuned_prompt_dt@other-3-0")
        assert piece.cmd == "pd-pipeline run tuned_prompt_dt --key other-3-0"
        assert [out.def_path for out in piece.outs] == ["data/tuned_prompt_dt/other-0/3"]
        files = {Path(dep.fs_path) for dep in piece.deps if "params" not in type(dep).__name__.lower()}
        assert files == {root / "data/target_data/other/3", root / "data/plm/other-0"}
        assert {dep.def_path: list(dep.params) for dep in piece.params} == {
            "digests.json": ["tuned_prompt_dt.other"],
        }
        assert piece.outs[0].persist, "DVC must not remove what the stage would refuse to replace"


def test_write_changes_nothing_twice(root: Path) -> None:
    project = graph.load(root)
    assert rendering.write(project)
    stamp = (root / "dvc.yaml").stat().st_mtime_ns
    assert not rendering.write(project)
    assert (root / "dvc.yaml").stat().st_mtime_ns == stamp
    rendering.check(project)


def test_check_names_the_command_to_run(root: Path) -> None:
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
def test_a_block_that_is_left_out_equals_an_empty_one(root: Path, block: str) -> None:
    lines = SMALL_PARAMS.splitlines(True)
    texts = ["", f"    {block}: {{}}\n", f"    {block}: {{changed: 1}}\n"]
    texts = ["".join(text if line.strip().startswith(f"{block}:") else line for line in lines) for text in texts]
    found = []
    for text in texts:
        (root / "params.yaml").write_text(text)
        found.append(rendering.all_digests(graph.load(root))[block]["other"]["parameters"])
    assert found[0] == found[1] != found[2]


def test_inside_the_repository_paths_are_relative_and_named_once() -> None:
    text = rendering.render(graph.load(REPOSITORY))
    assert text.startswith("# Rendered")
    assert str(REPOSITORY) not in text
    assert text.count("- pd_pipeline/training/loop.py") == 1


def test_a_project_within_the_repository_names_the_code_relatively() -> None:
    """So that its dvc.yaml can be under version control, wherever the checkout is."""
    published = PACKAGE.parent / "published"
    text = rendering.render(graph.load(published))
    assert "- ../pd_pipeline/training/loop.py" in text
    assert str(PACKAGE.parent) not in text
    assert text == (published / "dvc.yaml").read_text()


def test_elsewhere_the_code_of_the_package_is_known_by_its_digest(root: Path) -> None:
    """The same bytes installed elsewhere are the same code."""
    project = graph.load(root)
    rendering.write(project)
    assert str(PACKAGE) not in (root / "dvc.yaml").read_text()
    digests = json.loads((root / "digests.json").read_text())
    assert digests["plm"]["other"] == digests["plm"]["point_robot"], "both are made by the same files and parameters"
    assert digests["plm"]["other"] != digests["prompts"]["other"]
    stages = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]
    assert stages["plm"]["do"]["params"][-1] == {"digests.json": ["plm.${item.family}"]}
    assert code_name(PACKAGE / "graph.py", root) == "pd_pipeline/graph.py"


def test_a_family_of_the_project_is_a_dependency_by_its_file(root: Path) -> None:
    (root / "my_family_xyz.py").write_text(
        "from pd_pipeline.families.point_robot import PointRobot\n\n\nclass Mine(PointRobot):\n    pass\n"
    )
    change(root, "pd_pipeline.families.point_robot:PointRobot", "my_family_xyz:Mine")
    project = graph.load(root)
    stages = YAML(typ="safe").load(rendering.render(project))["stages"]
    assert stages["digests"]["deps"] == ["my_family_xyz.py"], "the package's files are nowhere named"
    assert stages["digests"]["outs"] == [{"digests.json": {"cache": False, "persist": True}}]
    before = rendering.all_digests(project)
    (root / "my_family_xyz.py").write_text((root / "my_family_xyz.py").read_text() + "\n")
    after = rendering.all_digests(graph.load(root))
    stages = project.stages.keys() - {"report"}
    assert changes(before, after) == {(stage, family) for stage in stages for family in ("point_robot", "other")}


def test_a_variant_that_is_left_out_is_noticed_where_it_was_read(root: Path) -> None:
    """DVC sees no change where there is only one dependency less."""
    run = YAML(typ="safe").load(root / "params.yaml")["run"]
    both = {**run, "methods": ["prompt_dt", "again"], "variants": {"again": "prompt_dt"}}
    found = []
    for asked in (both, both | {"methods": ["prompt_dt"]}):
        base = {"run": asked, "families": {name: {"tuned_again": {"prompts": 2}} for name in run["families"]}}
        found.append(rendering.all_digests(graph.load(root, base=base)))
    shared = {stage for stage in found[1] if stage != "report"}
    changed = {stage for stage, _ in changes(*({stage: each[stage] for stage in shared} for each in found))}
    assert changed == {"evaluation"}


def test_an_installed_family_has_no_file_of_its_own(root: Path) -> None:
    text = SMALL_PARAMS.replace(
        '{entry_point: "pd_pipeline.families.point_robot:PointRobot", horizon: 6, tasks: 4, test_tasks: [1, 3]}',
        '{entry_point: "installed_family:Installed", horizon: 6}',
    )
    elsewhere = root / "site"
    elsewhere.mkdir()
    (elsewhere / "installed_family.py").write_text(
        "from pd_pipeline.families.point_robot import PointRobot as Other\n\n\nclass Installed(Other):\n    pass\n"
    )
    project_root = root / "project"
    project_root.mkdir()
    (project_root / "params.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(elsewhere))
        project = graph.load(project_root)
        stages = YAML(typ="safe").load(rendering.render(project))["stages"]
        assert "deps" not in stages["digests"]
        before = rendering.all_digests(project)
        (project_root / "params.yaml").write_text(text.replace("installed_family:Installed", "installed_family:Other"))
        assert rendering.all_digests(graph.load(project_root))["plm"] != before["plm"], "by its entry point"


@pytest.mark.parametrize("name", ["on", "null", "other-family", "_x"])
def test_names_that_yaml_would_convert_stay_strings(root: Path, name: str) -> None:
    (root / "params.yaml").write_text(SMALL_PARAMS.replace("other", f'"{name}"'))
    stages = YAML(typ="safe").load(rendering.render(graph.load(root)))["stages"]
    assert list(stages["trajectories"]["foreach"]) == ["point_robot", name]
    assert stages["trajectories"]["foreach"][name]["family"] == name


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and of the published project, to be edited."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(PACKAGE, folder / "pd_pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "published").mkdir()
    shutil.copy(REPOSITORY / "published/params.yaml", folder / "published")
    return folder


def digests_of(checkout: Path) -> dict[str, dict[str, str]]:
    """The digests of the published project, by the package of that checkout."""
    code = (
        "import json; from pathlib import Path; from pd_pipeline import graph, rendering;"
        "print(json.dumps(rendering.all_digests(graph.load(Path('published')))))"
    )
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def before(checkout: Path) -> dict[str, dict[str, str]]:
    """The digests before any edit."""
    return digests_of(checkout)


@pytest.mark.xdist_group("checkout")
@pytest.mark.parametrize(
    ("file", "stages", "families"),
    [
        ("families/cheetah.py", None, {"cheetah_vel", "cheetah_dir"}),
        (
            "models/diffuser.py",
            {"diffuser", "tuned_prompt_diffuser", "tuned_prompt_diffuser_medium", "prompt_fit", "evaluation", "report"},
            None,
        ),
        ("tuning/prompt_gradient.py", {"tuned_prompt_gradient", "tuned_prompt_gradient_medium", "evaluation"}, None),
        ("families/registry.py", set(), set()),
        ("graph.py", set(), set()),
        ("cli.py", set(), set()),
    ],
)
def test_an_edit_makes_stale_what_uses_the_file(
    file: str, stages: set[str] | None, families: set[str] | None, checkout: Path, before: dict[str, dict[str, str]]
) -> None:
    path = checkout / "pd_pipeline" / file
    text = path.read_text()
    try:
        path.write_text(text + "\n# edited\n")
        changed = changes(before, digests_of(checkout))
    finally:
        path.write_text(text)
    every = {(stage, family_of(stage, name)) for stage, each in before.items() for name in each}
    wanted = {
        (stage, family)
        for stage, family in every
        if (stages is None or stage in stages) and (families is None or family in families)
    }
    variants = {(s, f) for s, f in every if stages and any(s.startswith(f"{name}_") for name in stages)}
    assert wanted <= changed <= wanted | variants | ({("report", "all")} if stages else set())


@pytest.mark.xdist_group("checkout")
def test_another_entry_point_in_the_registry_makes_its_family_stale(
    checkout: Path, before: dict[str, dict[str, str]]
) -> None:
    path = checkout / "pd_pipeline/families/registry.py"
    text = path.read_text()
    try:
        (path.parent / "again.py").write_text("from pd_pipeline.families.cheetah_vel import CheetahVel\n")
        path.write_text(text.replace("families.cheetah_vel:", "families.again:"))
        changed = changes(before, digests_of(checkout))
    finally:
        path.write_text(text)
    assert {family for _, family in changed} == {"cheetah_vel", "all"}
