"""Prompts of a tuned diffuser, decided among by the returns of episodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.parsing import parse
from pd_pipeline.progress import silent
from pd_pipeline.tuning import prompt_diffuser, prompt_diffuser_online
from pd_pipeline.tuning.generated import Generated
from pd_pipeline.tuning.prompt_diffuser_online import Params
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from tests.tuning.scripted import Scripted
from tests.tuning.tiny import EXACT, same_weights

QUICK: dict[str, Any] = {
    "adapt": {"steps": 3, "batch": 6, **EXACT},
    "steps": 3,
    "batch": 6,
    "prompts": 3,
    "arms": 7,
    **EXACT,
}


def run_of(tmp_path: Path, simulation: Scripted | None = None) -> Run:
    return Run(
        tmp_path / "work", tmp_path / "logs", "mine", silent, 3, None if simulation is None else lambda _: simulation
    )  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("strategy", ["round_robin", "thompson"])
def test_episodes_decide_among_the_prompts_of_the_same_diffuser(
    strategy: str, plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    simulation = Scripted(30)
    params = Params.model_validate(QUICK | {"bandit": {"strategy": strategy, "episodes": 30}})
    found = prompt_diffuser_online.tune(plm, few_shot, params, run_of(tmp_path / "online", simulation))
    offline_params = prompt_diffuser.Params.model_validate(
        {name: value for name, value in QUICK.items() if name != "arms"} | {"prompts": 7, "candidates": None}
    )
    offline = prompt_diffuser.tune(plm, few_shot, offline_params, run_of(tmp_path / "offline"))
    for name, denoiser in offline.denoisers.items():
        same_weights(found.denoisers[name], denoiser)
    assert simulation.episodes == 30
    arms, _ = prompt_tensors(offline.prompts, plm.normalization)
    kept, _ = prompt_tensors(found.prompts, plm.normalization)
    np.testing.assert_array_equal(kept, arms[arms[:, 0, 0].argmax()].expand(3, -1, -1))
    assert {row["phase"] for row in found.history.rows} == {1, 2, 3}
    assert found.cost.plm_forward == offline.cost.plm_forward, "acting is counted by the simulation"
    assert (found.cost.tuned_parameters > offline.cost.tuned_parameters) == (strategy == "thompson")


def test_the_best_by_loss_are_tried_where_there_are_more_candidates(
    plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    params = Params.model_validate(QUICK | {"candidates": 20, "bandit": {"episodes": 8, "strategy": "round_robin"}})
    found = prompt_diffuser_online.tune(plm, few_shot, params, run_of(tmp_path, Scripted(8)))
    assert isinstance(found, Generated)
    guided = 3 * 6
    assert found.cost.plm_forward == guided + 20 * 32, "twenty candidates were scored"
    with pytest.raises(PipelineError, match=r"candidates \(5\) must be at least arms \(7\)"):
        parse(Params, QUICK | {"candidates": 5}, "x")


def test_the_budget_is_the_same_whatever_else_is_set() -> None:
    assert Params().bandit.episodes == parse(Params, {"bandit": {"strategy": "ucb"}}, "x").bandit.episodes == 50
