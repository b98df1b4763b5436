"""The typed record of an evaluation: its figures, and its form in metrics.json."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation import results
from pd_pipeline.evaluation.results import Costs, Difference, Evaluation, Given, MethodResult, Share, TaskResult
from pd_pipeline.evaluation.scores import method_metrics
from pd_pipeline.evaluation.statistics import Estimate, Position
from pd_pipeline.storage import write_json
from tests.evaluation.builders import scores_of, tuned

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted((ROOT / "results").rglob("metrics*.json"))

KNOWN = MethodResult(
    given=Given("prompt_dt", frozen=True, quality="medium", few_shot=3, shown="other", candidates=9, chain=4),
    mean=Estimate(1.0, 0.5, 1.5),
    iqm=Estimate(2.0, 1.75, 2.25),
    success=Estimate(0.5, 0.25, 0.75),
    normalized=Position(0.125, 0.0, 0.25),
    difference_to_prompt_diffuser=Difference(-1.0, -2.0, 0.0, "prompt_diffuser_x"),
    difference_to_full_finetune=Difference(-3.0, -4.0, -2.0, "full_finetune_x"),
    difference_to_prompt_dt=Difference(0.0, -1.0, 1.0, "prompt_dt_x"),
    share=Share(0.375, None, None, "prompt_dt_x", "full_finetune_x"),
    above_half=Estimate(-0.5, -1.5, 0.5),
    episodes=8,
    costs=Costs(tuned_parameters=5, plm_passes=6, environment_episodes=7),
    tasks={12: TaskResult(1.0, 0.5, 3.0), 3: TaskResult(2.0, 0.25, 4.0)},
)
KNOWN_JSON: dict[str, Any] = {
    "method": "prompt_dt",
    "frozen": True,
    "quality": "medium",
    "few_shot": 3,
    "shown": "other",
    "candidates": 9,
    "chain": 4,
    "return_mean": 1.0,
    "return_mean_low": 0.5,
    "return_mean_high": 1.5,
    "return_iqm": 2.0,
    "ci_low": 1.75,
    "ci_high": 2.25,
    "success_rate": 0.5,
    "success_low": 0.25,
    "success_high": 0.75,
    "normalized": 0.125,
    "normalized_low": 0.0,
    "normalized_high": 0.25,
    "difference_to_prompt_diffuser": {"value": -1.0, "low": -2.0, "high": 0.0, "reference": "prompt_diffuser_x"},
    "difference_to_full_finetune": {"value": -3.0, "low": -4.0, "high": -2.0, "reference": "full_finetune_x"},
    "difference_to_prompt_dt": {"value": 0.0, "low": -1.0, "high": 1.0, "reference": "prompt_dt_x"},
    "share": {"value": 0.375, "low": None, "high": None, "start": "prompt_dt_x", "ceiling": "full_finetune_x"},
    "above_half": -0.5,
    "above_half_low": -1.5,
    "above_half_high": 0.5,
    "episodes": 8,
    "tuned_parameters": 5,
    "plm_passes": 6,
    "environment_episodes": 7,
    "tasks": {
        "12": {"return_mean": 1.0, "success_rate": 0.5, "target_return": 3.0},
        "3": {"return_mean": 2.0, "success_rate": 0.25, "target_return": 4.0},
    },
}
UNKNOWN = MethodResult(
    given=Given("x"),
    mean=Estimate(1.0, 1.0, 1.0),
    iqm=Estimate(1.0, 1.0, 1.0),
    episodes=1,
    costs=Costs(0, 0, 0),
    tasks={0: TaskResult(1.0)},
)


def test_the_names_of_metrics_json_are_fixed() -> None:
    evaluation = Evaluation({"mine": KNOWN}, "bf16", "reach", 2)
    expected = {"methods": {"mine": KNOWN_JSON}, "precision": "bf16", "family": "reach", "seed": 2}
    assert results.to_json(evaluation) == expected
    assert results.from_json(expected, "metrics.json") == evaluation


def test_what_is_not_known_is_null_under_the_same_names() -> None:
    pooled = Evaluation({"x": UNKNOWN})
    found = results.to_json(pooled)
    assert found.keys() == {"methods", "precision"}, "of no one seed"
    values = found["methods"]["x"]
    assert values.keys() == KNOWN_JSON.keys()
    known = {"method", "return_mean", "return_mean_low", "return_mean_high", "return_iqm", "ci_low", "ci_high"}
    known |= {"episodes", "tuned_parameters", "plm_passes", "environment_episodes", "tasks"}
    assert {name for name, value in values.items() if value is not None} == known
    assert results.from_json(found, "metrics.json") == pooled


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: str(path.relative_to(ROOT / "results")))
def test_published_metrics_are_read_and_written_as_the_same_bytes(path: Path, tmp_path: Path) -> None:
    results.save(tmp_path / "metrics.json", results.load(path))
    assert (tmp_path / "metrics.json").read_bytes() == path.read_bytes()


def test_the_first_published_files_are_read() -> None:
    """They record neither what methods were given nor whom a difference is to, and know one difference."""
    later = ("method", "frozen", "quality", "few_shot", "shown", "candidates", "chain", "normalized_low")
    later += ("normalized_high", "difference_to_full_finetune", "difference_to_prompt_dt", "share")
    later += ("above_half", "above_half_low", "above_half_high")
    old = {name: value for name, value in KNOWN_JSON.items() if name not in later}
    old["tasks"] = {"3": {"return_mean": 2.0, "success_rate": 0.25}}
    old["difference_to_prompt_diffuser"] = {"value": -1.0, "low": -2.0, "high": 0.0}
    old["seconds"] = 3.5
    found = results.from_json({"methods": {"prompt_dt_more": old}, "family": "reach", "seed": 1}, "old.json")
    assert (found.family, found.seed, found.precision) == ("reach", 1, None)
    assert found.methods["prompt_dt_more"] == MethodResult(
        given=Given("prompt_dt_more"),
        mean=KNOWN.mean,
        iqm=KNOWN.iqm,
        success=KNOWN.success,
        normalized=Position(0.125),
        difference_to_prompt_diffuser=Difference(-1.0, -2.0, 0.0, "prompt_diffuser"),
        episodes=8,
        costs=KNOWN.costs,
        tasks={3: TaskResult(2.0, 0.25)},
    )


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"return_mean": None}, "methods.x.return_mean: Field required"),
        ({"ci_low": None}, "methods.x.ci_low: Input should be a valid number"),
        ({"success_high": "all"}, "methods.x.success_high: Input should be a valid number"),
        ({"plm_passes": None}, "methods.x.plm_passes: Input should be a valid integer"),
        ({"few_shot": "five"}, "methods.x.few_shot: Input should be a valid integer"),
        ({"share": {"value": 1.0}}, "methods.x.share.low: Field required"),
        ({"tasks": {"3": {}}}, "methods.x.tasks.3.return_mean: Field required"),
        ({"tasks": {"three": {"return_mean": 1.0}}}, "methods.x.tasks.three"),
    ],
)
def test_a_missing_or_wrong_figure_is_one_line_that_names_it(
    change: dict[str, Any], place: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"methods": {"x": KNOWN_JSON | change}, "precision": None})
    with pytest.raises(PipelineError) as raised:
        results.load(path)
    text = str(raised.value)
    assert text.startswith(f"{path}: {place}")
    assert text.endswith(": run stage evaluation again")
    assert "\n" not in text


@pytest.mark.parametrize("values", [{}, {"methods": []}, {"methods": {"x": 5}}])
def test_what_holds_no_metrics_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match=r"^metrics.json: holds no metrics of methods: run stage evaluation again$"):
        results.from_json(values, "metrics.json")


def test_the_record_of_a_small_case_is_that_of_other_software() -> None:
    """Three seeds of two tasks, six runs each: means, intervals and places computed with scipy alone."""
    rng = np.random.default_rng(0)
    means = {"noise_prompt": 0.0, "prompt_dt": 4.0, "prompt_diffuser": 5.0, "full_finetune": 9.0}
    runs = {method: mean + rng.normal(0, 1, (3, 2, 6)) for method, mean in means.items()}  # (seeds, tasks, runs)
    scores = [scores_of({method: seeds[seed].tolist() for method, seeds in runs.items()}, seed) for seed in range(3)]
    found = method_metrics(
        scores[0].vstack(scores[1]).vstack(scores[2]), {method: tuned(method) for method in means}, 0, 10
    )["prompt_diffuser"]
    seeds = {method: values.mean((1, 2)) for method, values in runs.items()}  # (seeds,)

    def student(values: np.ndarray, centre: float) -> Any:
        spread = stats.sem(values) * stats.t.ppf(0.975, 2)
        return pytest.approx((centre, centre - spread, centre + spread))

    ours = runs["prompt_diffuser"]
    assert found.mean == student(seeds["prompt_diffuser"], ours.mean())
    trimmed = np.array([stats.trim_mean(seed.ravel(), 0.25) for seed in ours])
    assert found.iqm == student(trimmed, stats.trim_mean(ours.ravel(), 0.25))
    successes = ours > 5
    assert found.success is not None
    assert found.success.value == successes.mean()
    wilson = stats.binomtest(int(successes.sum()), successes.size).proportion_ci(method="wilson")
    rates = successes.mean((1, 2))
    spread = stats.sem(rates) * stats.t.ppf(0.975, 2)
    assert found.success.low == pytest.approx(min(wilson.low, rates.mean() - spread))
    assert found.success.high == pytest.approx(max(wilson.high, rates.mean() + spread))
    for difference, method in (
        (found.difference_to_full_finetune, "full_finetune"),
        (found.difference_to_prompt_dt, "prompt_dt"),
    ):
        apart = seeds["prompt_diffuser"] - seeds[method]
        assert difference is not None
        assert difference.reference == method
        assert difference[:3] == student(apart, apart.mean())
    for place, low in ((found.normalized, "noise_prompt"), (found.share, "prompt_dt")):
        places = (seeds["prompt_diffuser"] - seeds[low]) / (seeds["full_finetune"] - seeds[low])
        centre = (ours.mean() - runs[low].mean()) / (runs["full_finetune"].mean() - runs[low].mean())
        assert place is not None
        assert place[:3] == student(places, centre)
    assert found.episodes == ours.size
    for task in (0, 1):
        assert found.tasks[task].return_mean == pytest.approx(ours[:, task].mean())
        assert found.tasks[task].success_rate == pytest.approx(successes[:, task].mean())


def test_a_record_of_scores_survives_the_file(tmp_path: Path) -> None:
    scores = scores_of({"noise_prompt": [[0.0, 1.0]], "prompt_dt": [[4.0, 7.0]], "full_finetune": [[8.0, 9.0]]})
    outs = {method: tuned(method) for method in ("noise_prompt", "prompt_dt", "full_finetune")}
    evaluation = Evaluation(method_metrics(scores, outs, 0, 50), "float32", "point_robot", 0)
    results.save(tmp_path / "metrics.json", evaluation)
    assert results.load(tmp_path / "metrics.json") == evaluation
