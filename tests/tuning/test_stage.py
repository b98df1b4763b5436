"""The stages tuned_<method>: the same few-shot trajectories for all, whole outs, unchanged by a kill."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pd_pipeline.graph import METHODS
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.storage import digest, read_json
from pd_pipeline.training.plm import load_policy
from pd_pipeline.trajectories.reading import read
from tests.conftest import run_stages
from tests.training.test_stages import kill_at, set_params

TASKS = (1, 4)


def out(root: Path, method: str, task: int) -> Path:
    return root / f"data/tuned_{method}/point_robot-0/{task}"


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_leaves(tuned_project: Path, method: str) -> None:
    for task in TASKS:
        directory = out(tuned_project, method, task)
        summary = read_json(directory / "summary.json")
        assert summary["quality"] == "expert"
        assert len(summary["few_shot_episodes"]) == 5
        assert read_json(directory / "cost.json")["seconds"] > 0
        assert (Prompts.load(directory / "prompts.safetensors").task_id == task).all()
        assert (directory / "policy.safetensors").exists() == (method == "full_finetune")
        for name in ("adapted", "guided"):
            assert (directory / f"{name}.safetensors").exists() == (method == "prompt_diffuser")
        assert (directory / "log.csv").exists() == (method not in ("prompt_dt", "noise_prompt"))


def test_all_methods_of_a_seed_get_the_same_few_shot_trajectories(tuned_project: Path) -> None:
    for task in TASKS:
        drawn = [
            read_json(out(tuned_project, method, task) / "summary.json")["few_shot_episodes"] for method in METHODS
        ]
        assert all(episodes == drawn[0] for episodes in drawn)


def test_prompts_come_from_the_few_shot_trajectories_of_the_target(tuned_project: Path) -> None:
    directory = out(tuned_project, "prompt_dt", 4)
    prompts = Prompts.load(directory / "prompts.safetensors")
    assert set(prompts.episode_id.tolist()) <= set(read_json(directory / "summary.json")["few_shot_episodes"])
    data = read(tuned_project / "data/trajectories/point_robot/expert.parquet", [4])
    episode = int(np.flatnonzero(data.episode_id == prompts.episode_id[0])[0])
    row = data.starts[episode] + prompts.start[0]
    np.testing.assert_array_equal(prompts.x0[0, :, :2], data.observations[row : row + 3])


def test_tuned_parameters(tuned_project: Path) -> None:
    counts = {
        method: read_json(out(tuned_project, method, 1) / "summary.json")["tuned_parameters"] for method in METHODS
    }
    policy, _ = load_policy(tuned_project / "data/plm/point_robot-0")
    assert counts["full_finetune"] == sum(p.numel() for p in policy.parameters())
    assert counts["prompt_dt"] == counts["noise_prompt"] == 0
    assert counts["prompt_gradient"] == 3 * 5
    assert counts["prompt_diffuser"] > 1000


def test_the_log_of_the_guidance(tuned_project: Path) -> None:
    log = pl.read_csv(out(tuned_project, "prompt_diffuser", 4) / "log.csv")
    guided = log.filter(pl.col("phase") == 2)
    assert guided["step"].to_list() == list(range(1, 9))
    for name in ("l_dm", "l_dt", "cosine", "norm_ratio", "projected"):
        assert guided[name].null_count() == 0


def test_the_frozen_plm_is_the_same_for_all_but_full_finetune(tuned_project: Path, trained_project: Path) -> None:
    assert digest(tuned_project / "data/plm") == digest(trained_project / "data/plm")
    assert digest(tuned_project / "data/diffuser") == digest(trained_project / "data/diffuser")
    weights = (out(tuned_project, "full_finetune", 1) / "policy.safetensors").read_bytes()
    assert weights != (tuned_project / "data/plm/point_robot-0/policy.safetensors").read_bytes()


def test_prompt_diffuser_killed_while_guiding_leaves_the_same_bytes(tuned_project: Path, project: Path) -> None:
    old, new = "tuned_prompt_diffuser: {device: cpu, adapt: {", "checkpoint_seconds: 0, "
    set_params(project, old, f"tuned_prompt_diffuser: {{device: cpu, {new}adapt: {{{new}")
    kill_at(project, "tuned_prompt_diffuser", "point_robot-4-0", step=3, folder="guide")
    assert not out(project, "prompt_diffuser", 4).exists()
    run_stages(project, "tuned_prompt_diffuser")
    for task in TASKS:
        assert digest(out(project, "prompt_diffuser", task)) == digest(out(tuned_project, "prompt_diffuser", task))
