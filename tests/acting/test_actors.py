"""Actors: caching is exact, environments stay independent, and only compatible actors are joined."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from pd_pipeline.acting.actors import Actors, Origin, Started, joined, prompted
from pd_pipeline.acting.rollouts import grouped
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer, Steps
from pd_pipeline.models.prefixes import KeysValues, read_prompt
from pd_pipeline.prompts.segments import Normalization, cut
from tests.builders import policy, steps, trajectories


def started(model: PromptingDecisionTransformer, prompt: Steps) -> Started:
    return Started(model, read_prompt(model, *prompt))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("length", [1, 3, 4])
def test_acting_with_a_cached_prompt_is_exact(heads: int, length: int) -> None:
    model, prompt, window = policy(heads=heads, layers=3), steps(6, 2, seed=4), steps(6, length, seed=5, first=2)
    acting = started(model, prompt)
    for _ in range(2):  # the cache can be used again
        torch.testing.assert_close(acting.act(window), model(prompt, window)[:, -1], atol=1e-6, rtol=1e-5)


def test_acting_keeps_the_environments_apart() -> None:
    model, prompt, window = policy(), steps(4, 2, seed=4), steps(4, 3, seed=5)
    together = started(model, prompt).act(window)
    for i in range(4):
        alone = started(model, Steps(*(p[i : i + 1] for p in prompt))).act(Steps(*(p[i : i + 1] for p in window)))
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("width", [16, 128, 512])
def test_the_last_bits_do_not_depend_on_who_acts_beside(width: int, length: int) -> None:
    model, everyone = policy(width=width), 300
    actors = Actors(model, read_prompt, tuple(steps(everyone, 2, seed=4)), (Origin("generated", 0),) * everyone)
    window = steps(everyone, length, seed=5)
    together = actors.started().act(window)
    for rows in (1, 2, 3, 5, 8, 15, 64, 255):
        found = actors.select(np.arange(rows)).started().act(Steps(*(part[:rows] for part in window)))
        assert torch.equal(found, together[:rows]), rows


def test_acting_leaves_dropout_off() -> None:
    model = policy().train()
    prompt, window = steps(2, 2), steps(2, 3, seed=1)
    torch.testing.assert_close(started(model, prompt).act(window), policy()(prompt, window)[:, -1])


def some(model: PromptingDecisionTransformer, length: int, rows: range) -> Actors:
    data = trajectories((10, 9, 10), (4,) * 3)
    return prompted(model, cut(data, length).select(np.array(rows)), Normalization.of([data]))


def test_the_origin_of_a_prompt_is_its_episode() -> None:
    data = trajectories((10, 9, 10), (4,) * 3)
    made = cut(data, 3).select(np.array([2, 9]))
    made.episode_id[1] = -1
    actors = prompted(policy(), made, Normalization.of([data]))
    assert actors.origins == (Origin(f"episode {made.episode_id[0]}", 2), Origin("generated", int(made.start[1])))


def test_rows_are_selected_and_joined_again() -> None:
    actors = some(policy(), 3, range(5))
    again = joined([actors.select([4, 0]), actors.select(np.array([2]))])
    assert len(again) == 3
    assert again.origins == tuple(actors.origins[row] for row in (4, 0, 2))
    for condition, whole in zip(again.conditions, actors.conditions, strict=True):
        assert torch.equal(condition, whole[[4, 0, 2]])


def another_prefix(policy: PromptingDecisionTransformer, *prompt: Tensor) -> KeysValues:
    return read_prompt(policy, *prompt)


def test_only_actors_of_one_policy_prefix_and_length_share_a_group() -> None:
    model = policy()
    twin = copy.deepcopy(model)
    other = some(model, 3, range(2))
    other = Actors(model, another_prefix, other.conditions, other.origins)
    parts = [
        some(model, 3, range(2)),
        some(twin, 3, range(1)),
        some(model, 2, range(2)),
        other,
        some(model, 3, range(2, 5)),
        some(twin, 3, range(3)),
    ]
    groups = grouped(parts)
    assert [group.rows.tolist() for group in groups] == [[0, 1, 7, 8, 9], [2, 10, 11, 12], [3, 4], [5, 6]]
    assert [group.actors.policy is twin for group in groups] == [False, True, False, False]
    assert groups[0].actors.origins == parts[0].origins + parts[4].origins


def test_rows_that_fill_up_a_product_change_no_action() -> None:
    model, prompt, window = policy(layers=3, heads=2), steps(3, 2, seed=4), steps(3, 4, seed=5)
    acting, bare = started(model, prompt), Started(model, read_prompt(model, *prompt), fill=False)
    seen: list[int] = []
    handle = model.blocks[-1].up.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    torch.testing.assert_close(acting.act(window), bare.act(window), atol=1e-6, rtol=1e-5)
    handle.remove()
    assert seen == [18, 3]
