"""A plain Gymnasium environment named in params.yaml becomes a family."""

from datetime import date
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from pd_pipeline import graph, rendering
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import load_family
from pd_pipeline.families.gymnasium_env import GymnasiumFamily
from pd_pipeline.progress import silent
from pd_pipeline.storage import write_json
from pd_pipeline.trajectories.collection import Pool, Shard, TrajectoriesParams, collect, collect_episodes
from pd_pipeline.trajectories.reading import read, stream
from tests.conftest import run_stages

HERE = Path(__file__).parent


def block(cls: str = "LineEnv", **changes: Any) -> dict[str, Any]:
    values = {
        "entry_point": f"custom_family:{cls}",
        "horizon": 8,
        "tasks": [{"goal": -1.0}, {"goal": 0.5}, {"goal": 1.0}],
        "test_tasks": [1],
        "behaviors": {
            "expert": {"entry_point": "custom_family:toward"},
            "medium": {"entry_point": "custom_family:toward", "noise": 0.5, "arguments": {"gain": 0.2}},
            "random": {"random": True},
        },
    }
    return values | changes


def family(cls: str = "LineEnv", **changes: Any) -> GymnasiumFamily:
    made = load_family("line", block(cls, **changes), HERE)
    assert isinstance(made, GymnasiumFamily)
    return made


def test_spaces_splits_and_goals() -> None:
    made = family()
    assert (made.observation_size, made.action_size, made.horizon) == (1, 1, 8)
    assert (made.action_low.tolist(), made.action_high.tolist()) == ([-2.0], [2.0])
    assert made.action_low.dtype == np.float32
    assert (made.train_tasks, made.test_tasks) == ((0, 2), (1,))
    assert made.goal(1) == {"goal": 0.5}
    assert made.qualities == ("expert", "medium", "random")


def test_whether_episodes_can_succeed_is_a_parameter() -> None:
    assert [made.has_success for made in (family(), family(success=False))] == [True, False]


def test_environment_takes_its_task_and_the_shared_options() -> None:
    environment = family(options={"start": 0.25}).make(2)
    assert environment.unwrapped.goal == 1.0
    observation, _ = environment.reset(seed=0)
    assert observation.dtype == np.float32
    assert observation[0] == pytest.approx(0.25, abs=0.1)
    after, reward, terminated, _, info = environment.step(np.array([1.5], np.float32))
    assert after[0] == pytest.approx(observation[0] + 0.75, abs=1e-6)
    assert reward == pytest.approx(-abs(after[0] - 1.0), abs=1e-6)
    assert not terminated
    assert info["success"] is True, "is_success is recognised too"


def test_stored_actions_are_the_clipped_ones() -> None:
    made = family(tasks=[{"goal": -1.0}, {"goal": 1.9}, {"goal": 1.0}])
    description = made.default_behaviors()["expert"] | {"arguments": {"gain": 50.0}}
    arrays = collect_episodes(Pool(made), description, Shard("expert", 1, 0, 1), seed=0)
    assert arrays["action"].max() == 2.0
    moved = np.diff(arrays["observation"][:, 0])
    np.testing.assert_allclose(moved, 0.5 * arrays["action"][:-1, 0], atol=1e-5)


def test_actions_stay_within_the_bounds_of_the_environment_itself(tmp_path: Path) -> None:
    """float32(0.1) is larger than 0.1. And no second environment is made beside the one in use."""
    described = block("ExactEnv")
    made = load_family("line", described, HERE)
    write_json(tmp_path / "policies.json", made.default_behaviors())
    params = TrajectoriesParams.model_validate({"workers": 1, "episodes": {"expert": {"train": 2, "test": 1}}})
    collect(made, described, HERE, tmp_path, params, tmp_path / "out", tmp_path / "work", silent)
    actions = np.concatenate([batch.action for batch in stream(tmp_path / "out/expert.parquet")])
    assert np.abs(actions).max() == np.float32(0.1)


def test_noise_is_in_halves_of_the_range() -> None:
    made = family()
    act = made.behavior({"entry_point": "custom_family:toward", "arguments": {"gain": 0.0}, "noise": 0.1})
    rng = np.random.default_rng(0)
    drawn = np.array([act(made.make(0), np.zeros(1, np.float32), rng) for _ in range(2000)])
    assert drawn.std() == pytest.approx(0.1 * 2, rel=0.1)


def test_random_actions_fill_the_bounds() -> None:
    made = family()
    rng = np.random.default_rng(0)
    drawn = np.array([made.behavior({"random": True})(made.make(0), np.zeros(1), rng) for _ in range(500)])
    assert drawn.min() < -1.9
    assert drawn.max() > 1.9


def test_collected_by_workers_with_early_ends(tmp_path: Path) -> None:
    values = block(tasks=[{"goal": -1.0}, {"goal": 3.0}, {"goal": 1.0}])  # task 1 leads out of the plane
    made = load_family("line", values, HERE)
    write_json(tmp_path / "policies.json", made.default_behaviors())
    params = TrajectoriesParams.model_validate({"workers": 2, "episodes": {"expert": {"train": 2, "test": 2}}})
    collect(made, values, HERE, tmp_path, params, tmp_path / "out", tmp_path / "work", silent)
    data = read(tmp_path / "out" / "expert.parquet")
    assert data.task_id.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.lengths.tolist() == [8, 8, 3, 3, 8, 8]
    assert data.metadata.goals[1] == {"goal": 3.0}
    assert data.episode_success[[0, 1, 4, 5]].all()


def test_the_stages_run_on_it(tmp_path: Path) -> None:
    """From params.yaml to prompts: nothing but the block is needed."""
    (tmp_path / "custom_family.py").write_text((HERE / "custom_family.py").read_text())
    (tmp_path / "params.yaml").write_text(
        f"""\
run: {{families: [line], methods: [prompt_dt]}}
families:
  line:
    environment: {block()!r}
    behavior_policies: {{levels: {{medium: {{noise: 0.3}}}}}}
    trajectories: {{workers: 1, episodes: {{expert: {{train: 3, test: 1}}, medium: {{train: 2, test: 1}}}}}}
    prompts: {{length: 2}}
""".replace("True", "true")
    )
    run_stages(tmp_path, "behavior_policies", "trajectories", "prompts")
    assert (tmp_path / "data/prompts/line/expert.safetensors").is_file()
    assert read(tmp_path / "data/trajectories/line/medium.parquet").metadata.family == "line"


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        ("WideActionEnv", "action space .* finite bounds"),
        ("IntegerActionEnv", "action space .* its numbers must be floating"),
        ("DiscreteActionEnv", "action space .* one-dimensional Box"),
        ("ImageEnv", "observation space .* one-dimensional Box"),
    ],
)
def test_unsupported_spaces_are_refused_before_collecting(cls: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        family(cls).default_behaviors()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_tasks": [3]}, r"test_tasks: \[3\] are not among tasks 0 to 2"),
        ({"test_tasks": [0, 1, 2]}, "at least one training and one test task"),
        ({"tasks": [{"goal": 1}]}, "tasks"),
        (
            {"tasks": [{"goal": -1.0}, {"goal": 0.5}, {"goal": -1}]},
            r"environment\.tasks: 0 \(for training\) and 2 \(for training\) are the same task, {'goal': -1}: give each",
        ),
        ({"tasks": [{"goal": 0.5}, {"goal": 0.5}]}, r"tasks: 0 \(for training\) and 1 \(a target\) are the same task"),
        (
            {"tasks": [{"goal": 1, "start": 0}, {"goal": 1}], "options": {"start": 0}},
            r"0 .* and 1 .* are the same task",
        ),
        (
            {"tasks": [{"goal": {"at": [0, 1]}}, {"goal": 1}, {"goal": {"at": [0.0, 1]}}]},
            r"tasks: 0 .* and 2 .* are the same",
        ),
        (
            {"test_tasks": [1, 1]},
            r"environment: tasks \[1\] appear more than once among the test tasks: name each once",
        ),
        ({"behaviors": {}}, "behaviors"),
        (
            {"options": {"day": date(2026, 1, 2)}},
            r"environment\.options: .*date is not JSON serializable: write a date",
        ),
        ({"tasks": [{"goal": 1.0}, {"goal": np.inf}]}, r"environment\.tasks\.1: .*a large number in place of"),
        (
            {"behaviors": {"expert": {"entry_point": "custom_family:toward", "arguments": {"gain": np.nan}}}},
            r"environment\.behaviors\.expert\.arguments: .*not JSON compliant",
        ),
        ({"speed": 3}, "speed"),
    ],
)
def test_mistakes_in_the_block_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        family(**changes)


@pytest.mark.parametrize(
    ("behavior", "message"),
    [
        ({}, "set either entry_point"),
        ({"random": True, "entry_point": "custom_family:toward"}, "set either entry_point"),
        ({"random": True, "noise": 0.5}, "`random: true` has no noise and no arguments: remove them"),
        ({"entry_point": "custom_family:nothing"}, "cannot load 'custom_family:nothing'"),
        ({"entry_point": "no_such_module:toward"}, "cannot load 'no_such_module:toward'"),
    ],
)
def test_mistakes_in_behaviors_are_named(behavior: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        family(behaviors={"expert": behavior}).default_behaviors()


def test_an_environment_with_a_single_task_is_trained_on_and_is_a_target() -> None:
    made = family(tasks=[{}, {}], options={"goal": 1.0})
    assert (made.train_tasks, made.test_tasks) == ((0,), (1,))
    assert made.make(1).unwrapped.goal == 1.0


def test_wrong_constructor_arguments_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"tasks\.0: custom_family:LineEnv.*speed"):
        family(tasks=[{"speed": 1.0}, {"goal": 1.0}]).make(0)


def test_there_are_pictures_only_where_the_environment_renders() -> None:
    assert family().frame_pixels(family().make(0)) is None
    values = block(entry_point="gymnasium.envs.classic_control:PendulumEnv", options={"render_mode": "rgb_array"})
    values["tasks"] = [{"g": 9.0}, {"g": 10.0}]
    made = load_family("pendulum", values, HERE)
    assert made.observation_size == 3
    assert made.versions()["gymnasium"] == gymnasium.__version__


def test_a_function_that_makes_the_environment() -> None:
    made = load_family("line", block("make_line", options={"start": 0.25}), HERE)
    environment = made.make(2)
    assert environment.unwrapped.goal == 1.0
    observation, _ = environment.reset(seed=0)
    after, reward, *_ = environment.step(np.array([1.0], np.float32))
    assert reward == pytest.approx(-2 * abs(after[0] - 1.0), abs=1e-6), "with what the function wrapped around it"
    assert made.behavior(made.default_behaviors()["expert"])(environment, observation, np.random.default_rng()) > 0


def test_a_function_that_makes_nothing_is_named() -> None:
    with pytest.raises(PipelineError, match=r"custom_family:make_nothing.*: returned NoneType, not a gymnasium\.Env"):
        load_family("line", block("make_nothing"), HERE).make(0)


def pendulum(**changes: Any) -> dict[str, Any]:
    values = block(gymnasium="Pendulum-v1", tasks=[{"g": 1.0}, {"g": 9.0}], behaviors={"random": {"random": True}})
    del values["entry_point"]
    return values | changes


def test_an_id_of_gymnasium() -> None:
    made = load_family("pendulum", pendulum(horizon=300), HERE)
    assert (made.observation_size, made.action_size, made.is_foreign) == (3, 1, True)
    environment = made.make(1)
    assert environment.unwrapped.g == 9.0
    environment.reset(seed=0)
    ended = [environment.step(np.zeros(1, np.float32))[3] for _ in range(300)]
    assert not any(ended), "Gymnasium's own limit of 200 steps is not in force: the horizon is"
    assert "mujoco" not in made.versions()


def test_the_simulator_of_an_id_is_among_the_versions() -> None:
    made = load_family("arm", pendulum(gymnasium="Reacher-v5", tasks=[{"frame_skip": 2}, {"frame_skip": 3}]), HERE)
    assert (made.observation_size, made.action_size) == (10, 2)
    assert {"gymnasium", "mujoco"} <= made.versions().keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [("Pendulum-v999", "Pendulum-v999"), ("pendulum", "String should match"), ("Nothing-v0", "Nothing-v0")],
)
def test_an_id_that_is_none_is_named(name: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        load_family("pendulum", pendulum(gymnasium=name), HERE).make(0)


def test_a_change_of_a_behaviors_file_makes_trajectories_stale(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def act(environment, observation, rng): return [0.0]\n")
    values = pendulum(behaviors={"expert": {"entry_point": "mine:act"}})
    text = f"run: {{families: [pendulum], methods: [prompt_dt]}}\nfamilies: {{pendulum: {{environment: {values!r}}}}}\n"
    (tmp_path / "params.yaml").write_text(text)
    before = rendering.all_digests(graph.load(tmp_path))["trajectories"]["pendulum"]
    (tmp_path / "mine.py").write_text("def act(environment, observation, rng): return [0.5]\n")
    after = rendering.all_digests(graph.load(tmp_path))["trajectories"]["pendulum"]
    assert (before["code"] != after["code"], before["parameters"] == after["parameters"]) == (True, True)


def test_so_does_a_change_of_what_the_environment_reads(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def act(environment, observation, rng): return [0.0]\n")
    (tmp_path / "models/meshes").mkdir(parents=True)
    for name in ("arm.xml", "meshes/hand.stl", "other.xml"):
        (tmp_path / "models" / name).write_text("one")
    behaviors = {"expert": {"entry_point": "mine:act"}}

    def code(*files: str) -> str:
        values = pendulum(behaviors=behaviors, files=[*files])
        run = "run: {families: [pendulum], methods: [prompt_dt]}"
        (tmp_path / "params.yaml").write_text(f"{run}\nfamilies: {{pendulum: {{environment: {values!r}}}}}\n")
        return rendering.all_digests(graph.load(tmp_path))["evaluation"]["pendulum"]["code"]

    named = ("models/arm.xml", "models/meshes")
    before = code(*named)
    assert before != code()
    (tmp_path / "models/other.xml").write_text("two")
    assert code(*named) == before
    (tmp_path / "models/meshes/hand.stl").write_text("two")
    assert code(*named) != before
    with pytest.raises(PipelineError, match=r"environment\.files: models/none: no such file or folder in"):
        code("models/none")
    with pytest.raises(PipelineError, match=r"environment\.files: /usr: outside .*: copy it into the project"):
        code("/usr")


def test_so_does_a_change_of_the_file_of_a_policy_in_levels(tmp_path: Path) -> None:
    """In the stages that act by it, and in no other."""
    (tmp_path / "mine.py").write_text("def act(environment, observation, rng): return [0.0]\n")
    (tmp_path / "other.py").write_text("def act(environment, observation, rng): return [0.0]\n")
    values = pendulum(behaviors={"expert": {"entry_point": "mine:act"}})
    levels = {"noisy": {"entry_point": "other:act"}}
    blocks = {"environment": values, "behavior_policies": {"levels": levels}}
    text = f"run: {{families: [pendulum], methods: [prompt_dt]}}\nfamilies: {{pendulum: {blocks!r}}}\n"
    (tmp_path / "params.yaml").write_text(text)
    before = rendering.all_digests(graph.load(tmp_path))
    (tmp_path / "other.py").write_text("def act(environment, observation, rng): return [0.5]\n")
    after = rendering.all_digests(graph.load(tmp_path))
    changed = {
        stage for stage in before if any(before[stage][k]["code"] != after[stage][k]["code"] for k in before[stage])
    }
    assert {"behavior_policies", "trajectories"} <= changed
    assert not changed & {"prompts", "plm", "evaluation"}
