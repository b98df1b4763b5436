"""The bandit: it finds the best arm, keeps to its budget, and explores by its strategy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prefixes import last_hidden_state
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.parsing import parse
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import cut
from pd_pipeline.tuning import bandit, prompt_bandit
from pd_pipeline.tuning.bandit import RewardModels, assemble
from pd_pipeline.tuning.prompt_bandit import Params
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from tests.builders import trajectories
from tests.tuning.scripted import Scripted
from tests.tuning.tiny import PROMPT, TASK, same_prompts

QUICK = {"networks": 4, "fit_steps": 20}


def played(plm: Pretrained, target: Target, tmp_path: Path, seed: int = 0, **changes: Any) -> tuple[Any, Scripted]:
    made: list[Scripted] = []

    def simulate(budget: int) -> Any:
        made.append(Scripted(budget))
        return made[-1]

    params = Params.model_validate({"episodes": 60, "prompts": 4} | QUICK | changes)
    run = Run(tmp_path / "work", tmp_path / "logs", "tuned_prompt_bandit", silent, seed, simulate)
    return prompt_bandit.tune(plm, target, params, run), made[0]


@pytest.mark.parametrize("strategy", ["thompson", "ucb", "epsilon_greedy"])
@pytest.mark.parametrize("features", ["segment", "hidden"])
def test_the_best_arm_is_found_and_used_for_every_episode(
    strategy: str, features: str, plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    left, simulation = played(plm, few_shot, tmp_path, strategy=strategy, features=features)
    assert simulation.episodes == simulation.budget == 60
    assert simulation.sizes == [10] + [1] * 50
    assert set(simulation.asked) == {few_shot.target_return}
    x0, _ = prompt_tensors(few_shot.prompts, plm.normalization)
    values = x0[:, 0, 0].sort(descending=True).values
    found, _ = prompt_tensors(left.prompts, plm.normalization)
    assert len({value.tobytes() for value in left.prompts.x0}) == 1, "one arm"
    assert len(left.prompts) == 4
    assert float(found[0, 0, 0]) >= float(values[2]), "among the three best of 23"
    assert left.frozen
    assert [row["step"] for row in left.history.rows] == [10, *range(11, 61)]


def test_arms_are_of_the_quality_of_prompts(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    worse = trajectories((8, 8), (TASK, TASK), seed=9)
    target = Target.of(few_shot.data, plm, few_shot.target_return, worse)
    left, _ = played(plm, target, tmp_path, episodes=12)
    arms = {prompt.tobytes() for prompt in cut(worse, PROMPT).x0}
    assert {prompt.tobytes() for prompt in left.prompts.x0} <= arms


def test_in_turn_every_arm_is_tried_and_the_best_mean_is_kept(
    plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    left, simulation = played(plm, few_shot, tmp_path, strategy="round_robin", episodes=50, first=5, together=20)
    assert simulation.sizes == [5, 20, 20, 5]
    x0, _ = prompt_tensors(few_shot.prompts, plm.normalization)
    found, _ = prompt_tensors(left.prompts, plm.normalization)
    torch.testing.assert_close(found[0, 0, 0], x0[:, 0, 0].max())
    assert left.cost.tuned_parameters == 0
    assert all("loss" not in row for row in left.history.rows)
    few, _ = played(plm, few_shot, tmp_path / "few", strategy="round_robin", episodes=3)
    found, _ = prompt_tensors(few.prompts, plm.normalization)
    torch.testing.assert_close(found[0, 0, 0], x0[:3, 0, 0].max(), msg="of those that were tried")


def test_in_turn_every_slot_has_its_own_order() -> None:
    chosen = np.stack([bandit.in_turn(3, 7, episode, 0) for episode in range(21)])  # (episodes, slots)
    assert chosen[:, 0].tolist() == [*range(7)] * 3
    for turn in chosen.reshape(3, 7, 3):
        assert all(sorted(slot) == [*range(7)] for slot in turn.T), "every arm once per round"
    pairs = {(int(a), int(b)) for a, b in chosen[:, :2]}
    assert len(pairs) > 14, "the slots do not always show the same arms together"


def test_one_arm_is_no_choice(plm: Pretrained) -> None:
    models = RewardModels(torch.randn(1, 5), 1, Params.model_validate(QUICK), 0)
    assert np.isfinite(models.fit(np.zeros((3, 1), int), np.arange(3.0)))


def test_results_depend_on_the_seed(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    rows = [played(plm, few_shot, tmp_path, seed)[0].history.rows for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]


def test_episodes_run_in_parallel_and_never_beyond_the_budget(
    plm: Pretrained, few_shot: Target, tmp_path: Path
) -> None:
    _, simulation = played(plm, few_shot, tmp_path, episodes=23, first=7, together=5)
    assert simulation.sizes == [7, 5, 5, 5, 1]
    _, simulation = played(plm, few_shot, tmp_path, episodes=4, first=7)
    assert simulation.sizes == [4]


def test_epsilon_falls_to_zero_over_its_share() -> None:
    params = Params.model_validate({"strategy": "epsilon_greedy", "episodes": 100, "explore": 0.5, "first": 1} | QUICK)
    models = RewardModels(torch.randn(23, 5), 1, params, 0)
    best = int(models.predictions().mean(1).argmax())
    rng = np.random.default_rng(0)
    shares = [
        np.mean([bandit.choose(models, params, 23, episode, rng)[0] != best for _ in range(400)])
        for episode in (1, 25, 50, 99)
    ]
    np.testing.assert_allclose(shares, [0.98 * 22 / 23, 0.5 * 22 / 23, 0, 0], atol=0.08)


def test_ucb_prefers_uncertain_arms_and_thompson_those_of_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    params = Params.model_validate({"strategy": "ucb", "confidence": 2.0, "first": 1} | QUICK | {"networks": 3})
    models = RewardModels(torch.randn(4, 5), 1, params, 0)
    said = torch.tensor([[[5.0, 3.0, 0.0, 1.0], [5.0, 6.0, 0.0, 1.0], [5.0, 3.0, 0.0, 9.0]]])  # (slot, network, arm)
    monkeypatch.setattr(models, "predictions", lambda: said)
    rng = np.random.default_rng(0)

    def chosen(**changes: Any) -> set[int]:
        changed = params.model_copy(update=changes)
        return {int(bandit.choose(models, changed, 4, 5, rng)[0]) for _ in range(60)}

    assert chosen(confidence=0.0) == {0}, "the best mean: 5, 4, 0, 3.7"
    assert chosen(confidence=2.0) == {3}, "deviations 0, 1.7, 0, 4.6"
    assert chosen(strategy="thompson") == {0, 1, 3}, "the best of each network"


def test_priors_keep_networks_apart_where_there_is_no_data() -> None:
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))

    def spread(prior: float) -> tuple[float, float]:
        models = RewardModels(features, 1, Params.model_validate(QUICK | {"networks": 16, "prior": prior}), 0)
        for episode in range(60):
            models.fit(np.array([[episode % 2]]), np.array([float(episode % 2)]))
        deviations = models.predictions()[0].std(0)  # (arms,)
        return float(deviations[:2].max()), float(deviations[2:].mean())

    (tried, untried), (tried_with, untried_with) = spread(0.0), spread(3.0)
    assert untried_with > 2 * untried, "of arms without data priors differ"
    assert max(tried, tried_with) < untried_with / 5, "of arms with data they agree, prior or not"


def test_without_a_prior_predictions_start_as_the_networks_are(plm: Pretrained) -> None:
    features = torch.randn(6, 5)
    without, with_prior = (
        RewardModels(features, 2, Params.model_validate(QUICK | {"prior": prior}), 3).predictions() for prior in (0, 2)
    )
    assert without.shape == with_prior.shape == (2, 4, 6)  # (slots, networks, arms)
    assert not torch.equal(without, with_prior)
    assert (with_prior - without).std() > without.std(), "twice as wide as the networks themselves"


def test_the_last_episodes_confirm_the_most_promising_choices(
    plm: Pretrained, few_shot: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    misled = torch.zeros(1, 4, 23)  # (slot, network, arm): the models promise most of arm 22, whatever it returns
    misled[..., 22] = 1
    monkeypatch.setattr(RewardModels, "predictions", lambda _: misled)
    first, _ = prompt_tensors(few_shot.prompts, plm.normalization)
    values = first[:, 0, 0]
    plain, simulation = played(plm, few_shot, tmp_path / "plain")
    found, _ = prompt_tensors(plain.prompts, plm.normalization)
    assert found[0, 0, 0] == values[22] < values.max()
    confirmed, simulation = played(plm, few_shot, tmp_path / "confirmed", confirm=0.5, finalists=1000)
    assert simulation.sizes == [10] + [1] * 20 + [30], "the last half at once"
    found, _ = prompt_tensors(confirmed.prompts, plm.normalization)
    rng = np.random.default_rng([0, 1])
    tried = {int(rng.integers(0, 23, 1)[0]) for _ in range(10)} | {22}
    assert float(found[0, 0, 0]) == float(values[sorted(tried)].max()), "what returned most, of those tried"
    assert "loss" not in confirmed.history.rows[-1]
    assert simulation.episodes == 60


def test_every_finalist_acts_again(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    """One that did not would keep its single return, and the luckiest of those beats the means of the others."""
    asked: list[int] = []
    promising = bandit.promising

    def counted(promised: np.ndarray, tried: np.ndarray, count: int) -> np.ndarray:
        asked.append(count)
        return promising(promised, tried, count)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bandit, "promising", counted)
        played(plm, few_shot, tmp_path / "few", confirm=0.05, finalists=5)
        played(plm, few_shot, tmp_path / "many", confirm=0.5, finalists=5)
    assert asked == [3, 5]


def test_promising_choices_are_the_best_arms_and_those_tried_in_order() -> None:
    promised = np.array([[0.0, 3.0, 1.0], [2.0, 0.0, -np.inf]])  # (slots, arms)
    tried = np.array([[0, 0], [2, 1], [0, 0], [2, 0], [1, 1]])
    assert bandit.promising(promised, tried, 10).tolist() == [[1, 0], [1, 1], [2, 0], [0, 0], [2, 1]]
    assert bandit.promising(promised, tried, 3).tolist() == [[1, 0], [1, 1], [2, 0]]
    assert bandit.promising(promised, np.array([[1, 0]]), 3).tolist() == [[1, 0]], "the best arms were tried"


def test_without_models_an_arm_promises_its_mean_return() -> None:
    promised = bandit.scores(None, np.array([[0, 1], [0, 2], [1, 1]]), np.array([1.0, 3.0, 7.0]), 3)
    assert promised.tolist() == [[2.0, 7.0, -np.inf], [-np.inf, 4.0, 3.0]]


def test_a_prompt_of_slots_is_its_segments_concatenated(few_shot: Target) -> None:
    arms = cut(few_shot.data, 2)
    made = assemble(arms, np.array([[4, 0, 7], [1, 1, 3]]))
    np.testing.assert_array_equal(made.x0[0], np.concatenate([arms.x0[4], arms.x0[0], arms.x0[7]]))
    np.testing.assert_array_equal(made.y[1], np.concatenate([arms.y[1], arms.y[1], arms.y[3]]))
    assert (made.task_id == TASK).all()
    same_prompts(assemble(arms, np.array([[5], [2]])), arms.select(np.array([5, 2])))


def test_every_slot_gets_its_best_arm(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    left, simulation = played(plm, few_shot, tmp_path, slots=PROMPT)
    assert left.prompts.x0.shape == (4, PROMPT, few_shot.prompts.x0.shape[2])
    assert simulation.episodes == 60
    first, _ = prompt_tensors(left.prompts, plm.normalization)
    arms, _ = prompt_tensors(cut(few_shot.data, 1), plm.normalization)
    assert float(first[0, 0, 0]) >= float(arms[:, 0, 0].sort(descending=True).values[4]), "the slot that decides"


def test_slots_that_do_not_divide_the_prompt_are_refused(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="a prompt of 3 steps cannot be split into 2 equal parts"):
        played(plm, few_shot, tmp_path, slots=2)


def test_hidden_states_are_those_of_the_last_action_token(plm: Pretrained, few_shot: Target) -> None:
    steps = prompt_steps(*prompt_tensors(few_shot.prompts, plm.normalization), plm.normalization)
    policy = plm.policy
    with torch.no_grad():
        x = policy.norm_embedding(policy.embed_prompt(steps))
        mask = torch.full((3 * PROMPT, 3 * PROMPT), -torch.inf).triu(1)
        for block in policy.blocks:
            x = block(x, mask, policy.dropout)
    torch.testing.assert_close(last_hidden_state(policy, steps), policy.norm_final(x)[:, -1])


def test_an_offline_run_has_no_simulation(plm: Pretrained, few_shot: Target, tmp_path: Path) -> None:
    run = Run(tmp_path, tmp_path, "tuned_mine x-1-0", silent, 0)
    with pytest.raises(PipelineError, match=r"tuned_mine x-1-0: .*offline method .* set `ONLINE = True`"):
        prompt_bandit.tune(plm, few_shot, Params(), run)


def test_candidates_are_refused() -> None:
    with pytest.raises(PipelineError, match="leave out candidates"):
        parse(Params, {"candidates": 64}, "tuned_prompt_bandit")
