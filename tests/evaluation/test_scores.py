"""From scores to results, method by method: which draws make an interval, and what a method is compared with."""

import numpy as np
import polars as pl
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.results import Costs, Difference, Given, Share, TaskResult
from pd_pipeline.evaluation.scores import by_task, method_metrics, same_data
from pd_pipeline.evaluation.statistics import (
    estimate,
    interquartile_mean,
    mean,
    paired_difference,
    position,
    success_rate,
)
from tests.evaluation.builders import scores_of, tuned

CENTRES = {"noise_prompt": 0.0, "prompt_dt": 4.0, "prompt_diffuser": 6.0, "full_finetune": 9.0}


def scattered(*methods: str) -> pl.DataFrame:
    """Two tasks of nine runs of each method; those of a method are the same beside whatever others."""
    made = {}
    for method in methods:
        rng = np.random.default_rng(len(method))
        made[method] = [rng.exponential(size=9) * 3 + CENTRES[method] + task for task in range(2)]
    return scores_of({method: [runs.tolist() for runs in tasks] for method, tasks in made.items()})


def test_intervals_of_one_seed_are_drawn_with_that_seed_as_often_as_asked() -> None:
    """Each method begins anew with the seed, so that other methods beside it change none of its intervals."""
    scores = scattered(*CENTRES)
    found = method_metrics(scores, {}, 3, 50)
    runs = {method: by_task(scores, method) for method in CENTRES}
    for method, result in found.items():
        rng = np.random.default_rng(3)
        assert result.iqm == estimate(runs[method], interquartile_mean, rng, 50)
        assert result.mean == estimate(runs[method], mean, rng, 50)
        for other, difference in (
            ("prompt_diffuser", result.difference_to_prompt_diffuser),
            ("full_finetune", result.difference_to_full_finetune),
            ("prompt_dt", result.difference_to_prompt_dt),
        ):
            assert difference == Difference(*paired_difference(runs[method], runs[other], rng, 50), other)
        place = position(runs[method], runs["noise_prompt"], runs["full_finetune"], rng, 50)
        assert place is not None
        if method in ("noise_prompt", "full_finetune"):
            place = place._replace(low=place.value, high=place.value)
        assert result.normalized == place
        share = position(runs[method], runs["prompt_dt"], runs["full_finetune"], rng, 50)
        assert share is not None
        if method in ("prompt_dt", "full_finetune"):
            share = share._replace(low=share.value, high=share.value)
        assert result.share == Share(*share, "prompt_dt", "full_finetune")


def test_the_floor_and_the_ceiling_of_normalised_returns_are_the_plain_methods_for_all() -> None:
    """Whatever data a method had; shares are of methods that had the same."""
    means = {"noise_prompt": 0.0, "full_finetune": 10.0, "full_finetune_all": 20.0, "prompt_dt_all": 5.0, "x": 8.0}
    scores = scores_of({method: [[value]] for method, value in means.items()})
    outs = {
        "noise_prompt": tuned("noise_prompt"),
        "full_finetune": tuned("full_finetune"),
        **{name: tuned(name.removesuffix("_all"), few_shot=40) for name in ("full_finetune_all", "prompt_dt_all", "x")},
    }
    found = method_metrics(scores, outs, 0, 10)
    places = {name: result.normalized.value if result.normalized else None for name, result in found.items()}
    assert places == {name: value / 10 for name, value in means.items()}
    share = found["x"].share
    assert share is not None
    assert share.value == pytest.approx((8 - 5) / (20 - 5))
    assert (share.start, share.ceiling) == ("prompt_dt_all", "full_finetune_all")


def test_costs_are_those_of_all_targets_and_their_weights_those_of_one() -> None:
    outs = [tuned("x", Costs(7, 3, 20))[0], tuned("x", Costs(7, 4, 5))[0]]
    found = method_metrics(scores_of({"x": [[1.0], [2.0]]}), {"x": outs}, 0, 10)["x"]
    assert found.costs == Costs(tuned_parameters=7, plm_passes=7, environment_episodes=25)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("dt", "prompt_dt"), "prompt_dt"),
        (("prompt_dt_aaa", "prompt_dt_z"), "prompt_dt_z"),
        (("prompt_dt_b", "prompt_dt_a"), "prompt_dt_a"),
        (("prompt_diffuser",), None),
    ],
)
def test_of_several_with_the_same_data_the_plainest_name_is_taken(names: tuple[str, ...], expected: str | None) -> None:
    """The method's own, else the shortest, else the first in the alphabet; their order decides nothing."""
    given = {name: tuned("prompt_dt")[0].given for name in names}
    given["prompt_diffuser"] = tuned("prompt_diffuser")[0].given
    for order in (list(given), list(given)[::-1]):
        assert same_data({name: given[name] for name in order}, "prompt_diffuser", "prompt_dt") == expected


def test_a_method_is_described_by_what_its_targets_agree_on() -> None:
    outs = [tuned("prompt_dt", few_shot=5, candidates=9)[0], tuned("prompt_dt", few_shot=4, candidates=9)[0]]
    found = method_metrics(scores_of({"x": [[1.0], [2.0]]}), {"x": outs}, 0, 10)["x"].given
    assert (found.method, found.quality, found.candidates) == ("prompt_dt", "expert", 9)
    assert found.few_shot is None
    alone = method_metrics(scores_of({"x": [[1.0]]}), {"x": tuned("prompt_dt")[:1]}, 0, 10)["x"]
    assert alone.given.few_shot == 5, "of a single target"
    unknown = method_metrics(scores_of({"x": [[1.0]]}), {}, 0, 10)["x"]
    assert unknown.given == Given("x"), "nothing is recorded, but its name"
    unlike = method_metrics(scores_of({"x": [[1.0]]}), {"x": [tuned("y")[0], tuned("z")[0]]}, 0, 10)["x"]
    assert unlike.given.method == "x"


@pytest.mark.parametrize("missing", ["noise_prompt", "full_finetune"])
def test_one_end_alone_is_no_scale(missing: str) -> None:
    scores = scattered(*CENTRES).filter(pl.col("method") != missing)
    found = method_metrics(scores, {}, 0, 10)
    assert {result.normalized for result in found.values()} == {None}


def test_success_is_as_uncertain_as_its_seeds() -> None:
    """Runs above 5 succeed: all of the first seed, none of the second."""
    scores = pl.concat([scores_of({"x": [[6.0, 7.0], [8.0, 9.0]]}, 0), scores_of({"x": [[1.0, 2.0], [3.0, 4.0]]}, 1)])
    found = method_metrics(scores, {}, 0, 10)["x"]
    expected = success_rate([np.ones(4, bool), np.zeros(4, bool)])
    assert found.success == expected


def test_success_known_of_some_runs_alone_is_no_rate() -> None:
    scores = scores_of({"x": [[6.0, 7.0]]}).with_columns(pl.Series("success", [True, None]))
    found = method_metrics(scores, {}, 0, 10)["x"]
    assert found.success is found.tasks[0].success_rate is None


def test_methods_keep_the_order_of_their_scores() -> None:
    names = [f"x{number * 7 % 40}" for number in range(40)]
    assert list(method_metrics(scores_of({name: [[1.0]] for name in names}), {}, 0, 2)) == names


def test_metrics_by_hand() -> None:
    scores = scores_of(
        {
            "noise_prompt": [[0.0, 0.0], [2.0, 2.0]],
            "full_finetune": [[10.0, 10.0], [12.0, 12.0]],
            "prompt_diffuser": [[9.0, 9.0], [11.0, 11.0]],
        }
    )
    found = method_metrics(scores, {}, 0, 100)
    ours = found["prompt_diffuser"]
    assert ours.mean == (10, 10, 10), "runs of a task are all alike"
    assert ours.normalized == pytest.approx((0.9, 0.9, 0.9))
    assert ours.success is not None
    assert ours.success.value == 1
    assert found["noise_prompt"].difference_to_prompt_diffuser == Difference(-9, -9, -9, "prompt_diffuser")
    assert found["full_finetune"].tasks[1] == TaskResult(return_mean=12, success_rate=1, target_return=None)
    assert found["full_finetune"].episodes == 4


def test_without_floor_or_ceiling_nothing_is_normalised() -> None:
    found = method_metrics(scores_of({"prompt_dt": [[1.0, 2.0]]}), {}, 0, 10)["prompt_dt"]
    assert found.normalized is found.share is found.difference_to_prompt_diffuser is None


def test_methods_are_held_against_those_that_had_the_same_data() -> None:
    means = {
        "prompt_diffuser": 10.0,
        "prompt_diffuser_medium_more": 3.0,
        "prompt_diffuser_medium": 4.0,
        "prompt_dt": 6.0,
        "prompt_dt_medium": 5.0,
        "prompt_dt_one": 2.0,
        "prompt_dt_best": 7.0,
        "prompt_dt_random": 3.0,
        "full_finetune": 14.0,
        "full_finetune_all": 15.0,
    }
    scores = scores_of({method: [[value, value], [value, value]] for method, value in means.items()})
    outs = {method: tuned(method) for method in ("prompt_diffuser", "prompt_dt", "full_finetune")}
    outs |= {
        "prompt_diffuser_medium_more": tuned("prompt_diffuser", quality="medium"),
        "prompt_diffuser_medium": tuned("prompt_diffuser", quality="medium"),
        "prompt_dt_medium": tuned("prompt_dt", quality="medium"),
        "prompt_dt_one": tuned("prompt_dt", few_shot=1),
        "prompt_dt_best": tuned("prompt_dt", choose="best"),
        "prompt_dt_random": tuned("prompt_dt", prompt_quality="random"),
        "full_finetune_all": tuned("full_finetune", few_shot=40),
    }
    found = method_metrics(scores, outs, 0, 10)
    apart = {method: result.difference_to_prompt_diffuser for method, result in found.items()}
    assert apart["prompt_dt"] == Difference(-4, -4, -4, "prompt_diffuser")
    assert apart["prompt_dt_medium"] == Difference(1, 1, 1, "prompt_diffuser_medium")
    assert apart["prompt_diffuser_medium_more"] == Difference(-1, -1, -1, "prompt_diffuser_medium")
    assert apart["prompt_dt_one"] is apart["full_finetune_all"] is apart["prompt_dt_random"] is None
    assert apart["prompt_dt_best"] is None, "other trajectories"
    assert found["prompt_dt"].difference_to_full_finetune == Difference(-8, -8, -8, "full_finetune")
    assert found["prompt_dt_medium"].difference_to_full_finetune is None
    assert found["prompt_diffuser"].share == Share(0.5, 0.5, 0.5, "prompt_dt", "full_finetune")
    assert found["prompt_diffuser_medium"].share is None


def test_what_was_shown_another_task_is_held_against_methods_but_is_none_of_them() -> None:
    scores = scores_of({"prompt_dt_other": [[1.0], [1.0]], "prompt_dt": [[3.0], [3.0]]})
    outs = {"prompt_dt_other": tuned("prompt_dt", shown="other"), "prompt_dt": tuned("prompt_dt")}
    found = method_metrics(scores, outs, 0, 10)
    assert found["prompt_dt_other"].difference_to_prompt_dt == Difference(-2, -2, -2, "prompt_dt")
    alone = method_metrics(scores.filter(pl.col("method") == "prompt_dt_other"), outs, 0, 10)
    assert alone["prompt_dt_other"].difference_to_prompt_dt is None


def test_there_is_no_share_where_full_fine_tuning_is_not_above_drawn_prompts() -> None:
    scores = scores_of({name: [[value]] for name, value in (("prompt_dt", 5.0), ("full_finetune", 5.0), ("x", 9.0))})
    assert method_metrics(scores, {}, 0, 10)["x"].share is None


def test_scores_by_task_pair_up_whatever_their_order() -> None:
    scores = pl.concat([scores_of({"a": [[1.0, 2.0], [3.0, 4.0]]}, 2), scores_of({"a": [[5.0, 6.0], [7.0, 8.0]]}, 1)])
    shuffled = by_task(scores.sample(fraction=1, shuffle=True, seed=1), "a")
    np.testing.assert_array_equal(shuffled, [[[5.0, 6.0], [7.0, 8.0]], [[1.0, 2.0], [3.0, 4.0]]])


def test_episodes_of_a_prompt_are_one_run() -> None:
    first, second = scores_of({"a": [[1.0, 2.0], [3.0, 4.0]]}), scores_of({"a": [[3.0, 6.0], [5.0, 8.0]]})
    np.testing.assert_array_equal(by_task(pl.concat([first, second]), "a"), [[[2.0, 4.0], [4.0, 6.0]]])


def test_where_there_is_one_prompt_a_run_is_an_episode() -> None:
    """Resampled alone, its mean would have an interval without width."""
    parts = [scores_of({"a": [[value], [value + 1]], "b": [[1.0, 2.0], [3.0]]}) for value in (4.0, 6.0, 11.0)]
    scores = pl.concat(parts)
    np.testing.assert_array_equal(by_task(scores, "a"), [[[4.0, 6.0, 11.0], [5.0, 7.0, 12.0]]])
    assert [runs.tolist() for runs in by_task(scores, "b")[0]] == [[1.0, 2.0], [3.0, 3.0, 3.0]]
    found = method_metrics(scores, {}, 0, 200)["a"]
    assert found.mean.low < found.mean.value < found.mean.high
    assert found.success == success_rate([np.array([0, 1, 1, 0, 1, 1])])


def test_success_counts_prompts_not_the_episodes_that_share_one() -> None:
    """A start that is always the same gives the same episode again."""
    once = scores_of({"a": [[6.0, 1.0], [7.0, 8.0]]})
    found, more = (method_metrics(scores, {}, 0, 10)["a"].success for scores in (once, pl.concat([once] * 9)))
    assert found == more
    assert found is not None
    assert found.value == 0.75


def test_metrics_of_several_seeds_by_hand() -> None:
    """Two seeds far apart, and a method that is 1 and 3 above the other: Student's interval of 1 and 3."""
    given = [
        scores_of({"prompt_diffuser": [[0.0, 4.0], [2.0, 2.0]], "prompt_dt": [[1.0, 5.0], [3.0, 3.0]]}, 0),
        scores_of({"prompt_diffuser": [[90.0, 94.0], [92.0, 92.0]], "prompt_dt": [[93.0, 97.0], [95.0, 95.0]]}, 1),
    ]
    found = method_metrics(pl.concat(given), {}, 0, 10)["prompt_dt"]
    half = 12.7062 * np.std([1.0, 3.0], ddof=1) / np.sqrt(2)  # t of one degree of freedom
    difference = found.difference_to_prompt_diffuser
    assert difference is not None
    assert difference.reference == "prompt_diffuser"
    assert difference[:3] == pytest.approx((2.0, 2 - half, 2 + half), rel=1e-4)
    wide = 12.7062 * np.std([3.0, 95.0], ddof=1) / np.sqrt(2)
    assert found.mean == pytest.approx((49.0, 49.0 - wide, 49.0 + wide), rel=1e-4)


@pytest.mark.parametrize("drop", [{"seed": 1, "task": 0}, {"seed": 0, "task": 1}])
def test_a_method_without_scores_of_a_seed_or_task_is_named(drop: dict[str, int]) -> None:
    methods = {"a": [[1.0], [2.0]], "b": [[3.0], [4.0]]}
    scores = pl.concat([scores_of(methods, 0), scores_of(methods, 1)])
    gone = (pl.col("method") == "b") & pl.all_horizontal(*(pl.col(name) == value for name, value in drop.items()))
    with pytest.raises(PipelineError, match=f"b has no scores of seed {drop['seed']}, task {drop['task']}"):
        method_metrics(scores.filter(~gone), {}, 0, 10)


def test_without_success_there_is_no_rate_of_it() -> None:
    scores = scores_of({"prompt_dt": [[1.0, 2.0]]}).with_columns(pl.lit(None, pl.Boolean).alias("success"))
    found = method_metrics(scores, {}, 0, 10)["prompt_dt"]
    assert found.success is None
    assert [task.success_rate for task in found.tasks.values()] == [None]
    assert found.mean.value == 1.5
