"""Scores of a family without a simulator: action losses on trajectories that no method was given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pd_pipeline import graph
from pd_pipeline.acting.actors import prompted
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.offline_metrics import by_trajectory, offline_metrics
from pd_pipeline.evaluation.offline_results import OfflineEvaluation, is_offline, load_offline, save_offline
from pd_pipeline.evaluation.results import OFFLINE, load
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.models.saved_policy import load_policy
from pd_pipeline.prompts.segments import Prompts, cut
from pd_pipeline.storage import digest, read_json, write_json
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import read
from pd_pipeline.tuning.action_losses import action_losses
from tests.builders import normalization, policy, trajectories
from tests.conftest import run_stages, shared_project
from tests.evaluation.builders import tuned
from tests.recorded_project import record_project
from tests.training.test_stages import set_params

OUT = Path("data/evaluation/my_robot-0")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, trained_project: Path) -> Path:
    """A recorded family, tuned and evaluated."""

    def build(root: Path) -> None:
        record_project(trained_project, root)
        stages = graph.load(root).stages
        run_stages(root, *(name for name in stages if name != "report"))

    return shared_project(tmp_path_factory, "evaluated_offline", build)


def copied(evaluated: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(evaluated, tmp_path / "copy"))


@pytest.mark.parametrize("acting_context", [None, 2])
def test_a_loss_is_that_of_the_policy_given_the_recorded_steps(acting_context: int | None) -> None:
    """Computed step by step, one window at a time, by the pass that pre-training uses."""
    data = trajectories((7, 3, 10), (0, 0, 0))
    normal, plm = normalization(data), policy(acting_context=acting_context)
    prompts = cut(data, 2).select(np.array([0, 6, 9]))
    windows = PolicyData(data, normal)
    found = action_losses(prompted(plm, prompts, normal), windows, None)
    assert found.shape == (3, 3)
    x0, y = prompt_tensors(prompts, normal)
    context = plm.config.acting_window
    for prompt in range(3):
        shown = prompt_steps(x0[prompt : prompt + 1], y[prompt : prompt + 1], normal)
        for episode, length in enumerate((7, 3, 10)):
            errors = []
            for end in range(1, length + 1):
                size = min(end, context)
                window = windows.windows_before(np.array([episode]), np.array([end]), size)
                with torch.no_grad():
                    predicted = plm(shown, window)[0, -1]
                errors.append(float(((predicted - window.actions[0, -1]) ** 2).mean()))
            assert found[prompt, episode] == pytest.approx(np.mean(errors), rel=1e-4)


def test_some_steps_are_spread_over_the_trajectory_and_passes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = trajectories((9, 5), (0, 0))
    normal, plm = normalization(data), policy()
    actors = prompted(plm, cut(data, 2).select(np.arange(2)), normal)
    windows = PolicyData(data, normal)
    ends: dict[int, set[int]] = {0: set(), 1: set()}
    real = PolicyData.windows_before

    def watched(self: PolicyData, episodes: np.ndarray, last: np.ndarray, length: int) -> Any:
        for episode, end in zip(episodes.tolist(), last.tolist(), strict=True):
            ends[episode].add(end)
        return real(self, episodes, last, length)

    monkeypatch.setattr(PolicyData, "windows_before", watched)
    some = action_losses(actors, windows, 3)
    assert ends == {0: {1, 5, 9}, 1: {1, 3, 5}}
    monkeypatch.setattr("pd_pipeline.tuning.action_losses.STEPS_PER_PASS", {"cpu": 1})
    np.testing.assert_allclose(action_losses(actors, windows, 3), some, rtol=1e-5)


def test_scores_are_of_trajectories_that_no_method_was_given(evaluated: Path) -> None:
    scores = pl.read_parquet(evaluated / OUT / "scores.parquet")
    methods = ("prompt_dt", "full_finetune", "noise_prompt")
    assert "return" not in scores.columns
    for task in (1, 4):
        data = read(evaluated / "data/trajectories/my_robot/expert.parquet", [task])
        given = [
            read_json(evaluated / f"data/tuned_{method}/my_robot-0/{task}/summary.json")["few_shot_episodes"]
            for method in methods
        ]
        unseen = sorted(set(data.episode_id.tolist()) - {episode for episodes in given for episode in episodes})
        assert len(unseen) == 4
        for method in methods:
            rows = scores.filter(pl.col("method") == method, pl.col("task") == task)
            assert sorted(rows["trajectory"].unique().to_list()) == unseen
            assert len(rows) == len(unseen) * (4 if method == "noise_prompt" else 8)
    assert {file.name for file in (evaluated / OUT).iterdir()} == {"scores.parquet", "metrics.json"}


def test_a_score_is_the_loss_of_that_prompt_on_that_trajectory(evaluated: Path) -> None:
    scores = pl.read_parquet(evaluated / OUT / "scores.parquet")
    plm, normal = load_policy(evaluated / "data/plm/my_robot-0")
    prompts = Prompts.load(evaluated / "data/tuned_prompt_dt/my_robot-0/4/prompts.safetensors")
    data = read(evaluated / "data/trajectories/my_robot/expert.parquet", [4])
    row = scores.filter(pl.col("method") == "prompt_dt", pl.col("task") == 4, pl.col("prompt") == 5)[2]
    one = data.select(np.flatnonzero(data.episode_id == row["trajectory"][0]))
    found = action_losses(prompted(plm, prompts.select(np.array([5])), normal), PolicyData(one, normal), None)
    assert row["action_loss"][0] == pytest.approx(found[0, 0], rel=1e-5)


def test_fine_tuning_on_the_target_lowers_its_loss(evaluated: Path) -> None:
    methods = load_offline(evaluated / OUT / "metrics.json").methods
    apart = methods["full_finetune"].difference_to_prompt_dt
    assert apart is not None
    assert apart.high < 0
    assert apart.reference == "prompt_dt"


def test_metrics_say_that_they_are_offline_and_hold_no_return(evaluated: Path) -> None:
    path = evaluated / OUT / "metrics.json"
    values = read_json(path)
    assert values["offline"] == OFFLINE == "action loss on held-out trajectories"
    assert "return" not in path.read_text()
    assert is_offline(path)
    for method in values["methods"].values():
        assert method["action_loss_low"] <= method["action_loss"] <= method["action_loss_high"]
        assert method["trajectories"] == 8
        assert method["tasks"].keys() == {"1", "4"}
        assert method["action_loss"] == pytest.approx(np.mean([t["action_loss"] for t in method["tasks"].values()]))
        assert (method["quality"], method["few_shot"]) == ("expert", 3)
    with pytest.raises(PipelineError, match=r"metrics\.json: scored offline, .*: it holds no returns"):
        load(path)


def test_a_record_is_read_as_it_was_written(evaluated: Path, tmp_path: Path) -> None:
    read_back = load_offline(evaluated / OUT / "metrics.json")
    save_offline(tmp_path / "metrics.json", read_back)
    assert (tmp_path / "metrics.json").read_bytes() == (evaluated / OUT / "metrics.json").read_bytes()
    save_offline(tmp_path / "pooled.json", OfflineEvaluation(read_back.methods))
    assert "seed" not in read_json(tmp_path / "pooled.json")
    broken = read_json(tmp_path / "metrics.json")
    del broken["methods"]["prompt_dt"]["trajectories"]
    write_json(tmp_path / "metrics.json", broken)
    with pytest.raises(PipelineError, match=r"methods\.prompt_dt\.trajectories: .*run stage evaluation again"):
        load_offline(tmp_path / "metrics.json")


def test_the_same_inputs_give_the_same_bytes(evaluated: Path, tmp_path: Path) -> None:
    root = copied(evaluated, tmp_path)
    run_stages(root, "evaluation")
    assert digest(root / OUT) == digest(evaluated / OUT)


def test_how_many_trajectories_count_is_a_parameter(evaluated: Path, tmp_path: Path) -> None:
    root = copied(evaluated, tmp_path)
    set_params(root, "evaluation: {", "evaluation: {offline: {trajectories: 2}, ")
    run_stages(root, "evaluation")
    scores, whole = (pl.read_parquet(folder / OUT / "scores.parquet") for folder in (root, evaluated))
    assert scores.select("task", "trajectory").n_unique() == 4
    keys = ["method", "task", "prompt", "trajectory", "action_loss"]
    assert scores.join(whole, on=keys, how="anti", nulls_equal=True).is_empty(), "a part of what all would be"


def test_too_few_left_to_score_on_is_refused(evaluated: Path, tmp_path: Path) -> None:
    root = copied(evaluated, tmp_path)
    summary = root / "data/tuned_prompt_dt/my_robot-0/4/summary.json"
    write_json(summary, read_json(summary) | {"few_shot_episodes": list(range(6))})
    with pytest.raises(PipelineError, match="task 4: 1 of the 2 trajectories of quality 'expert' that"):
        run_stages(root, "evaluation")


def scores_of(methods: dict[str, list[list[list[float]]]], seed: int = 0) -> pl.DataFrame:
    """Method -> losses by task, prompt and trajectory."""
    rows = [
        {"method": m, "task": t, "seed": seed, "prompt": p, "trajectory": k, "action_loss": loss}
        for m, tasks in methods.items()
        for t, prompts in enumerate(tasks)
        for p, losses in enumerate(prompts)
        for k, loss in enumerate(losses)
    ]
    return pl.DataFrame(rows)


OURS = [[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], [[10.0, 14.0]]]
"""Two targets: two prompts on three trajectories, one prompt on two."""


def test_each_target_has_the_same_weight() -> None:
    scores = scores_of({"prompt_dt": OURS})
    assert [task.tolist() for task in by_trajectory(scores, "prompt_dt")[0]] == [[2.0, 3.0, 4.0], [10.0, 14.0]]
    found = offline_metrics(scores, {"prompt_dt": tuned("prompt_dt")}, 0, 500)["prompt_dt"]
    assert found.action_loss.value == pytest.approx((3 + 12) / 2)
    assert (2 + 10) / 2 <= found.action_loss.low < 7.5 < found.action_loss.high <= (4 + 14) / 2
    assert found.tasks[1].action_loss == 12
    assert (found.trajectories, found.tasks[0].trajectories) == (5, 3)
    assert found.difference_to_full_finetune is None


def test_differences_are_paired_by_trajectory() -> None:
    """What is far from trajectory to trajectory but always a little better is better beyond chance."""
    better = [[[loss - 0.1 - 0.01 * i for i, loss in enumerate(losses)] for losses in task] for task in OURS]
    scores = scores_of({"prompt_dt": OURS, "full_finetune": better})
    outs = {method: tuned(method) for method in ("prompt_dt", "full_finetune")}
    apart = offline_metrics(scores, outs, 0, 500)["full_finetune"].difference_to_prompt_dt
    assert apart is not None
    assert apart.value == pytest.approx(-(0.11 + 0.105) / 2)
    assert -0.12 <= apart.low <= apart.high <= -0.1
    other = {"prompt_dt": tuned("prompt_dt"), "full_finetune": tuned("full_finetune", quality="medium")}
    assert offline_metrics(scores, other, 0, 50)["full_finetune"].difference_to_prompt_dt is None, "other data"


def test_several_seeds_have_students_interval() -> None:
    second = [[[loss + 2 for loss in losses] for losses in task] for task in OURS]
    scores = pl.concat([scores_of({"prompt_dt": OURS}), scores_of({"prompt_dt": second}, seed=1)])
    found = offline_metrics(scores, {"prompt_dt": tuned("prompt_dt") * 2}, 0, 100)["prompt_dt"]
    assert found.action_loss.value == pytest.approx(8.5)
    assert found.action_loss.high - 8.5 == pytest.approx(12.7062, abs=1e-3)
    assert found.tasks[0].action_loss == pytest.approx(4)
    with pytest.raises(PipelineError, match="prompt_dt has no scores of seed 1, task 1"):
        offline_metrics(
            pl.concat([scores, scores.with_columns(pl.lit("x").alias("method"))]).filter(
                (pl.col("method") == "x") | (pl.col("seed") == 0) | (pl.col("task") == 0)
            ),
            {},
            0,
            10,
        )


def test_given_of_a_record_is_what_the_outs_record() -> None:
    outs = [replace(out, given=replace(out.given, candidates=12)) for out in tuned("prompt_dt")]
    found = offline_metrics(scores_of({"prompt_dt": OURS}), {"prompt_dt": outs}, 0, 10)["prompt_dt"]
    assert (found.given.candidates, found.given.few_shot) == (12, 5)
