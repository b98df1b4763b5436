"""The stage evaluation: scores and metrics of a whole tiny project."""

import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pd_pipeline import graph, records
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.stage import Params
from pd_pipeline.piece import run_piece
from pd_pipeline.storage import digest, load_arrays, read_json, write_json
from pd_pipeline.trajectories.reading import read
from tests.conftest import run_stages
from tests.training.test_stages import set_params

NUMBERS = (
    "return_mean",
    "return_iqm",
    "ci_low",
    "ci_high",
    "success_rate",
    "normalized",
    "tuned_parameters",
    "plm_passes",
    "environment_episodes",
)


@pytest.fixture
def out(tuned_project: Path) -> Path:
    return tuned_project / "data/evaluation/point_robot-0"


def with_methods(root: Path, *methods: str, variants: str = "{}") -> str:
    """params.yaml of a project with other methods."""
    line = f"  methods: [{', '.join(methods)}]\n  variants: {variants}"
    return re.sub(r"^  methods: .*$", line, (root / "params.yaml").read_text(), count=1, flags=re.MULTILINE)


def methods(out: Path) -> tuple[str, ...]:
    return graph.load(out.parents[2]).params.run.methods


def test_metrics_have_the_names_that_others_read(out: Path) -> None:
    metrics = read_json(out / "metrics.json")["methods"]
    assert metrics.keys() == set(methods(out))
    for values in metrics.values():
        for name in NUMBERS:
            assert isinstance(values[name], int | float), name
        assert values["ci_low"] <= values["return_iqm"] <= values["ci_high"]
        assert values["return_mean_low"] <= values["return_mean"] <= values["return_mean_high"]
        assert 0 <= values["success_low"] <= values["success_rate"] <= values["success_high"] <= 1
        assert values["tasks"].keys() == {"1", "4"}
        assert (values["normalized_low"] is None) == (values["normalized_high"] is None)
        assert values["quality"] == "expert"
        assert values["few_shot"] == 5
        assert values["frozen"] == (values["method"] != "full_finetune")
    assert metrics["noise_prompt"]["normalized"] == 0
    assert metrics["full_finetune"]["normalized"] == 1
    itself = metrics["prompt_diffuser"]["difference_to_prompt_diffuser"]
    assert itself["value"] == 0
    assert itself["low"] <= 0 <= itself["high"]
    assert metrics["prompt_diffuser"]["chain"] == 3
    assert metrics["prompt_diffuser"]["candidates"] == 12
    assert metrics["prompt_dt"]["candidates"] is None


def test_no_out_holds_a_wall_clock_figure(out: Path) -> None:
    assert {file.name for file in out.iterdir()} == {
        "scores.parquet",
        "metrics.json",
        "rollouts.safetensors",
    }
    assert "second" not in (out / "metrics.json").read_text()


def test_acting_computes_in_float32_unless_asked_otherwise(out: Path, tuned_project: Path) -> None:
    assert Params().precision == "float32"
    assert read_json(out / "metrics.json")["precision"] == "float32"
    record = records.find(tuned_project, "evaluation", "point_robot-0")
    assert record is not None
    assert (record.device, record.precision) == ("cpu", "float32")


def test_bf16_is_another_result_and_says_so(out: Path, tuned_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(tuned_project, root)
    set_params(root, "evaluation: {workers: 1", "evaluation: {precision: bf16, workers: 1")
    run_stages(root, "evaluation")
    after = root / "data/evaluation/point_robot-0"
    assert read_json(after / "metrics.json")["precision"] == "bf16"
    assert (
        load_arrays(after / "rollouts.safetensors")[0]["actions"]
        != load_arrays(out / "rollouts.safetensors")[0]["actions"]
    ).any()


def test_metrics_follow_from_the_scores(out: Path) -> None:
    scores = pl.read_parquet(out / "scores.parquet")
    metrics = read_json(out / "metrics.json")["methods"]
    for method, values in metrics.items():
        rows = scores.filter(pl.col("method") == method)
        assert values["return_mean"] == pytest.approx(rows["return"].mean())
        assert values["success_rate"] == pytest.approx(rows["success"].mean())
        assert values["episodes"] == len(rows)
        for task, part in values["tasks"].items():
            of_task = rows.filter(pl.col("task") == int(task))
            assert part["return_mean"] == pytest.approx(of_task["return"].mean())
            assert part["target_return"] == of_task["target_return"][0]


def test_one_score_per_method_task_and_prompt(out: Path, tuned_project: Path) -> None:
    scores = pl.read_parquet(out / "scores.parquet")
    assert {"method", "task", "seed", "prompt", "episode", "return", "success", "target_return", "origin"} <= set(
        scores.columns
    )
    assert not scores.select("method", "task", "seed", "prompt").is_duplicated().any()
    counts = dict(scores.group_by("method").len().iter_rows())
    assert counts == {
        "prompt_dt": 16,
        "prompt_diffuser": 8,
        "prompt_gradient": 16,
        "full_finetune": 16,
        "noise_prompt": 16,
        "no_prompt": 16,
    }
    assert scores.null_count().sum_horizontal()[0] == 0
    origins = scores.filter(pl.col("method") == "prompt_dt")["origin"].to_list()
    assert all(origin.startswith("episode ") for origin in origins)
    assert set(scores.filter(pl.col("method") == "prompt_diffuser")["origin"]) == {"generated"}


def test_the_target_return_is_the_mean_of_the_few_shot_trajectories(out: Path, tuned_project: Path) -> None:
    scores = pl.read_parquet(out / "scores.parquet")
    for task in (1, 4):
        data = read(tuned_project / "data/trajectories/point_robot/expert.parquet", [task])
        chosen = read_json(tuned_project / f"data/tuned_prompt_dt/point_robot-0/{task}/summary.json")[
            "few_shot_episodes"
        ]
        mean = data.episode_returns[np.isin(data.episode_id, chosen)].mean()
        found = scores.filter(pl.col("task") == task)["target_return"]
        np.testing.assert_allclose(found, mean, rtol=1e-6)


def test_prompt_i_of_every_method_meets_the_same_start(out: Path) -> None:
    arrays, _ = load_arrays(out / "rollouts.safetensors")
    scores = pl.read_parquet(out / "scores.parquet")[arrays["rows"].tolist()]
    for task in (1, 4):
        starts = arrays["observations"][scores["task"].to_numpy() == task, 0]
        assert len(starts) == len(methods(out))
        np.testing.assert_array_equal(starts, np.broadcast_to(starts[0], starts.shape))


def test_a_summary_without_what_is_read_of_it_is_named(tuned_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(tuned_project, root)
    summary = root / "data/tuned_prompt_dt/point_robot-0/4/summary.json"
    write_json(summary, {name: value for name, value in read_json(summary).items() if name != "target_return"})
    with pytest.raises(PipelineError, match=r"point_robot-0/4/summary.json: target_return: Field required"):
        run_stages(root, "evaluation")


def test_equal_inputs_give_equal_bytes_whatever_the_workers(tuned_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(tuned_project, root)
    before = digest(tuned_project / "data/evaluation")
    set_params(root, "evaluation: {workers: 1", "evaluation: {workers: 2")
    run_stages(root, "evaluation")
    assert digest(root / "data/evaluation") == before


def test_more_episodes_begin_elsewhere_and_leave_the_first_as_they_were(
    out: Path, tuned_project: Path, tmp_path: Path
) -> None:
    root = tmp_path / "project"
    shutil.copytree(tuned_project, root)
    set_params(root, "evaluation: {workers: 1", "evaluation: {episodes: 3, workers: 1")
    run_stages(root, "evaluation")
    more = pl.read_parquet(root / "data/evaluation/point_robot-0/scores.parquet")
    once = pl.read_parquet(out / "scores.parquet")
    assert more.filter(pl.col("episode") == 0).equals(once)
    assert not more.select("method", "task", "seed", "prompt", "episode").is_duplicated().any()
    assert len(more) == 3 * len(once)
    returns = more.filter(pl.col("method") == "prompt_dt").sort("episode")["return"].to_numpy().reshape(3, -1)
    assert all((returns[0] != other).any() for other in returns[1:])
    assert (returns[1] != returns[2]).any()
    assert digest(root / "data/evaluation/point_robot-0/rollouts.safetensors") == digest(out / "rollouts.safetensors")


def test_rounds_of_few_environments_give_the_same_episodes(out: Path, tuned_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(tuned_project, root)
    set_params(root, "evaluation: {workers: 1", "evaluation: {environments: 7, workers: 1")
    titles = set[str]()
    project = graph.load(root)
    for key in project.keys("evaluation"):
        run_piece(project, "evaluation", key, lambda title, done, total: titles.add(title))
    found, at_once = (
        pl.read_parquet(folder / "scores.parquet") for folder in (root / "data/evaluation/point_robot-0", out)
    )
    same = ["method", "task", "prompt", "episode", "origin", "success", "length"]
    assert found.select(same).equals(at_once.select(same))
    np.testing.assert_allclose(found["return"], at_once["return"], rtol=1e-5)
    rounds = -(-len(at_once) // 7)
    assert {f"evaluation point_robot-0, {number} of {rounds}" for number in range(1, rounds + 1)} <= titles
    kept, kept_at_once = (
        load_arrays(folder / "rollouts.safetensors")[0] for folder in (root / "data/evaluation/point_robot-0", out)
    )
    np.testing.assert_array_equal(kept["rows"], kept_at_once["rows"])
    np.testing.assert_allclose(kept["observations"], kept_at_once["observations"], atol=1e-5)


def test_a_variant_has_its_scores_and_leaves_the_fit_of_its_method_alone(tuned_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "varied"
    shutil.copytree(tuned_project, root)
    methods = ("prompt_dt", "prompt_diffuser", "full_finetune", "noise_prompt", "prompt_diffuser_more")
    text = with_methods(root, *methods, variants="{prompt_diffuser_more: prompt_diffuser}")
    block = next(line for line in text.splitlines() if "tuned_prompt_diffuser:" in line)
    text = text.replace(block, block + "\n" + block.replace("prompt_diffuser:", "prompt_diffuser_more:"))
    (root / "params.yaml").write_text(text)
    fit = root / "data/prompt_fit/point_robot-0/fit.json"
    before = read_json(fit)
    run_stages(root, "tuned_prompt_diffuser_more", "evaluation", "prompt_fit")
    after = root / "data/evaluation/point_robot-0"
    assert read_json(fit) == before
    assert "prompt_diffuser_more" in read_json(after / "metrics.json")["methods"]


def test_methods_with_no_prompt_and_with_another_tasks_are_evaluated_beside_the_others(project: Path) -> None:
    """Prompts of no steps act in a group of their own; everything else about them is as for the rest."""
    variants = "{prompt_dt_other: prompt_dt}"
    text = with_methods(project, "prompt_dt", "no_prompt", "prompt_dt_other", variants=variants)
    text += "    tuned_prompt_dt_other: {shown: other}\n"
    (project / "params.yaml").write_text(text)
    run_stages(project, "tuned_prompt_dt", "tuned_no_prompt", "tuned_prompt_dt_other", "evaluation")
    out = project / "data/evaluation/point_robot-0"
    metrics, scores = read_json(out / "metrics.json")["methods"], pl.read_parquet(out / "scores.parquet")
    assert metrics["no_prompt"]["method"] == "no_prompt"
    assert metrics["prompt_dt_other"]["shown"] == "other"
    assert metrics["prompt_dt_other"]["difference_to_prompt_dt"]["reference"] == "prompt_dt"
    assert metrics["no_prompt"]["difference_to_prompt_dt"]["reference"] == "prompt_dt"
    for task in (1, 4):
        asked = scores.filter(pl.col("task") == task)["target_return"]
        assert asked.n_unique() == 1, "whoever is shown what, the same is asked for"
    returns = {method: scores.filter(pl.col("method") == method)["return"].to_list() for method in metrics}
    assert returns["no_prompt"] != returns["prompt_dt"] != returns["prompt_dt_other"]
