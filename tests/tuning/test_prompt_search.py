"""The search for a prompt by return: what it tries, what it keeps, and that it knows nothing of the target."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.compute import generator_of
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.diffuser import encode, sample
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.parsing import parse
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Prompts, cut
from pd_pipeline.tuning import prompt_search
from pd_pipeline.tuning.prompt_search import Params, Tried, at_phase, centre, draw, propose, spread_over_tasks
from pd_pipeline.tuning.protocol import Pretrained, Run, TargetParams
from pd_pipeline.tuning.unseen import Unseen
from tests.builders import trajectories
from tests.tuning.scripted import Scripted
from tests.tuning.tiny import CHANNELS, PROMPT, TASK


@pytest.fixture
def unseen() -> Unseen:
    training = cut(trajectories((10, 8, 10, 9, 10, 10), (0, 0, 1, 1, 2, 2), seed=3), PROMPT)
    return Unseen(TASK, training, 5.0)


def searched(plm: Pretrained, target: Unseen, tmp_path: Path, seed: int = 0, **changes: Any) -> tuple[Any, Scripted]:
    made: list[Scripted] = []

    def simulate(budget: int) -> Any:
        made.append(Scripted(budget))
        return made[-1]

    params = Params.model_validate({"episodes": 40, "first": 4, "prompts": 3, "chain": 4, "confirm": 0} | changes)
    run = Run(tmp_path / "work", tmp_path / "logs", "tuned_prompt_search", silent, seed, simulate)
    return prompt_search.tune(plm, target, params, run), made[0]


@pytest.mark.parametrize("space", ["noise", "prompt", "segments"])
def test_it_keeps_the_best_prompt_of_its_episodes(space: str, plm: Pretrained, unseen: Unseen, tmp_path: Path) -> None:
    result, simulation = searched(plm, unseen, tmp_path, space=space)
    assert simulation.sizes == [4, 10, 10, 10, 6]
    assert {*simulation.asked} == {5.0}
    rows = result.history.rows
    assert [row["step"] for row in rows] == [4, 14, 24, 34, 40]
    assert np.diff([row["best"] for row in rows]).min() >= 0
    best = plm.normalization.normalize(result.prompts.x0)[:, 0, 0]  # what Scripted pays
    np.testing.assert_allclose(best, rows[-1]["best"], rtol=1e-4, atol=1e-5)
    assert result.prompts.task_id.tolist() == [TASK] * 3
    sizes = {"noise": PROMPT * CHANNELS, "prompt": PROMPT * (CHANNELS - 1), "segments": 0}  # no policy reads rewards
    assert result.cost.tuned_parameters == sizes[space]
    assert result.cost.plm_forward == 0, "acting is counted by the simulation"
    again, _ = searched(plm, unseen, tmp_path, space=space)
    np.testing.assert_array_equal(again.prompts.x0, result.prompts.x0)


@pytest.mark.parametrize("space", ["noise", "segments"])
def test_the_last_episodes_try_the_best_prompt_again(
    space: str, plm: Pretrained, unseen: Unseen, tmp_path: Path
) -> None:
    """Where starts do not matter three more returns are enough, unless one that is still found is better."""
    result, simulation = searched(plm, unseen, tmp_path, space=space, confirm=0.25, sure=4)
    assert simulation.sizes == [4, 10, 10, 6, *[1] * 10], "the last quarter one after the other"
    rows = result.history.rows
    before, last = rows[3]["best"], [row["return"] for row in rows[4:]]
    assert last[:3] == pytest.approx([before] * 3)
    best = plm.normalization.normalize(result.prompts.x0)[:, 0, 0]
    np.testing.assert_allclose(best, rows[-1]["best"], rtol=1e-4, atol=1e-5)
    if space == "noise":
        assert len({round(found, 6) for found in last}) > 1, "then it went on searching"
    _, none = searched(plm, unseen, tmp_path / "few", space=space, episodes=1, confirm=0.9)
    assert none.sizes == [1]


def test_in_turn_where_a_bandit_searches(plm: Pretrained, unseen: Unseen, tmp_path: Path) -> None:
    _, simulation = searched(plm, unseen, tmp_path, space="bandit", confirm=0.25)
    assert simulation.sizes == [4, 10, 10, 6, 10], "the last quarter at once"


def test_a_lucky_return_does_not_decide() -> None:
    prompts = torch.zeros(3, PROMPT, CHANNELS)
    none = Tried(prompts[:0], prompts[:0, :, :2], prompts[:0], *torch.empty(3, 0))
    tried = none.and_then(prompts, prompts[..., :2], prompts, torch.tensor([5.0, 9.0, 8.0]))
    assert tried.best() == tried.best(sure=4) == 1
    tried = tried.again(1, torch.tensor([-3.0])).again(2, torch.tensor([6.0]))
    assert tried.returns.tolist() == [5.0, 3.0, 7.0]
    assert tried.episodes.tolist() == [1.0, 2.0, 2.0]
    assert tried.best() == 2
    tried = tried.again(2, torch.tensor([-20.0]))
    assert tried.best() == 0, "the best so far has acted once"
    assert tried.best(sure=2) == 1, "of those that acted twice"
    assert tried.best(sure=4) == 2, "of those that acted most"


def test_a_bandit_chooses_among_training_segments(plm: Pretrained, unseen: Unseen, tmp_path: Path) -> None:
    result, simulation = searched(plm, unseen, tmp_path, space="bandit")
    assert simulation.sizes == [4, 10, 10, 10, 6]
    segments = unseen.training.select(at_phase(unseen.training, 1.0))
    x0, _ = prompt_tensors(segments, plm.normalization)
    found, _ = prompt_tensors(result.prompts, plm.normalization)
    assert float(found[0, 0, 0]) >= float(x0[:, 0, 0].sort(descending=True).values[1]), "among the two best of six"
    assert (result.prompts.episode_id >= 0).all(), "real segments"
    rows = result.history.rows
    assert np.diff([row["best"] for row in rows]).min() >= 0
    assert rows[-1]["best"] == pytest.approx(float(x0[:, 0, 0].max()))


def test_searching_finds_more_than_trying_segments(plm: Pretrained, unseen: Unseen, tmp_path: Path) -> None:
    """Where every number of the prompt can be reached."""
    best = {
        space: searched(plm, unseen, tmp_path, space=space, episodes=100)[0].history.rows[-1]["best"]
        for space in ("segments", "prompt")
    }
    assert best["prompt"] > best["segments"] + 0.5


def test_the_noise_is_that_of_the_diffuser(plm: Pretrained, unseen: Unseen) -> None:
    """Segments get noise that leads back to them, and new noise becomes prompts by the chain."""
    assert plm.diffuser is not None
    params, segments = Params(first=4, chain=4, elites=2), unseen.training.select(at_phase(unseen.training, 1.0))
    pool = prompt_tensors(segments, plm.normalization)
    nothing = Tried(pool[0][:0], pool[1][:0], pool[0][:0], *torch.empty(3, 0))
    x0, y, z = propose(plm, pool, nothing, 4, params, seed=0)
    assert torch.equal(x0, pool[0][:4])
    assert torch.equal(z, encode(*plm.diffuser, x0, y, 4))
    tried = Tried(x0, y, z, *2 * [torch.tensor([0.0, 3.0, 1.0, 2.0])], torch.ones(4))
    x0, y, z = propose(plm, pool, tried, 5, params, seed=0)
    assert torch.equal(y, tried.y[1].expand(5, -1, -1)), "the condition of the best segment"
    torch.testing.assert_close(z, draw(tried, 5, params, generator_of(0, 4)))
    torch.testing.assert_close(x0, sample(*plm.diffuser, z, y, 4))
    assert (x0 - z).abs().max() > 0.1


@pytest.mark.parametrize("space", ["noise", "prompt"])
def test_it_begins_with_segments_of_different_tasks(
    space: str, plm: Pretrained, unseen: Unseen, tmp_path: Path
) -> None:
    result, simulation = searched(plm, unseen, tmp_path, space=space, episodes=3, first=10)
    assert simulation.sizes == [3]
    real = unseen.training.select(at_phase(unseen.training, 1.0))
    order = spread_over_tasks(real.task_id, np.random.default_rng([0, 1]))[:3]
    assert {*real.task_id[order]} == {0, 1, 2}
    x0, _ = prompt_tensors(real.select(order), plm.normalization)
    assert result.history.rows[0]["best"] == pytest.approx(float(x0[:, 0, 0].max()))


def test_without_a_first_round_it_draws_from_the_prior(plm: Pretrained, unseen: Unseen, tmp_path: Path) -> None:
    result, simulation = searched(plm, unseen, tmp_path, first=0, episodes=20)
    assert simulation.sizes == [10, 10]
    segment = unseen.training.select(at_phase(unseen.training, 1.0))
    order = spread_over_tasks(segment.task_id, np.random.default_rng([0, 1]))
    np.testing.assert_allclose(result.prompts.y[0], segment.y[order[0]], rtol=1e-5)


def test_new_ones_have_the_mean_and_the_covariance_of_the_elites() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((8, 1, 3), generator=generator)
    tried = Tried(z, z, z, *2 * [torch.tensor([0.0, 9, 1, 8, 2, 7, 3, 6])], torch.ones(8))
    params = Params(elites=4, sigma=0.5)
    drawn = draw(tried, 200_000, params, generator)[:, 0]
    elites = z[[1, 3, 5, 7], 0]
    torch.testing.assert_close(drawn.mean(0), elites.mean(0), atol=0.01, rtol=0)
    centred = elites - elites.mean(0)
    expected = centred.T @ centred / 4 + 0.25 * torch.eye(3)
    torch.testing.assert_close(torch.cov(drawn.T), expected, atol=0.02, rtol=0.02)
    nothing = draw(Tried(*(part[:0] for part in tried)), 50_000, params, generator)[:, 0]
    torch.testing.assert_close(torch.cov(nothing.T), torch.eye(3), atol=0.03, rtol=0)


def test_ranking_moves_its_centre_along_g_of_every_round() -> None:
    generator = torch.Generator().manual_seed(0)
    z, returns = torch.randn((9, 2, 3), generator=generator), torch.tensor([1.0, 5, 2, 3, 9, 4, 8, 7, 6])
    tried = Tried(z, z, z, returns, returns, torch.ones_like(returns))
    params = Params(update="ranking", first=3, population=4, step_size=0.5, sigma=0.2)
    at = z[1]  # the best of the first three
    at = at + 0.5 * 2 / 12 * (-3 * (z[3] - at) + 3 * (z[4] - at) - 1 * (z[5] - at) + 1 * (z[6] - at))
    at = at + 0.5 * 2 / 2 * (z[7] - z[8])
    torch.testing.assert_close(centre(tried, params), at)
    searching = params.model_copy(update={"episodes": 10, "confirm": 0.3})  # so that the last two are no round
    shorter = Tried(*(part[:7] for part in tried))
    torch.testing.assert_close(centre(tried, searching), centre(shorter, params))
    again = tried.again(1, torch.tensor([-90.0])).again(4, torch.tensor([-90.0]))
    torch.testing.assert_close(centre(again, params), at)
    drawn = draw(tried, 100_000, params, generator)
    torch.testing.assert_close(drawn.mean(0), at, atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((2, 3), 0.2), atol=0.01, rtol=0)
    nothing = Tried(*(part[:0] for part in tried))
    assert not centre(nothing, params.model_copy(update={"first": 0})).any()


def test_ranking_climbs(plm: Pretrained, unseen: Unseen, tmp_path: Path) -> None:
    settings = {"space": "prompt", "update": "ranking", "first": 0, "episodes": 200}
    rows = searched(plm, unseen, tmp_path, **settings)[0].history.rows
    assert rows[-1]["return"] > rows[0]["return"] + 1


@pytest.mark.parametrize(("phase", "starts"), [(0.0, [0] * 6), (1.0, [7, 5, 7, 6, 7, 7]), (0.5, [4, 2, 4, 3, 4, 4])])
def test_one_segment_of_every_training_episode(phase: float, starts: list[int], unseen: Unseen) -> None:
    found = unseen.training.select(at_phase(unseen.training, phase))
    assert found.task_id.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.start.tolist() == starts


def test_every_task_comes_once_before_any_comes_again() -> None:
    tasks = np.array([5, 5, 5, 2, 2, 9])
    order = spread_over_tasks(tasks, np.random.default_rng(0))
    assert sorted(order) == list(range(6))
    assert {*tasks[order[:3]]} == {2, 5, 9}
    assert {*tasks[order[3:5]]} == {2, 5}


def test_it_asks_for_the_median_return_of_the_training_tasks(plm: Pretrained, tmp_path: Path) -> None:
    data = trajectories((10, 8, 12), (0, 1, 2), seed=3)
    cut(data, PROMPT).save(tmp_path / "expert.safetensors")
    cut(data, PROMPT).save(tmp_path / "expert-held_out.safetensors")
    found = Unseen.of(TASK, tmp_path, plm, TargetParams())
    assert found.target_return == pytest.approx(float(np.median(data.episode_returns)))
    assert Unseen.of(TASK, tmp_path, plm, TargetParams(target_return=3.5)).target_return == 3.5
    assert {field.name for field in fields(found)} == {"task", "training", "target_return"}
    with pytest.raises(PipelineError, match=r"medium.safetensors: no prompts of quality 'medium': .*expert"):
        Unseen.of(TASK, tmp_path, plm, TargetParams(quality="medium"))


def test_a_target_that_is_trained_on_is_no_training_task_of_its_own(plm: Pretrained, tmp_path: Path) -> None:
    data = trajectories((10, 8, 12), (0, 1, 1), seed=3)
    for name in ("expert", "expert-held_out"):
        cut(data, PROMPT).save(tmp_path / f"{name}.safetensors")
    found = Unseen.of(1, tmp_path, plm, TargetParams())
    assert {*found.training.task_id.tolist()} == {0}
    assert found.target_return == pytest.approx(float(data.episode_returns[0]))
    cut(data.select(np.array([0])), PROMPT).save(tmp_path / "expert.safetensors")
    with pytest.raises(PipelineError, match="task 0 is the only training task"):
        Unseen.of(0, tmp_path, plm, TargetParams())


@pytest.mark.parametrize("changes", [{"candidates": 64}, {"shown": "other"}])
def test_there_is_nothing_else_to_choose(changes: dict[str, object]) -> None:
    with pytest.raises(PipelineError, match="without trajectories of the target nothing can be chosen: leave out"):
        parse(Params, changes, "params.yaml: x")


def test_prompts_that_are_searched_are_no_segments(plm: Pretrained, unseen: Unseen, tmp_path: Path) -> None:
    found: Prompts = searched(plm, unseen, tmp_path)[0].prompts
    assert (found.episode_id == -1).all()
