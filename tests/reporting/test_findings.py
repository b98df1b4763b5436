"""What mattered, in words that follow the figures."""

import numpy as np

from pd_pipeline.reporting.findings import what_mattered
from tests.reporting.test_verdict import metrics


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


def test_the_fit_is_described_with_its_chain_and_of_the_prompts_that_are_evaluated() -> None:
    ends = {"wasserstein_real": 1.0, "wasserstein_generated": 2.0, "nearest_real": 0.1, "nearest_generated": 0.3}
    losses = {"action_loss_real": 0.5, "action_loss_generated": 0.25}
    guided = ends | losses | {"chain": 3, "nearest_kept": 0.4}
    fit = {"pretrained": ends | {"chain": 20}, "targets": {"1": {"guided": guided}}}
    text = "\n".join(what_mattered({}, {}, [fit]))
    distance = "lie 2 from held-out real prompts (Wasserstein), 2 times as far as other real ones do (1)."
    assert f"The pre-trained diffuser's prompts (a chain of 20 steps) {distance}" in text
    assert "its prompts for the targets (a chain of 3 steps) give the PLM an action loss of 0.25" in text
    assert "0.3 away, 3 times as far as that of a real one (0.1), that of those which are evaluated 0.4." in text


def test_small_differences_and_ratios_to_nothing_are_shown_as_they_are() -> None:
    found = metrics(prompt_dt=80.0, prompt_diffuser=80.0012, full_finetune=100.0)
    assert "gains 0.0012 of return" in what_mattered(found, {}, [])[0]
    same = {"wasserstein_real": 1e-9, "wasserstein_generated": 0.5}
    text = what_mattered({}, {}, [{"pretrained": same}])[0]
    assert "lie 0.5 from held-out real prompts (Wasserstein), much farther than other real ones do (1e-09)." in text
