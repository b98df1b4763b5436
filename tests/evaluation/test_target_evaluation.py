"""The evaluation of one target with accepted data: the same figures as those of all targets of the family."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from pd_pipeline import graph, rendering
from pd_pipeline.evaluation.offline_results import load_offline
from pd_pipeline.evaluation.results import load
from pd_pipeline.graph import Graph
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.stages import REPORT, TARGET_EVALUATION
from pd_pipeline.storage import read_json
from tests.accepted import accept
from tests.conftest import run_stages
from tests.training.test_stages import set_params

METHODS = "[prompt_dt, full_finetune, noise_prompt, many]"


@pytest.fixture
def root(project: Path) -> Path:
    """The trained project with few methods, one of which wants more trajectories than the others."""
    text = (project / "params.yaml").read_text()
    before = text[text.index("methods: [") : text.index("]", text.index("methods: [")) + 1]
    set_params(project, before, f"methods: {METHODS}\n  variants: {{many: prompt_dt}}")
    set_params(project, "    tuned_prompt_dt: {}", "    target: {few_shot: 3}\n    tuned_prompt_dt: {}")
    set_params(project, "    tuned_noise_prompt", "    tuned_many: {target: {few_shot: 6}}\n    tuned_noise_prompt")
    return project


def made(project: Graph, task: int) -> Path:
    """The out of the stage for a target, after the work that it reads."""
    key = Key("point_robot", task, 0)
    for stage, other in [*project.upstream(TARGET_EVALUATION, key), (TARGET_EVALUATION, key)]:
        if not (project.root / project.out(stage, other)).exists():
            run_piece(project, stage, other, silent)
    return project.root / project.out(TARGET_EVALUATION, key)


def test_without_accepted_data_there_is_no_such_stage(root: Path) -> None:
    before = graph.load(root)
    assert TARGET_EVALUATION not in before.stages
    assert TARGET_EVALUATION not in rendering.render(before)
    waiting = accept(root, 57, episodes=2)
    assert waiting.accepted == {"point_robot": {57: {"expert": 2}}}
    assert TARGET_EVALUATION not in waiting.stages, "no method has enough"
    shutil.rmtree(root / "data/ingested")
    assert rendering.render(graph.load(root)) == rendering.render(before)


def test_its_keys_are_the_targets_with_data_for_a_method(root: Path) -> None:
    accept(root, 4, episodes=1)
    accept(root, 58, episodes=2)
    project = accept(root, 57, episodes=5)
    assert [str(key) for key in project.keys(TARGET_EVALUATION)] == ["point_robot-4-0", "point_robot-57-0"]
    assert TARGET_EVALUATION in project.stages[REPORT].needs
    read = {need for need, _ in project.upstream(TARGET_EVALUATION, Key("point_robot", 57, 0))}
    assert {"tuned_prompt_dt", "tuned_full_finetune", "target_data", "plm"} <= read
    assert "tuned_many" not in read
    assert "tuned_many" in project.inputs(TARGET_EVALUATION, Key("point_robot", 4, 0))
    others = {other.task for need, other in project.upstream("evaluation", Key("point_robot", None, 0))}
    assert others == {None, 1, 4}, "the evaluation of the family reads no new target"


def test_a_target_of_the_family_has_the_scores_of_the_evaluation_of_all(root: Path) -> None:
    project = accept(root, 4, episodes=2)
    run_stages(root, "target_data", *(name for name in project.stages if name.startswith("tuned_")), "evaluation")
    alone, everyone = made(project, 4), root / "data/evaluation/point_robot-0"
    keys = ["method", "task", "prompt", "episode"]
    scores, whole = (pl.read_parquet(out / "scores.parquet").sort(keys) for out in (alone, everyone))
    whole = whole.filter(pl.col("task") == 4)
    assert scores.drop("return").equals(whole.drop("return"))
    assert scores["return"].to_list() == pytest.approx(whole["return"].to_list(), abs=1e-4)
    for method, found in load(alone / "metrics.json").methods.items():
        assert found.mean.low <= found.mean.value <= found.mean.high
        assert found.success is not None
        assert found.tasks.keys() == {4}, method


def test_a_new_target_is_scored_offline_on_what_no_method_was_given(root: Path) -> None:
    out = made(accept(root, 57, episodes=5), 57)
    found = load_offline(out / "metrics.json")
    assert found.methods.keys() == {"prompt_dt", "full_finetune", "noise_prompt"}
    folder = root / "data/tuned_prompt_dt/point_robot-0-new/57"
    used = set(read_json(folder / "summary.json")["few_shot_episodes"])
    assert len(used) == 3
    scores = pl.read_parquet(out / "scores.parquet")
    assert set(scores["trajectory"]) == {*range(5)} - used
    assert {result.trajectories for result in found.methods.values()} == {2}
    for result in found.methods.values():
        assert result.action_loss.low <= result.action_loss.value <= result.action_loss.high


def test_with_too_few_held_out_it_says_so(root: Path) -> None:
    out = made(accept(root, 57, episodes=4), 57)
    found = load_offline(out / "metrics.json")
    assert not found.methods
    assert found.waits.startswith("task 57: 1 of the 2 trajectories of quality 'expert' that an interval needs")
    assert not (out / "scores.parquet").exists()


def test_data_of_another_quality_alone_leave_nothing_to_be_scored_on(root: Path) -> None:
    set_params(root, "evaluation: {", "evaluation: {offline: {quality: random}, ")
    out = made(accept(root, 57, episodes=5), 57)
    assert "task 57: 0 of the 2 trajectories of quality 'random'" in load_offline(out / "metrics.json").waits
