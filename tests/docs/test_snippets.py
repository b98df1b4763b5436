"""What the pages show as files is read by the code that reads a user's files."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from ruamel.yaml import YAML

from pd_pipeline import graph, preflight
from pd_pipeline.exchange.importing import bring
from pd_pipeline.exchange.mapping import Asked
from pd_pipeline.families.base import Family
from pd_pipeline.progress import silent
from pd_pipeline.tuning.adaptation import Prompted
from pd_pipeline.tuning.protocol import Run
from tests.docs.pages import Shown, files, lay_out, shown
from tests.tuning.tiny import few_shot_of, pretrained

PARAMS = files("params.yaml")
STUDIES = [file for file in files(".yaml") if file.name.startswith("studies/")]
OFFSET = "prompt_offset.py"
LOGS = "logs_to_hdf5.py"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for modules of a page; what is imported from it is forgotten."""
    path, modules = list(sys.path), set(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def loaded(file: Shown, folder: Path) -> graph.Graph:
    lay_out(file.page, folder)
    if (folder / LOGS).is_file():
        import_logs(folder)
    (folder / "params.yaml").write_text(file.text)
    return graph.load(folder)


def import_logs(folder: Path) -> None:
    """What the reader of docs/data.md does before the family is known."""
    subprocess.run([sys.executable, LOGS], cwd=folder, check=True)
    for task in range(6):
        bring(folder, str(folder / f"task_{task}.hdf5"), "my_robot", Asked(task=task), None, None, silent, str)


def episode(family: Family, task: int, quality: str) -> float:
    """Return of an episode under the behaviour of a quality."""
    environment, act = family.make(task), family.behavior(family.default_behaviors()[quality])
    observation, _ = environment.reset(seed=0)
    rng, total = np.random.default_rng(0), 0.0
    for _ in range(family.horizon):
        action = act(environment, observation, rng)
        assert action.shape == family.action_low.shape
        assert (action >= family.action_low).all()
        assert (action <= family.action_high).all()
        observation, reward, terminated, _, _ = environment.step(action)
        assert observation.shape == (family.observation_size,)
        total += float(reward)
        if terminated:
            break
    environment.close()
    return total


def test_pages_show_files() -> None:
    pages = {file.page.stem for file in PARAMS}
    assert {"README", "quickstart", "concepts", "environment", "data", "method", "study", "paper"} <= pages
    assert len(STUDIES) >= 2


@pytest.mark.parametrize("file", PARAMS, ids=str)
def test_params_yaml_is_one(file: Shown, folder: Path) -> None:
    project = loaded(file, folder)
    preflight.check(project)
    for stage in project.stages:
        for key in project.keys(stage):
            project.stage_params(stage, key)


@pytest.mark.parametrize("file", [file for file in PARAMS if file.page.stem == "environment"], ids=str)
def test_environments_are_families_whose_expert_is_better_than_chance(file: Shown, folder: Path) -> None:
    project = loaded(file, folder)
    for name in project.params.run.families:
        family = project.family(name)
        assert isinstance(family.make(family.train_tasks[0]), gymnasium.Env)
        for task in family.test_tasks:
            assert episode(family, task, "expert") > episode(family, task, "random")


@pytest.mark.parametrize("file", STUDIES, ids=str)
def test_a_study_is_a_stage_of_the_project_that_names_it(file: Shown, folder: Path) -> None:
    lay_out(file.page, folder)
    name, run = Path(file.name).stem, YAML(typ="safe").load(file.text)["base"]["run"]
    run["studies"] = [name]
    (folder / "params.yaml").write_text(f"run: {run}\n")
    project = graph.load(folder)
    preflight.check(project)
    assert f"study_{name}" in project.stages


def test_the_method_tunes(folder: Path) -> None:
    page = next(file.page for file in files(OFFSET))
    lay_out(page, folder)
    sys.path.insert(0, str(folder))
    module, plm = importlib.import_module("prompt_offset"), pretrained()
    few_shot = few_shot_of(plm)
    params = module.Params.model_validate({"steps": 5, "batch": 6, "prompts": 3, "candidates": 7})
    left = module.tune(plm, few_shot, params, Run(folder / "work", folder / "logs", "test", silent, seed=0))
    assert isinstance(left, Prompted)
    assert len(left.prompts) == 3
    assert len(left.history.rows) >= 1
    drawn = few_shot.draw(np.random.default_rng(0), 7).x0
    offsets = left.prompts.x0[:, None] - drawn[None]  # (3, 7, K*, channels)
    moved = np.abs(offsets).sum((2, 3)).argmin(1)
    found = np.stack([offsets[row, near] for row, near in enumerate(moved)])
    assert np.abs(found).max() > 1e-3, "it moved the prompts"
    np.testing.assert_allclose(found[1:], found[:1].repeat(2, 0), atol=1e-4, err_msg="all by the same offset")
    assert left.cost.tuned_parameters == drawn[0].size
    assert left.cost.plm_backward == 5 * 6


def test_the_method_is_a_stage_with_its_variant(folder: Path) -> None:
    file = next(file for file in PARAMS if file.page.stem == "method")
    assert OFFSET in [other.name for other in shown(file.page)]
    project = loaded(file, folder)
    assert project.stages["tuned_prompt_offset_long"].params_module == "prompt_offset"
    key = project.keys("tuned_prompt_offset_long")[0]
    assert project.stage_params("tuned_prompt_offset_long", key).steps == 400
