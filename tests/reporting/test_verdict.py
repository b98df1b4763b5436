from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from pd_pipeline.evaluation.results import Costs, MethodResult
from pd_pipeline.evaluation.scores import method_metrics
from pd_pipeline.evaluation.statistics import Estimate
from pd_pipeline.reporting.formatting import number
from pd_pipeline.reporting.verdict import judge, prompt_needed
from tests.evaluation.builders import tuned

BASE = {"prompt_diffuser_medium": "prompt_diffuser", "prompt_dt_other": "prompt_dt"}


def metrics(spread: float = 0.0, success: float = 1.0, **means: float) -> dict[str, MethodResult]:
    """Results of three seeds: a method's mean is as given, and seeds lie around it by `spread`, each method its own."""
    rng = np.random.default_rng(0)
    rows, outs = [], {}
    for method, value in means.items():
        around = rng.normal(size=3)
        around = spread * (around - around.mean())
        rows += [
            {
                "method": method,
                "task": task,
                "seed": seed,
                "prompt": prompt,
                "return": value + around[seed],
                "success": prompt < round(20 * success),
            }
            for seed in range(3)
            for task in range(2)
            for prompt in range(20)
        ]
        quality, shown = "medium" if "medium" in method else "expert", "other" if "other" in method else "own"
        outs[method] = tuned(BASE.get(method, method), quality=quality, shown=shown)
    return dict(method_metrics(pl.DataFrame(rows), outs, 0, 100))


def test_all_bars_met() -> None:
    verdict = judge(metrics(0.1, prompt_dt=80.0, prompt_diffuser=95.0, full_finetune=100.0))
    assert verdict.met
    assert verdict.sentence == "prompt_diffuser meets all 3 bars."
    assert verdict.checks[0].found.startswith("0.75 (0.7")
    assert [check.state for check in verdict.checks] == ["met"] * 3


@pytest.mark.parametrize(
    ("ours", "met"), [(100.0, True), (95.0, True), (91.0, True), (89.0, False), (80.0, False), (60.0, False)]
)
def test_half_of_the_gain_must_be_preserved(ours: float, met: bool) -> None:
    """Full fine-tuning gains 20 over drawn prompts: more than 10 of it, with the whole interval."""
    check = judge(metrics(0.1, prompt_dt=80.0, prompt_diffuser=ours, full_finetune=100.0)).checks[0]
    assert check.met is met
    assert f"; {number(ours - 90, 2)} (" in check.found
    assert check.found.endswith("above half of the way, which must lie above zero")


def test_how_uncertain_the_gain_is_counts() -> None:
    """Ours and full fine-tuning are the same in every seed, drawn prompts are not: half of the gain is not certain."""
    found = metrics(0.0, prompt_dt=80.0, prompt_diffuser=84.0, full_finetune=84.0)
    assert judge(found).checks[0].met
    drawn = Estimate(2.0, -1.0, 5.0)
    check = judge(found | {"prompt_diffuser": replace(found["prompt_diffuser"], above_half=drawn)}).checks[0]
    assert check.met is False


def test_results_of_before_are_not_judged_by_what_they_lack() -> None:
    found = metrics(0.1, prompt_dt=80.0, prompt_diffuser=95.0, full_finetune=100.0)
    old = found | {"prompt_diffuser": replace(found["prompt_diffuser"], above_half=None)}
    check = judge(old).checks[0]
    assert check.met is None
    assert "run stage evaluation again" in check.found


def test_a_single_seed_is_called_so() -> None:
    found = metrics(0.1, prompt_dt=80.0, prompt_diffuser=95.0, full_finetune=100.0)
    assert "With one seed this is of one policy" in judge(found, seeds=1).sentence
    assert "seed" not in judge(found, seeds=3).sentence


def test_a_method_with_episodes_is_no_rival() -> None:
    found = metrics(0.1, prompt_dt=80.0, prompt_diffuser=95.0, full_finetune=100.0, prompt_bandit=99.0)
    assert judge(found).checks[2].met is False
    online = replace(found["prompt_bandit"], costs=Costs(0, 0, environment_episodes=50))
    assert judge(found | {"prompt_bandit": online}).checks[2].met


def test_the_interval_decides_not_the_mean() -> None:
    values = {"prompt_dt": 80.0, "prompt_diffuser": 93.0, "full_finetune": 100.0}
    assert judge(metrics(0.1, **values)).checks[0].met
    assert judge(metrics(3.0, **values)).checks[0].met is False


@pytest.mark.parametrize("shift", [-1000.0, 0.0, 1e6])
def test_the_scale_of_returns_does_not_matter(shift: float) -> None:
    """A share of the return itself would pass nearly anything where returns are large, or negative."""
    means = {"prompt_dt": 80.0, "prompt_diffuser": 88.0, "full_finetune": 100.0}
    check = judge(metrics(0.1, **{method: value + shift for method, value in means.items()})).checks[0]
    assert check.met is False


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
def test_drawn_prompts_in_the_place_of_tuned_ones_fail(spread: float) -> None:
    found = metrics(spread, prompt_dt=80.0, prompt_diffuser=80.0, full_finetune=100.0)
    check = judge(found).checks[0]
    assert check.met is False, "wherever it is decidable"


def test_a_significant_loss_is_said_even_where_the_margin_is_kept() -> None:
    values = {"prompt_dt": 80.0, "prompt_diffuser": 95.0, "full_finetune": 100.0}
    check = judge(metrics(0.1, **values)).checks[0]
    assert check.met
    assert "(significantly below it)" in check.found
    assert "significantly" not in judge(metrics(0.1, **values | {"prompt_diffuser": 100.0})).checks[0].found


@pytest.mark.parametrize("ceiling", [80.0, 70.0, 81.0])
def test_without_a_gain_beyond_chance_there_is_nothing_to_preserve(ceiling: float) -> None:
    verdict = judge(metrics(2.0, prompt_dt=80.0, prompt_diffuser=90.0, full_finetune=ceiling))
    assert verdict.checks[0].met is None
    assert "there is no gain to preserve" in verdict.checks[0].found
    below = "below prompt_dt by more than chance" if ceiling == 70.0 else "not above prompt_dt by more than chance"
    assert verdict.checks[0].found.startswith(f"full_finetune is {below}")
    assert verdict.sentence == "prompt_diffuser meets 2 and leaves undecided 1 of 3 bars."


def test_success_has_its_bar_where_there_is_success() -> None:
    means = {"prompt_dt": 80.0, "prompt_diffuser": 95.0, "full_finetune": 100.0}
    assert judge(metrics(0.1, 0.95, **means)).checks[1].met
    check = judge(metrics(0.1, 0.9, **means)).checks[1]
    assert check.met is False
    assert check.found == "success in 90.0 % of the evaluated episodes (95 % interval 83.3 % to 94.2 %)"
    without = {method: replace(result, success=None) for method, result in metrics(0.1, **means).items()}
    assert len(judge(without).checks) == 2


@pytest.mark.parametrize(
    ("rival", "met", "words"),
    [
        (94.0, True, "return 95.00 against 94.00 of the best other, prompt_gradient"),
        (95.1, True, "prompt_gradient, a difference within its 95 % interval"),
        (97.0, False, "prompt_gradient; better beyond chance: prompt_gradient by 2.00 ("),
    ],
)
def test_a_better_frozen_method_counts_beyond_its_interval(rival: float, met: bool, words: str) -> None:
    found = metrics(0.1, prompt_dt=80.0, prompt_diffuser=95.0, full_finetune=100.0, prompt_gradient=rival)
    check = judge(found).checks[2]
    assert check.met is met
    assert words in check.found


def test_who_tunes_the_plm_or_had_other_data_is_no_rival() -> None:
    found = metrics(0.1, prompt_diffuser=95.0, full_finetune=100.0, prompt_dt_other=99.0, prompt_diffuser_medium=99.0)
    assert judge(found).checks[2].found == "no other such method was run"
    other = found["prompt_dt_other"]
    found["prompt_dt_other"] = replace(other, given=replace(other.given, shown="own"))
    assert judge(found).checks[2].met is False


def test_a_variant_is_judged_on_its_own_data() -> None:
    found = metrics(0.1, prompt_dt=80.0, prompt_diffuser=95.0, full_finetune=100.0, prompt_diffuser_medium=10.0)
    assert judge(found).met
    checks = judge(found, "prompt_diffuser_medium").checks
    assert [check.met for check in checks] == [None, True, None]
    assert checks[0].found == "full_finetune or prompt_dt was not run on the same data"


def test_what_was_not_run_is_not_judged() -> None:
    verdict = judge(metrics(0.1, prompt_diffuser=5.0))
    assert [check.met for check in verdict.checks] == [None, True, None]
    assert not verdict.met
    assert [check.state for check in verdict.checks] == ["undecided", "met", "undecided"]
    assert verdict.sentence == "prompt_diffuser meets 1 and leaves undecided 2 of 3 bars."
    assert judge(metrics(prompt_dt=5.0)).sentence == "prompt_diffuser was not run: nothing to judge."


@pytest.mark.parametrize(
    ("places", "answer"),
    [
        ({"noise_prompt": 10.0, "no_prompt": 20.0, "prompt_dt_other": 30.0}, "The task needs its own prompt"),
        (
            {"noise_prompt": 10.0, "no_prompt": 20.0, "prompt_dt_other": 80.0},
            "That the task needs its prompt is not shown",
        ),
        (
            {"noise_prompt": 10.0, "no_prompt": 85.0, "prompt_dt_other": 30.0},
            "That the task needs its prompt is not shown",
        ),
        ({"noise_prompt": 10.0}, "The task needs a prompt, and it is open whether that must be its own"),
    ],
)
def test_whether_the_task_needs_its_prompt(places: dict[str, float], answer: str) -> None:
    found = metrics(0.1, prompt_dt=80.0, prompt_diffuser=81.0, **places)
    sentence = prompt_needed(found)
    assert sentence.startswith(f"{answer}: ")
    assert judge(found).prompt == sentence
    assert ("costs 70.00 (" in sentence) == (places["noise_prompt"] == 10.0)
    assert ("not tried" in sentence) == (len(places) < 3)
    assert ("within chance" in sentence) == answer.startswith("That the task")


def test_nothing_is_said_of_prompts_that_were_not_replaced() -> None:
    assert prompt_needed(metrics(prompt_dt=80.0, prompt_diffuser=81.0)) == ""
