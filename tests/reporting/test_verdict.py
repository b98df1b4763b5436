from typing import Any

import numpy as np
import polars as pl
import pytest

from pd_pipeline.evaluation.scores import method_metrics
from pd_pipeline.reporting.verdict import decimals, judge, number, percent, prompt_needed, what_mattered

COSTS = {"tuned_parameters": 0, "plm_passes": 0, "environment_episodes": 0}
BASE = {"prompt_diffuser_medium": "prompt_diffuser", "prompt_dt_other": "prompt_dt"}


def metrics(spread: float = 0.0, success: float = 1.0, **means: float) -> dict[str, Any]:
    """Metrics of three seeds: a method's mean is as given, and seeds lie around it by `spread`, each method its own."""
    rng = np.random.default_rng(0)
    rows, summaries = [], {}
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
        summary = {
            "method": BASE.get(method, method),
            "frozen": method != "full_finetune",
            "quality": "medium" if "medium" in method else "expert",
            "few_shot": 5,
            "shown": "other" if "other" in method else "own",
        }
        summaries[method] = [COSTS | summary] * 6
    return method_metrics(pl.DataFrame(rows), summaries, 0, 100)


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
    assert f"the interval must lie above {number(-10.0, 1)}" in check.found.replace("10.00", "10.0")


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
    without = {method: values | {"success_rate": None} for method, values in metrics(0.1, **means).items()}
    assert len(judge(without).checks) == 2


@pytest.mark.parametrize(
    ("rival", "met", "said"),
    [
        (94.0, True, "return 95.00 against 94.00 of the best other, prompt_gradient"),
        (95.1, True, "prompt_gradient, a difference within its 95 % interval"),
        (97.0, False, "prompt_gradient; better beyond chance: prompt_gradient by 2.00 ("),
    ],
)
def test_a_better_frozen_method_counts_beyond_its_interval(rival: float, met: bool, said: str) -> None:
    found = metrics(0.1, prompt_dt=80.0, prompt_diffuser=95.0, full_finetune=100.0, prompt_gradient=rival)
    check = judge(found).checks[2]
    assert check.met is met
    assert said in check.found


def test_who_tunes_the_plm_or_had_other_data_is_no_rival() -> None:
    found = metrics(0.1, prompt_diffuser=95.0, full_finetune=100.0, prompt_dt_other=99.0, prompt_diffuser_medium=99.0)
    assert judge(found).checks[2].found == "no other such method was run"
    found["prompt_dt_other"]["shown"] = "own"
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


def test_numbers_as_people_read_them() -> None:
    assert number(-1234.56, 1) == "\N{MINUS SIGN}1,234.6"
    assert number(-0.04, 1) == "0.0"
    assert percent(0.9849) == "98.5 %"
    assert [decimals([value]) for value in (2000, -150, 3, 0.5)] == [1, 1, 2, 3]


def test_what_mattered_follows_the_figures() -> None:
    falling, rising = np.linspace(2, 1, 40), np.linspace(1, 2, 40)
    missing = np.full(20, np.nan)
    log = {
        "phase": np.repeat([1.0, 2.0], 20),
        "loss": falling,
        "l_dm": np.concatenate((missing, rising[20:])),
        "l_dt": np.concatenate((missing, falling[20:])),
        "cosine": np.concatenate((missing, np.tile([-0.5, 0.1], 10))),
        "projected": np.concatenate((missing, np.tile([1.0, 0.0], 10))),
    }
    found = metrics(prompt_dt=80.0, prompt_diffuser=95.0, full_finetune=100.0)
    text = "\n".join(what_mattered(found, {(0, 0): log}, []))
    assert "gains 15.00 of return" in text
    assert "0.75 (0.75 to 0.75) of the way from there to full_finetune" in text
    assert "L_DT, the frozen PLM's action loss under generated prompts, fell from" in text
    assert "while L_DM rose from" in text
    assert "mean cosine of \N{MINUS SIGN}0.200" in text
    assert "below 0) in 50 % of the steps; 50 % of the steps were projected" in text
    assert "norm of g_DT" not in text  # the log has no such column
    assert what_mattered({}, {}, []) == []


def test_the_fit_is_told_with_its_chain_and_of_the_prompts_that_are_evaluated() -> None:
    ends = {"wasserstein_real": 1.0, "wasserstein_generated": 2.0, "nearest_real": 0.1, "nearest_generated": 0.3}
    losses = {"action_loss_real": 0.5, "action_loss_generated": 0.25}
    guided = ends | losses | {"chain": 3, "nearest_kept": 0.4}
    fit = {"pretrained": ends | {"chain": 20}, "targets": {"1": {"guided": guided}}}
    text = "\n".join(what_mattered({}, {}, [fit]))
    said = "lie 2 from held-out real prompts (Wasserstein), 2 times as far as other real ones do (1)."
    assert f"The pre-trained diffuser's prompts (a chain of 20 steps) {said}" in text
    assert "its prompts for the targets (a chain of 3 steps) give the PLM an action loss of 0.25" in text
    assert "0.3 away, 3 times as far as that of a real one (0.1), that of those which are evaluated 0.4." in text


def test_small_differences_and_ratios_to_nothing_are_told_as_they_are() -> None:
    found = metrics(prompt_dt=80.0, prompt_diffuser=80.0012, full_finetune=100.0)
    assert "gains 0.0012 of return" in what_mattered(found, {}, [])[0]
    same = {"wasserstein_real": 1e-9, "wasserstein_generated": 0.5}
    text = what_mattered({}, {}, [{"pretrained": same}])[0]
    assert "lie 0.5 from held-out real prompts (Wasserstein), much farther than other real ones do (1e-09)." in text
