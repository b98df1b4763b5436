"""Training the behaviour policy: it learns, resumes to the same bytes, and does not depend on the workers."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.behavior import ppo
from pd_pipeline.behavior.lanes import Lanes
from pd_pipeline.behavior.learning import LearningParams
from pd_pipeline.behavior.ppo import STATE, learn
from pd_pipeline.behavior.worker_lanes import WorkerLanes
from pd_pipeline.errors import PipelineError
from pd_pipeline.families import goal_policy
from pd_pipeline.families.base import load_family
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.interruption import Interrupted
from pd_pipeline.progress import silent
from pd_pipeline.storage import load_arrays, save_arrays

BLOCK: dict[str, Any] = {"horizon": 10}
SMALL = {"lanes": 4, "steps": 160, "batch": 20, "epochs": 2, "width": 8, "workers": 1, "checkpoint_seconds": 0}
POLICIES = ("random", "medium", "expert")


def family(name: str = "cheetah_vel", **block: Any) -> Locomotion:
    made = load_family(name, BLOCK | block, Path.cwd())
    assert isinstance(made, Locomotion)
    return made


def trained(work: Path, progress: Any = silent, **changes: Any) -> list[dict[str, float]]:
    work.mkdir(exist_ok=True)
    return learn(family(), BLOCK, Path.cwd(), LearningParams.model_validate(SMALL | changes), work, progress)


def test_lanes_are_a_pure_function_of_seed_round_and_lane() -> None:
    made = family()
    both, second = Lanes(made, range(2), seed=3), Lanes(made, [1], seed=3)
    np.testing.assert_array_equal(both.reset(5)[1], second.reset(5)[0])
    actions = np.random.default_rng(0).uniform(-1, 1, (25, 2, 6)).astype(np.float32)
    for step in actions:  # across the ends of two episodes
        one, other = both.step(step), second.step(step[1:])
        np.testing.assert_array_equal(one[0][1], other[0][0])
        assert one[1][1] == other[1][0]
    assert not np.array_equal(both.reset(6), both.reset(5))


def test_an_ended_episode_restarts_with_another_goal() -> None:
    made = family()
    lanes = Lanes(made, [0], seed=0)
    first = lanes.reset(0)
    for _ in range(9):
        observations, _, done, _ = lanes.step(np.zeros((1, 6), np.float32))
        assert not done.any()
        assert observations[0, -1] == first[0, -1], "the goal stays within an episode"
    observations, rewards, done, (info,) = lanes.step(np.zeros((1, 6), np.float32))
    assert done.all()
    assert info["TimeLimit.truncated"]
    assert info["episode"]["l"] == 10
    assert info["terminal_observation"][-1] == first[0, -1]
    assert observations[0, -1] != first[0, -1]
    assert rewards[0] < 0


def test_an_early_end_is_not_a_time_limit() -> None:
    made = family("ant_dir")
    lanes = Lanes(made, [0], seed=0)
    lanes.reset(0)
    body = lanes.environments[0]
    position = body.data.qpos.copy()
    position[2] = 1.5  # above the healthy heights
    body.set_state(position, np.zeros_like(body.data.qvel))
    _, rewards, done, (info,) = lanes.step(np.zeros((1, 8), np.float32))
    assert done.all()
    assert not info["TimeLimit.truncated"], "whose value must not be bootstrapped"
    assert info["episode"] == {"r": pytest.approx(float(rewards[0])), "l": 1, "t": 0.0}


def test_workers_give_the_same_as_one_process() -> None:
    made = family()
    lanes, actions = Lanes(made, range(3), seed=1), np.full((3, 6), 0.3, np.float32)
    spread = WorkerLanes(made, BLOCK, Path.cwd(), 3, 1, workers=2)
    try:
        spread.turn = 7
        np.testing.assert_array_equal(spread.reset(), lanes.reset(7))
        for _ in range(12):
            for ours, theirs in zip(spread.step(actions)[:3], lanes.step(actions)[:3], strict=True):
                np.testing.assert_array_equal(ours, theirs)
    finally:
        spread.close()


def test_only_an_early_end_costs() -> None:
    made, block = family("ant_dir", horizon=40), {"horizon": 40}
    plain = WorkerLanes(made, block, Path.cwd(), 4, 0, workers=1)
    costly = WorkerLanes(made, block, Path.cwd(), 4, 0, workers=1, ending_cost=150.0)
    early, late = 0, 0
    try:
        plain.reset()
        costly.reset()
        for actions in np.random.default_rng(0).choice([-1.0, 1.0], (80, 4, 8)).astype(np.float32):
            actions[2:] = 0.0  # these stand still until the horizon
            _, rewards, done, infos = plain.step(actions)
            ended_early = np.array([d and not i["TimeLimit.truncated"] for d, i in zip(done, infos, strict=True)])
            np.testing.assert_allclose(rewards - costly.step(actions)[1], np.where(ended_early, 150.0, 0.0), atol=1e-4)
            early, late = early + ended_early.sum(), late + (done & ~ended_early).sum()
    finally:
        plain.close()
        costly.close()
    assert min(early, late) > 0, "both kinds of ends were seen"


def test_the_medium_policy_is_saved_after_its_share_of_steps(tmp_path: Path) -> None:
    trained(tmp_path / "half")
    trained(tmp_path / "quarter", medium=0.25)
    one, other = (
        [(tmp_path / name / f"{p}.safetensors").read_bytes() for p in POLICIES] for name in ("half", "quarter")
    )
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, False, True]
    stopped = tmp_path / "stopped"

    def stop(description: str, done: int, total: int, figures: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(stopped, stop, medium=0.25)
    assert (stopped / "medium.safetensors").read_bytes() == other[1], "the policy of the first of four rounds"


def test_training_writes_three_policies_and_a_curve(tmp_path: Path) -> None:
    rows = trained(tmp_path / "work")
    assert [row["steps"] for row in rows] == [40, 80, 120, 160]
    assert all(row["length_mean"] == 10 and row["early_ends"] == 0 and row["return_mean"] < 0 for row in rows)
    made = family()
    environment = made.make(20)
    observation, _ = environment.reset(seed=0)
    actions = [
        made.behavior({"weights": str(tmp_path / "work" / f"{name}.safetensors"), "noise": 0.0})(
            environment, observation, np.random.default_rng(0)
        )
        for name in POLICIES
    ]
    assert not np.allclose(actions[0], actions[1])
    assert not np.allclose(actions[1], actions[2])


def test_the_exported_policy_acts_like_the_trained_one(tmp_path: Path) -> None:
    from pd_pipeline.behavior.ppo import Learner

    made = family()
    params = LearningParams.model_validate(SMALL)
    lanes = WorkerLanes(made, BLOCK, Path.cwd(), 4, 0, workers=1)
    try:
        learner = Learner(lanes, 10, params, 4)
        learner.round(0)
        learner.export(tmp_path / "policy.safetensors")
        shown = lanes.reset()
        wanted, _ = learner.ppo.predict(learner.normalized.normalize_obs(shown), deterministic=True)
    finally:
        lanes.close()
    policy = goal_policy.load(
        tmp_path / "policy.safetensors", made.action_low, made.action_high, 18, made.goal_features, 0.0
    )
    np.testing.assert_allclose(np.clip(policy.mu(shown), -1, 1), wanted, atol=1e-5)


def test_training_resumed_after_a_kill_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")

    def kill(description: str, done: int, total: int, figures: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", kill)
    assert (tmp_path / "killed" / STATE).exists()
    assert not (tmp_path / "killed" / "expert.safetensors").exists()
    assert trained(tmp_path / "killed") == whole
    for name in POLICIES:
        file = f"{name}.safetensors"
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


Arrays = dict[str, np.ndarray]


def rewritten(change: Callable[[Arrays, dict[str, str]], object]) -> Callable[[Path], object]:
    """Damage that leaves a valid safetensors file."""

    def damage(path: Path) -> None:
        arrays, metadata = load_arrays(path)
        change(arrays, metadata)
        save_arrays(path, arrays, metadata)

    return damage


def figures(*steps: int) -> Callable[[Path], object]:
    rows = [dict.fromkeys(ppo.COLUMNS, 0.0) | {"steps": n} for n in steps]
    return rewritten(lambda arrays, metadata: metadata.update(rows=json.dumps(rows)))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "not finite": rewritten(lambda a, m: a.update({"inputs.mean": a["inputs.mean"] * np.nan})),
    "moment of another shape": rewritten(lambda a, m: a.update({"optimizer.1.exp_avg": np.zeros((1, 1), np.float32)})),
    "moment of another type": rewritten(
        lambda a, m: a.update({"optimizer.1.exp_avg_sq": a["optimizer.1.exp_avg_sq"].astype(np.float64)})
    ),
    "moment missing": rewritten(lambda a, m: a.pop("optimizer.0.step")),
    "too much": rewritten(lambda a, m: a.update({"optimizer.99.exp_avg": np.zeros(1, np.float32)})),
    "negative variance": rewritten(lambda a, m: a.update({"inputs.var": -a["inputs.var"]})),
    "statistics of another width": rewritten(lambda a, m: a.update({"inputs.mean": np.zeros(3)})),
    "no rows": rewritten(lambda a, m: m.pop("rows")),
    "rows are nested": rewritten(lambda a, m: m.update(rows="[" * 100_000)),
    "rows are an object": rewritten(lambda a, m: m.update(rows="{}")),
    "rows of words": rewritten(lambda a, m: m.update(rows=m["rows"].replace("40", '"40"'))),
    "more rounds than there are": figures(40, 80, 120, 160, 200),
    "rows of other rounds": figures(40, 120),
    "none done": figures(),
}


def test_a_damaged_state_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    made, params = family(), LearningParams.model_validate(SMALL)
    lanes = WorkerLanes(made, BLOCK, Path.cwd(), 4, 0, workers=1)
    try:
        learner = ppo.Learner(lanes, 10, params, 4)
        rows = [learner.round(0)]
        learner.save(tmp_path / STATE, rows)
        content = (tmp_path / STATE).read_bytes()
        learner.round(1)
        learner.save(tmp_path / "later.safetensors", rows)
        for case, damage in DAMAGE.items():
            path = tmp_path / case / STATE
            path.parent.mkdir()
            path.write_bytes(content)
            damage(path)
            with pytest.raises(PipelineError) as caught:
                learner.restore(path)
            assert str(path) in str(caught.value), case
        learner.save(tmp_path / "again.safetensors", rows)
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "later.safetensors").read_bytes()
        assert learner.restore(tmp_path / STATE) == rows
        learner.save(tmp_path / "restored.safetensors", rows)
        assert (tmp_path / "restored.safetensors").read_bytes() == content
    finally:
        lanes.close()


def test_a_damaged_state_is_removed_with_a_warning_and_training_starts_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def kill(description: str, done: int, total: int, figures: str = "") -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "work", kill)
    DAMAGE["moment of another shape"](tmp_path / "work" / STATE)
    seen: list[int] = []
    rows = trained(tmp_path / "work", lambda description, done, total, figures="": seen.append(done))
    assert seen == [1, 2, 3, 4]
    assert rows == trained(tmp_path / "whole")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("pd_pipeline", "WARNING")
    assert str(tmp_path / "work" / STATE) in record.getMessage()


def test_sigterm_saves_and_exits(tmp_path: Path) -> None:
    assert threading.current_thread() is threading.main_thread()

    def stop(description: str, done: int, total: int, figures: str = "") -> None:
        if done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        trained(tmp_path / "work", stop, checkpoint_seconds=1000)
    assert (tmp_path / "work" / STATE).exists()
    seen: list[int] = []
    trained(tmp_path / "work", lambda description, done, total, figures="": seen.append(done))
    assert seen == [2, 3, 4]


def test_global_generators_are_restored(tmp_path: Path) -> None:
    np.random.seed(5)  # noqa: NPY002
    wanted = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    trained(tmp_path / "work", steps=80)
    np.testing.assert_array_equal(np.random.random(3), wanted)  # noqa: NPY002


def test_a_batch_that_does_not_divide_a_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"learning\.batch: 30 does not divide a round's 4 x 10 steps"):
        trained(tmp_path / "work", batch=30)


def test_training_for_one_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"learning\.steps: 40 is one round of 4 x 10 steps"):
        trained(tmp_path / "work", steps=40)


def test_ppo_learns_to_stand_still(tmp_path: Path) -> None:
    """Acting is penalised and little else matters: within seconds the noise of actions must shrink."""
    rows = trained(tmp_path / "work", lanes=16, steps=16 * 10 * 40, batch=160, epochs=5, learning_rate=3e-3, width=32)
    first, last = (np.mean([row["return_mean"] for row in part]) for part in (rows[:8], rows[-8:]))
    assert last > first
