"""From scores to metrics, method by method: which draws make an interval, and what a method is held against."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from pd_pipeline.evaluation.scores import by_task, method_metrics, same_data
from pd_pipeline.evaluation.statistics import (
    estimate,
    interquartile_mean,
    mean,
    paired_difference,
    position,
    success_rate,
)
from tests.evaluation.test_stage import scores_of, told

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
    for method, values in found.items():
        rng = np.random.default_rng(3)
        iqm = estimate(runs[method], interquartile_mean, rng, 50)
        average = estimate(runs[method], mean, rng, 50)
        assert (values["return_iqm"], values["ci_low"], values["ci_high"]) == iqm
        assert (values["return_mean"], values["return_mean_low"], values["return_mean_high"]) == average
        for other in ("prompt_diffuser", "full_finetune", "prompt_dt"):
            expected = paired_difference(runs[method], runs[other], rng, 50)._asdict() | {"reference": other}
            assert values[f"difference_to_{other}"] == expected
        place = position(runs[method], runs["noise_prompt"], runs["full_finetune"], rng, 50)
        assert place is not None
        if method in ("noise_prompt", "full_finetune"):
            place = place._replace(low=place.value, high=place.value)
        assert (values["normalized"], values["normalized_low"], values["normalized_high"]) == place
        share = position(runs[method], runs["prompt_dt"], runs["full_finetune"], rng, 50)
        assert share is not None
        ends = {"start": "prompt_dt", "ceiling": "full_finetune"}
        if method in ends.values():
            share = share._replace(low=share.value, high=share.value)
        assert values["share"] == share._asdict() | ends


def test_the_floor_and_the_ceiling_of_normalised_returns_are_the_plain_methods_for_all() -> None:
    """Whatever data a method had; shares are of methods that had the same."""
    means = {"noise_prompt": 0.0, "full_finetune": 10.0, "full_finetune_all": 20.0, "prompt_dt_all": 5.0, "x": 8.0}
    scores = scores_of({method: [[value]] for method, value in means.items()})
    summaries = {
        "noise_prompt": told("noise_prompt"),
        "full_finetune": told("full_finetune"),
        **{name: told(name.removesuffix("_all"), few_shot=40) for name in ("full_finetune_all", "prompt_dt_all", "x")},
    }
    found = method_metrics(scores, summaries, 0, 10)
    assert {name: values["normalized"] for name, values in found.items()} == {
        name: value / 10 for name, value in means.items()
    }
    assert found["x"]["share"]["value"] == pytest.approx((8 - 5) / (20 - 5))
    assert (found["x"]["share"]["start"], found["x"]["share"]["ceiling"]) == ("prompt_dt_all", "full_finetune_all")


def test_costs_are_those_of_all_targets_and_their_weights_those_of_one() -> None:
    costs: list[dict[str, Any]] = [
        {"tuned_parameters": 7, "plm_passes": 3, "environment_episodes": 20},
        {"tuned_parameters": 7, "plm_passes": 4, "environment_episodes": 5},
    ]
    found = method_metrics(scores_of({"x": [[1.0], [2.0]]}), {"x": costs}, 0, 10)["x"]
    assert (found["tuned_parameters"], found["plm_passes"], found["environment_episodes"]) == (7, 7, 25)


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
    """The method's own, else the shortest, else the first in the alphabet; the order they stand in is nothing."""
    data = {"quality": "expert", "few_shot": 5, "shown": "own"}
    described: dict[str, dict[str, Any]] = {name: {"method": "prompt_dt", **data} for name in names}
    described["prompt_diffuser"] = {"method": "prompt_diffuser", **data}
    for order in (list(described), list(described)[::-1]):
        assert same_data({name: described[name] for name in order}, "prompt_diffuser", "prompt_dt") == expected


def test_what_says_nothing_of_itself_is_the_method_of_its_name() -> None:
    assert same_data({"prompt_dt": {}, "x": {}}, "x", "prompt_dt") == "prompt_dt"


def test_a_method_is_described_by_what_its_targets_agree_on() -> None:
    summaries = [*told("prompt_dt", few_shot=5, candidates=9)[:1], *told("prompt_dt", few_shot=4, candidates=9)[:1]]
    found = method_metrics(scores_of({"x": [[1.0], [2.0]]}), {"x": summaries}, 0, 10)["x"]
    assert (found["method"], found["quality"], found["candidates"]) == ("prompt_dt", "expert", 9)
    assert found["few_shot"] is None
    alone = method_metrics(scores_of({"x": [[1.0]]}), {"x": told("prompt_dt")[:1]}, 0, 10)["x"]
    assert alone["few_shot"] == 5, "of a single target"
    assert method_metrics(scores_of({"x": [[1.0]]}), {}, 0, 10)["x"]["method"] == "x", "a method without a summary"


@pytest.mark.parametrize("missing", ["noise_prompt", "full_finetune"])
def test_one_end_alone_is_no_scale(missing: str) -> None:
    scores = scattered(*CENTRES).filter(pl.col("method") != missing)
    found = method_metrics(scores, {}, 0, 10)
    assert {values["normalized"] for values in found.values()} == {None}


def test_success_is_as_uncertain_as_its_seeds() -> None:
    """Runs above 5 succeed: all of the first seed, none of the second."""
    scores = pl.concat([scores_of({"x": [[6.0, 7.0], [8.0, 9.0]]}, 0), scores_of({"x": [[1.0, 2.0], [3.0, 4.0]]}, 1)])
    found = method_metrics(scores, {}, 0, 10)["x"]
    expected = success_rate([np.ones(4, bool), np.zeros(4, bool)])
    assert (found["success_rate"], found["success_low"], found["success_high"]) == expected


def test_success_known_of_some_runs_alone_is_no_rate() -> None:
    scores = scores_of({"x": [[6.0, 7.0]]}).with_columns(pl.Series("success", [True, None]))
    found = method_metrics(scores, {}, 0, 10)["x"]
    assert found["success_rate"] is found["tasks"]["0"]["success_rate"] is None


def test_methods_stand_in_the_order_of_their_scores() -> None:
    names = [f"x{number * 7 % 40}" for number in range(40)]
    assert list(method_metrics(scores_of({name: [[1.0]] for name in names}), {}, 0, 2)) == names
