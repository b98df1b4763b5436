from typing import Any

import numpy as np
import pytest

from pd_pipeline.reporting.verdict import decimals, judge, number, percent, share_of, what_mattered


def method(mean: float, success: float = 1.0, low: float = -1.0, high: float = 1.0) -> dict[str, Any]:
    difference = {"value": (low + high) / 2, "low": low, "high": high}
    return {"return_mean": mean, "success_rate": success, "difference_to_prompt_diffuser": difference}


FROZEN = {"prompt_diffuser": True, "prompt_dt": True, "noise_prompt": True, "full_finetune": False}


def metrics(ours: float, success: float = 1.0, prompt_dt: float = 80.0) -> dict[str, Any]:
    means = {"prompt_dt": prompt_dt, "prompt_diffuser": ours, "full_finetune": 100.0, "noise_prompt": 10.0}
    successes = {"prompt_diffuser": success, "noise_prompt": 0.0}
    return {
        name: method(mean, successes.get(name, 1.0), mean - ours - 0.3, mean - ours + 0.3)
        for name, mean in means.items()
    }


def test_all_bars_met() -> None:
    verdict = judge(metrics(98.5, 0.95), FROZEN)
    assert verdict.met
    assert verdict.sentence.startswith("prompt_diffuser meets all 3 bars (98.5 % of full_finetune's return;")
    assert "miss" not in verdict.sentence


@pytest.mark.parametrize(
    ("values", "missed"),
    [(metrics(98.4), 0), (metrics(99.0, success=0.94), 1), (metrics(99.0, prompt_dt=99.5), 2)],
)
def test_each_miss_is_said_plainly(values: dict[str, Any], missed: int) -> None:
    verdict = judge(values, FROZEN)
    assert not verdict.met
    assert [check.met for check in verdict.checks] == [index != missed for index in range(3)]
    assert verdict.sentence.startswith(f"prompt_diffuser misses 1 of 3 bars ({verdict.checks[missed].found})")
    assert "meets 2" in verdict.sentence


def test_a_method_that_tunes_the_plm_is_no_rival() -> None:
    assert judge(metrics(99.0), FROZEN).checks[2].met
    assert not judge(metrics(99.0), FROZEN | {"full_finetune": True}).checks[2].met


@pytest.mark.parametrize(
    ("prompt_dt", "met", "said"),
    [
        (98.9, True, "return 99.00 against 98.90 of the best other, prompt_dt"),
        (99.2, True, "return 99.00 against 99.20 of the best other, prompt_dt, a difference within its 95 % interval"),
        (99.4, False, "return 99.00 against 99.40 of the best other, prompt_dt; better beyond chance: prompt_dt by "
                      "0.40 (0.10 to 0.70)"),
    ],
)  # fmt: skip
def test_a_better_method_counts_beyond_its_interval(prompt_dt: float, met: bool, said: str) -> None:
    check = judge(metrics(99.0, prompt_dt=prompt_dt), FROZEN).checks[2]
    assert check.met is met
    assert check.found == said


def test_the_best_other_need_not_be_the_one_beyond_chance() -> None:
    values = metrics(99.0, prompt_dt=99.4) | {"prompt_gradient": method(101.0, low=-0.5, high=4.5)}
    check = judge(values, FROZEN | {"prompt_gradient": True}).checks[2]
    assert not check.met
    assert "of the best other, prompt_gradient; better beyond chance: prompt_dt by" in check.found


@pytest.mark.parametrize(("normalized", "met"), [(0.98, True), (0.97, False), (None, None)])
def test_where_nothing_succeeds_the_normalised_scale_judges(normalized: float | None, met: bool | None) -> None:
    values = {name: value | {"success_rate": None} for name, value in metrics(-20.0).items()}
    values["prompt_diffuser"]["normalized"] = normalized
    checks = judge(values, FROZEN).checks
    assert len(checks) == 2
    assert checks[0].met is met
    assert "of the way from noise_prompt to full_finetune" in checks[0].bar


def test_what_was_not_run_is_not_judged() -> None:
    verdict = judge({"prompt_diffuser": method(5.0)}, {"prompt_diffuser": True})
    assert [check.met for check in verdict.checks] == [None, True, None]
    assert not verdict.met
    assert "is not held against 2" in verdict.sentence
    assert judge({"prompt_dt": method(5.0)}, FROZEN).sentence == "prompt_diffuser was not run: nothing to judge."


@pytest.mark.parametrize(("ours", "met"), [(-10.1, True), (-10.2, False), (-9.0, True)])
def test_negative_returns(ours: float, met: bool) -> None:
    values = {"prompt_diffuser": method(ours), "full_finetune": method(-10.0)}
    check = judge(values, FROZEN).checks[0]
    assert check.met is met
    assert check.found.endswith("above full_finetune's" if ours > -10 else "below full_finetune's")


def test_share_of_a_zero_ceiling_is_unknown() -> None:
    assert share_of(1.0, 0.0) is None
    assert share_of(1.0, 2.0) == 0.5


def test_numbers_as_people_read_them() -> None:
    assert number(-1234.56, 1) == "\N{MINUS SIGN}1,234.6"
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
    text = "\n".join(what_mattered(metrics(95.0), {(0, 0): log}, []))
    assert "gains 15.00 of return" in text
    assert "75 % of the way" in text
    assert "L_DT, the frozen PLM's action loss under generated prompts, fell from" in text
    assert "while L_DM rose from" in text
    assert "mean cosine of \N{MINUS SIGN}0.200" in text
    assert "below 0) in 50 % of the steps; 50 % of the steps were projected" in text
    assert "norm of g_DT" not in text  # the log has no such column
    assert what_mattered({}, {}, []) == []
