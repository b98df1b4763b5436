"""A user's own method beside params.yaml: run, recorded, evaluated and reported like any other."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pd_pipeline import graph, made_from, preflight
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.rendering import render
from pd_pipeline.storage import read_json
from tests.conftest import run_stages

SOURCE = Path(__file__).with_name("soft_prompt.py")


@pytest.fixture
def extended(project: Path) -> Iterator[Path]:
    """The trained project with `mine`, a method of `my_method.py` beside params.yaml, and a variant of it."""
    shutil.copy(SOURCE, project / "my_method.py")
    run = "  methods: [prompt_dt, mine, mine_longer]\n  variants: {mine_longer: mine}\n  extensions: {mine: my_method}"
    text = re.sub(r"^  methods: .*$", run, (project / "params.yaml").read_text(), count=1, flags=re.MULTILINE)
    text += "    tuned_mine: {prompts: 3}\n    tuned_mine_longer: {prompts: 3, tokens: 7}\n"
    (project / "params.yaml").write_text(text)
    yield project
    sys.modules.pop("my_method", None)
    sys.path.remove(str(project))


def code(project: Graph, stage: str) -> set[str]:
    return {file.name for key in project.keys(stage) for file in made_from.code(project, stage, key)}


def test_it_is_tuned_evaluated_and_reported(extended: Path) -> None:
    stages = ("tuned_prompt_dt", "tuned_mine", "tuned_mine_longer", "evaluation", "report")
    run_stages(extended, *stages)
    metrics = read_json(extended / "data/evaluation/point_robot-0/metrics.json")["methods"]
    assert list(metrics) == ["mine", "mine_longer", "prompt_dt"]
    for name, tokens in (("mine", 4), ("mine_longer", 7)):
        assert metrics[name]["method"] == "mine"
        assert metrics[name]["tuned_parameters"] == tokens * 16
        assert metrics[name]["environment_episodes"] == 2 * 6, "of two targets"
        assert metrics[name]["plm_passes"] == 2 * 6 * 12, "steps of these episodes"
        assert metrics[name]["frozen"]
    assert metrics["prompt_dt"]["environment_episodes"] == 0
    scores = pl.read_parquet(extended / "data/evaluation/point_robot-0/scores.parquet")
    assert scores.filter(pl.col("method") == "mine").height == 2 * 3
    assert scores.filter(pl.col("method") == "mine", pl.col("task") == 1)["return"].n_unique() == 3
    page = (extended / "data/reports/index.html").read_text()
    assert '<tr data-method="mine_longer"' in page
    assert "environment episodes" in page
    assert not {"diffuser", "prompt_fit"} & set(graph.load(extended).stages)


def test_the_prompts_it_generates_are_measured_beside_those_of_prompt_diffuser(extended: Path) -> None:
    (extended / "my_method.py").write_text(
        '"""A diffuser of my own."""\n\nfrom pd_pipeline.tuning import prompt_diffuser\n\n'
        'NEEDS = ("diffuser",)\nload = prompt_diffuser.load\n\n\nclass Params(prompt_diffuser.Params):\n    pass\n\n\n'
        "def tune(plm, target, params, run):\n    return prompt_diffuser.tune(plm, target, params, run)\n"
    )
    path = extended / "params.yaml"
    text = path.read_text().replace("mine, mine_longer]", "mine, prompt_diffuser]").replace("{mine_longer: mine}", "{}")
    block = re.search(r"^    tuned_prompt_diffuser: (.+)$", text, re.MULTILINE)
    assert block is not None
    path.write_text(re.sub(r"^    tuned_mine.*\n", "", text, flags=re.MULTILINE) + f"    tuned_mine: {block[1]}\n")
    run_stages(extended, "tuned_prompt_dt", "tuned_mine", "tuned_prompt_diffuser", "evaluation", "prompt_fit", "report")
    targets = read_json(extended / "data/prompt_fit/point_robot-0/fit.json")["targets"]
    for states in targets.values():
        assert states.keys() == {"adapted by mine", "guided by mine", "adapted", "guided"}
        assert states["guided by mine"]["nearest_kept"] > 0
    page = (extended / "data/reports/index.html").read_text()
    for state in ("adapted by mine", "guided by mine", "adapted", "guided"):
        assert f"After being {state}, its prompts" in page


def test_its_file_is_a_dependency_only_of_stages_that_use_it(extended: Path) -> None:
    project = graph.load(extended)
    reading = {stage for stage in project.stages if "my_method.py" in code(project, stage)}
    assert reading == {"tuned_mine", "tuned_mine_longer", "evaluation", "report"}
    assert "my_method.py" in render(project)
    before = {
        stage: made_from.work_digest(project, stage, project.keys(stage)[0])
        for stage in ("tuned_mine", "tuned_prompt_dt")
    }
    (extended / "my_method.py").write_text(SOURCE.read_text() + "\n# another version\n")
    project = graph.load(extended)
    after = {stage: made_from.work_digest(project, stage, project.keys(stage)[0]) for stage in before}
    assert after["tuned_mine"] != before["tuned_mine"]
    assert after["tuned_prompt_dt"] == before["tuned_prompt_dt"]


def test_an_edited_module_is_checked_again(extended: Path) -> None:
    before = preflight._state(graph.load(extended))
    assert preflight._state(graph.load(extended)) == before
    (extended / "my_method.py").write_text(SOURCE.read_text() + "\n# another version\n")
    assert preflight._state(graph.load(extended)) != before


def test_an_offline_method_that_asks_for_a_simulation_is_refused(extended: Path) -> None:
    (extended / "my_method.py").write_text(SOURCE.read_text().replace("ONLINE = True\n", ""))
    with pytest.raises(PipelineError, match=r"tuned_mine point_robot-1-0: .* offline method .* set `ONLINE = True`"):
        run_stages(extended, "tuned_mine")
    assert not (extended / "data/tuned_mine").exists() or not list((extended / "data/tuned_mine").rglob("*.json"))


BEST, LEAVE = "    best = drawn[", "    with run.simulation(params.tries) as simulation:"
WRONG = {
    "raises": (BEST, f"    1 / 0\n{BEST}", r"`tune` of my_method raised ZeroDivisionError.*my_method\.py"),
    "leaves": (BEST, f"    raise SystemExit(0)\n{BEST}", "`tune` of my_method raised SystemExit: 0"),
    "gives something else": (LEAVE, f"    return 'x'\n{LEAVE}", "returned str, not an Adaptation"),
    "cannot be imported": ("ONLINE = True", "raise OSError('no licence')", "as a method: OSError: no licence"),
    "no class of parameters": ("ONLINE = True", "Params = 5", "my_method.py: Params is 5, not a subclass"),
    "no parameters": ("ONLINE = True", "Other = 5", "my_method.py: cannot be used as a method: AttributeError"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_in_it_become_one_line(wrong: str, extended: Path) -> None:
    old, new, message = WRONG[wrong]
    text = SOURCE.read_text()
    assert old in text
    text = text.replace(old, new)
    if wrong.startswith("no "):
        text = text.replace("class Params(", "class Other(").replace("params: Params", "params: Other")
    (extended / "my_method.py").write_text(text)
    with pytest.raises(PipelineError, match=message):
        run_stages(extended, "tuned_mine")
