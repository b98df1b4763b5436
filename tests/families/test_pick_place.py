"""pick_place: the split of the papers, a script that succeeds, a goal that is hidden and a puck that is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.families.base import load_family
from pd_pipeline.families.meta_world import GOAL, LIFTED, OBJECT
from pd_pipeline.families.pick_place import PickPlace
from pd_pipeline.trajectories.collection import Pool, Shard, collect_episodes

pytestmark = [
    pytest.mark.xdist_group("pick_place"),  # only one process builds the benchmark
    pytest.mark.filterwarnings("ignore:Constant"),
]


@pytest.fixture(scope="module")
def made() -> PickPlace:
    family = load_family("pick_place", {"horizon": 200}, Path.cwd())
    assert isinstance(family, PickPlace)
    return family


def disturbed(made: PickPlace, **changes: Any) -> dict[str, Any]:
    expert = made.default_behaviors()["expert"]
    return expert | {"reset": expert["reset"] | changes}


def test_the_split_is_that_of_the_papers(made: PickPlace) -> None:
    assert [task + 1 for task in made.test_tasks] == [11, 17, 25, 36, 41]
    assert len(made.train_tasks) == 45
    assert made.params.benchmark_seed == 1
    validation = load_family("pick_place", {"split": "validation"}, Path.cwd())
    assert {*validation.train_tasks, *validation.test_tasks} == set(made.train_tasks)
    assert load_family("pick_place", {}, Path.cwd()).horizon == 500


@pytest.mark.parametrize("target", [0, 3])
def test_the_script_carries_the_puck_to_the_goal(made: PickPlace, target: int) -> None:
    """Meta-World's own script moves the hand there, which leaves the puck 4 to 5 cm below."""
    task = made.test_tasks[target]
    arrays = collect_episodes(Pool(made), disturbed(made, push_chance=0.0), Shard("expert", task, 0, 2), 0)
    success = arrays["success"].reshape(2, 200)
    assert success.any(1).all()
    assert not arrays["observation"][:, GOAL].any()
    goal = np.array(made.goal(task)["position"])
    observations = arrays["observation"].reshape(2, 200, 39)
    puck, hand = observations[..., 4:7] - goal, observations[..., :3] - goal
    apart = np.linalg.norm(puck[:, 1:], axis=2)  # the observation after a step
    assert apart[success[:, :-1]].max() <= 0.07 + 1e-3
    assert np.linalg.norm(puck[0, 0]) > 0.07, "it does not start there"
    assert np.linalg.norm(puck[:, -50:].mean(1), axis=1).max() < 0.008
    assert hand[:, -50:, 2].mean() > 0.03, "above it"


def test_the_expert_is_pushed_while_it_holds_the_puck_and_brings_it_back(made: PickPlace) -> None:
    def episodes(chance: float) -> tuple[np.ndarray, np.ndarray]:
        arrays = collect_episodes(
            Pool(made), disturbed(made, push_chance=chance), Shard("expert", made.test_tasks[0], 0, 2), 0
        )
        return arrays["observation"].reshape(2, 200, 39), arrays["success"].reshape(2, 200)

    (calm, _), (pushed, success) = episodes(0.0), episodes(0.1)
    for one, other in zip(calm, pushed, strict=True):
        lifted = int(np.argmax(one[:, 6] > LIFTED))
        assert lifted > 10
        np.testing.assert_array_equal(one[:lifted], other[:lifted])
        assert np.linalg.norm(one[lifted + 1 :, :3] - other[lifted + 1 :, :3], axis=1).max() > 0.03
        assert np.linalg.norm(other[lifted:, :3] - other[lifted:, 4:7], axis=1).max() < 0.08, (
            "the puck stays in the hand"
        )
    assert success[:, -50:].mean() > 0.5


def test_the_puck_is_seen_and_the_goal_is_not(made: PickPlace) -> None:
    observations = [made.make(task).reset()[0] for task in made.test_tasks[:2]]
    for part in OBJECT:
        assert (observations[0][part] != observations[1][part]).any()
    others = np.ones(39, bool)
    for part in OBJECT:
        others[part] = False
    np.testing.assert_allclose(observations[0][others], observations[1][others], atol=1e-6)


def test_expert_data_must_reach_95_percent_success(made: PickPlace) -> None:
    assert made.expert_bars.success_rate == 0.95
    assert made.expert_bars.return_mean is None
