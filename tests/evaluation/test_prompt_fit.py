"""The stage prompt_fit: how far generated prompts lie from real ones, in a whole tiny project."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pd_pipeline import graph
from pd_pipeline.errors import PipelineError
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.storage import read_json, write_json
from tests.conftest import run_stages
from tests.evaluation.test_stage import with_methods
from tests.training.test_stages import set_params


@pytest.fixture
def out(tuned_project: Path) -> Path:
    return tuned_project / "data/prompt_fit/point_robot-0"


def test_the_fit_is_measured_before_and_after_tuning(out: Path) -> None:
    fit = read_json(out / "fit.json")
    assert fit["pretrained"]["wasserstein_generated"] > 0
    assert fit["targets"].keys() == {"1", "4"}
    for target in fit["targets"].values():
        assert target.keys() == {"adapted", "guided"}
        for values in target.values():
            assert {
                "wasserstein_real",
                "nearest_generated",
                "action_loss_real",
                "action_loss_generated",
            } <= values.keys()
            assert values["action_loss_generated"] > 0


def test_the_fit_is_that_of_the_chain_the_prompts_come_from(out: Path, tuned_project: Path, tmp_path: Path) -> None:
    """The pre-trained diffuser keeps its whole chain of 8; the tuned ones follow what their method says."""
    before = read_json(out / "fit.json")
    assert before["pretrained"]["chain"] == 8
    assert all(values["chain"] == 3 for target in before["targets"].values() for values in target.values())
    root = tmp_path / "project"
    shutil.copytree(tuned_project, root)
    for task in (1, 4):
        generator = root / f"data/tuned_prompt_diffuser/point_robot-0/{task}/generator.json"
        write_json(generator, read_json(generator) | {"chain": 8})
    run_stages(root, "prompt_fit")
    after = read_json(root / "data/prompt_fit/point_robot-0/fit.json")
    assert after["pretrained"] == before["pretrained"]
    for task, target in after["targets"].items():
        for state, values in target.items():
            earlier = before["targets"][task][state]
            assert values["chain"] == 8
            assert values["wasserstein_generated"] != earlier["wasserstein_generated"]
            assert values["nearest_generated"] != earlier["nearest_generated"]
            assert values["wasserstein_real"] == earlier["wasserstein_real"]


def test_the_prompts_that_are_evaluated_are_measured(out: Path, tuned_project: Path, tmp_path: Path) -> None:
    before = read_json(out / "fit.json")["targets"]["1"]
    assert before["guided"]["kept"] == 4
    assert "nearest_kept" not in before["adapted"], "they come from the guided diffuser"
    root = tmp_path / "project"
    shutil.copytree(tuned_project, root)
    path = root / "data/tuned_prompt_diffuser/point_robot-0/1/prompts.safetensors"
    prompts = Prompts.load(path)
    replace(prompts, x0=prompts.x0 + 1000).save(path)
    run_stages(root, "prompt_fit")
    after = read_json(root / "data/prompt_fit/point_robot-0/fit.json")["targets"]["1"]
    assert after["guided"]["nearest_kept"] > 100 * before["guided"]["nearest_kept"]
    assert after["guided"]["nearest_generated"] == before["guided"]["nearest_generated"]


def test_no_trajectory_left_to_measure_the_fit_with(project: Path) -> None:
    set_params(project, "tuned_prompt_diffuser: {", "tuned_prompt_diffuser: {target: {few_shot: 7}, ")
    (project / "params.yaml").write_text(with_methods(project, "prompt_diffuser"))
    run_stages(project, "tuned_prompt_diffuser")
    with pytest.raises(PipelineError, match=r"task 1: all its trajectories are few-shot trajectories: .* collect more"):
        run_stages(project, "prompt_fit")


def test_one_prompt_left_to_measure_the_fit_with(project: Path) -> None:
    """A prompt is as long as an episode, and one trajectory was not given to the method."""
    set_params(project, "tuned_prompt_diffuser: {", "tuned_prompt_diffuser: {target: {few_shot: 6}, ")
    set_params(project, "prompts: {length: 3", "prompts: {length: 12")
    (project / "params.yaml").write_text(with_methods(project, "prompt_diffuser"))
    run_stages(project, "prompts", "plm", "diffuser", "tuned_prompt_diffuser")
    with pytest.raises(PipelineError, match=r"task 1: a single prompt can be cut from the trajectories that were not"):
        run_stages(project, "prompt_fit")


def test_methods_that_generate_nothing_need_neither_a_diffuser_nor_a_fit(project: Path) -> None:
    (project / "params.yaml").write_text(with_methods(project, "prompt_dt", "noise_prompt"))
    loaded = graph.load(project)
    assert not {"diffuser", "prompt_fit"} & set(loaded.stages)
    shutil.rmtree(project / "data/diffuser")
    run_stages(project, "tuned_prompt_dt", "tuned_noise_prompt", "evaluation")
    assert set(read_json(project / "data/evaluation/point_robot-0/metrics.json")["methods"]) == {
        "prompt_dt",
        "noise_prompt",
    }
