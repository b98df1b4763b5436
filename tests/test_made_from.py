"""What an out is made from, and that its digest changes with that and with nothing else."""

from pathlib import Path

import pytest

from pd_pipeline import graph, made_from
from pd_pipeline.graph import Graph
from pd_pipeline.sources import PACKAGE
from pd_pipeline.stage import Key
from tests.dvc_project import SMALL_PARAMS


@pytest.fixture
def project(tmp_path: Path) -> Graph:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    return graph.load(tmp_path)


def test_the_code_of_a_stage_is_what_it_imports(project: Graph) -> None:
    key = project.keys("trajectories")[0]
    names = {file.relative_to(PACKAGE).as_posix() for file in made_from.code(project, "trajectories", key)}
    assert {"trajectories/stage.py", "storage.py", "families/point_robot.py"} <= names
    assert not any(name.startswith(("tuning", "models", "reporting")) for name in names)
    assert not names & {"graph.py", "cli.py", "lineage.py", "rendering.py"}


def test_a_method_depends_on_its_own_file_only(project: Graph) -> None:
    key = project.keys("tuned_prompt_dt")[0]
    names = {file.name for file in made_from.code(project, "tuned_prompt_dt", key) if file.parent.name == "tuning"}
    assert "prompt_dt.py" in names
    assert "noise_prompt.py" not in names


def test_the_report_depends_on_its_templates(project: Graph) -> None:
    assert any(file.suffix == ".html" for file in made_from.code(project, "report", Key()))


def test_a_family_of_the_project_depends_on_the_files_it_imports(tmp_path: Path) -> None:
    (tmp_path / "own_helper.py").write_text("GAIN = 1\n")
    (tmp_path / "own_family.py").write_text(
        "import own_helper\nfrom pd_pipeline.families.point_robot import PointRobot\nclass Own(PointRobot): pass\n"
    )
    entry = "own_family:Own"
    (tmp_path / "params.yaml").write_text(
        SMALL_PARAMS.replace("pd_pipeline.families.point_robot:PointRobot", entry).replace(", other]", "]")
    )
    project = graph.load(tmp_path)
    names = {file.name for file in made_from.code(project, "trajectories", project.keys("trajectories")[0])}
    assert {"own_family.py", "own_helper.py", "point_robot.py"} <= names


def test_work_digest_changes_with_the_parameters(project: Graph, tmp_path: Path) -> None:
    key = project.keys("behavior_policies")[0]
    before = made_from.work_digest(project, "behavior_policies", key)
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS.replace("horizon: 6", "horizon: 7"))
    assert made_from.work_digest(graph.load(tmp_path), "behavior_policies", key) != before


def made_inputs(root: Path, project: Graph, stage: str, key: Key, content: str = "the same") -> None:
    """Something in every out that a piece of work reads."""
    for piece in project.upstream(stage, key):
        out = root / project.out(*piece)
        out.mkdir(parents=True, exist_ok=True)
        (out / "file").write_text(content)


def test_work_digest_knows_the_names_of_what_is_read(tmp_path: Path) -> None:
    """An evaluation holds the names of methods, so it is another one when a variant has another name."""
    digests = []
    for name in ("first", "second"):
        methods = f"methods: [prompt_dt, {name}], variants: {{{name}: prompt_dt}}"
        text = SMALL_PARAMS.replace("methods: [prompt_dt, noise_prompt]", methods)
        (tmp_path / "params.yaml").write_text(text.replace("tuned_noise_prompt: {prompts: 4}", f"tuned_{name}: {{}}"))
        project, key = graph.load(tmp_path), Key("point_robot", None, 0)
        made_inputs(tmp_path, project, "evaluation", key)
        digests.append(made_from.work_digest(project, "evaluation", key))
    assert digests[0] != digests[1]


def test_work_digest_depends_on_what_is_read_alone(project: Graph, tmp_path: Path) -> None:
    key = Key("point_robot", None, 0)
    made_inputs(tmp_path, project, "evaluation", key)
    before = made_from.work_digest(project, "evaluation", key)
    left_over = tmp_path / "data/tuned_prompt_dt/point_robot-0/2/file"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("of a target that is none any more")
    assert made_from.work_digest(project, "evaluation", key) == before
    made_inputs(tmp_path, project, "evaluation", key, "other")
    assert made_from.work_digest(project, "evaluation", key) != before
