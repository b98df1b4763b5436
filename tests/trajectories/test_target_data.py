"""The data of a target: what was collected and what users brought, and nothing else depends on the latter."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pd_pipeline import graph, rendering
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.incoming.ingest import ingest
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.storage import read_json
from pd_pipeline.trajectories.reading import Trajectories, read, stream, write
from pd_pipeline.trajectories.target_data import other_task
from tests.builders import columns, metadata
from tests.conftest import run_stages
from tests.recorded_project import FAMILY, FOLDER, record, record_project

LIKE_THE_FAMILY = {"observation_size": 2, "action_low": (-1.0, -1.0), "action_high": (1.0, 1.0), "horizon": 12}
LATER = datetime.now(UTC) + timedelta(hours=1)
NEW = 57


def bring(root: Path, task: int, seed: int, quality: str = "expert", episodes: int = 2) -> None:
    """Accept a file of a target."""
    path = root / f"data/incoming/point_robot/{task}/{seed}.parquet"
    values = LIKE_THE_FAMILY | {"goals": {task: {"position": [0.5]}}, "quality": quality}
    made = columns(tasks=(task,), d_s=2, seed=seed, episodes=episodes)
    write(path, metadata(**values), [made])
    (outcome,) = ingest(root, {"point_robot": graph.load(root).family("point_robot")}, 0, LATER)
    assert outcome.state == "accepted", outcome.message


def of(root: Path, folder: str, quality: str = "expert", new_task: int | None = None) -> Trajectories:
    return read(root / "data/target_data" / folder / f"{quality}.parquet", new_task=new_task)


def test_without_new_data_it_is_what_was_collected(trained_project: Path) -> None:
    for task, other in ((1, 4), (4, 1)):
        for quality in ("expert", "random"):
            collected = trained_project / f"data/trajectories/point_robot/{quality}.parquet"
            for folder, of_task in ((f"point_robot/{task}", task), (f"point_robot/{task}/other", other)):
                expected, found = read(collected, [of_task]), of(trained_project, folder, quality)
                for name in ("observations", "actions", "rewards", "task_id", "episode_id", "starts"):
                    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
                assert found.metadata.goals == {of_task: expected.metadata.goals[of_task]}


def test_new_episodes_follow_in_the_order_of_arrival(project: Path) -> None:
    before = of(project, "point_robot/4")
    count = len(before.task_id)
    bring(project, 4, seed=1)
    bring(project, 4, seed=2, episodes=3)
    run_stages(project, "target_data")
    found = of(project, "point_robot/4")
    assert found.episode_id.tolist() == list(range(count + 5))
    np.testing.assert_array_equal(found.select(np.arange(count)).observations, before.observations)
    expected = [columns(tasks=(4,), d_s=2, seed=1), columns(tasks=(4,), d_s=2, seed=2, episodes=3)]
    new = found.select(np.arange(count, count + 5))
    np.testing.assert_array_equal(new.observations, np.concatenate([part.observation for part in expected]))
    origin = read_json(project / "data/target_data/point_robot/4/origin.json")["accepted"]
    assert [(one["file"], one["first_episode"], one["episodes"]) for one in origin] == [
        ("0001-expert.parquet", count, 2),
        ("0002-expert.parquet", count + 2, 3),
    ]
    assert origin[0]["source"] == "data/incoming/point_robot/4/1.parquet"


def test_copies_are_left_out(project: Path) -> None:
    """An episode that was collected, and one that is in an earlier accepted file, of another quality."""
    before = of(project, "point_robot/4")
    count, folder = len(before.task_id), project / "data/incoming/point_robot/4"
    bring(project, 4, seed=1)
    (collected,) = (b for b in stream(project / "data/trajectories/point_robot/expert.parquet", [4]) if len(b.step))
    mine = columns(tasks=(4,), d_s=2, seed=1, episodes=2)
    fresh = columns(tasks=(4,), d_s=2, seed=2, episodes=1)
    for quality, parts in {
        "expert": [collected.select(collected.episode_id == 1), replace(fresh, episode_id=fresh.episode_id + 9)],
        "demo": [mine.select(mine.episode_id == 1), replace(fresh, episode_id=fresh.episode_id + 9)],
    }.items():
        goals = {4: {"position": [0.5]}}
        write(folder / f"{quality}.parquet", metadata(**LIKE_THE_FAMILY, goals=goals, quality=quality), parts)
        (outcome,) = ingest(project, {"point_robot": graph.load(project).family("point_robot")}, 0, LATER)
        assert outcome.state == ("accepted" if quality == "expert" else "quarantined")
    run_stages(project, "target_data")
    found = of(project, "point_robot/4")
    assert found.episode_id.tolist() == list(range(count + 3))
    new = np.concatenate((mine.observation, fresh.observation))
    np.testing.assert_array_equal(found.select(np.arange(count, count + 3)).observations, new)
    origin = read_json(project / "data/target_data/point_robot/4/origin.json")["accepted"]
    assert [(one["first_episode"], one["episodes"], one["copies"]) for one in origin] == [
        (count, 2, 0),
        (count + 2, 1, 1),
    ]


def test_a_quality_of_collected_episodes_alone_is_not_written(project: Path) -> None:
    (collected,) = (b for b in stream(project / "data/trajectories/point_robot/expert.parquet", [4]) if len(b.step))
    path, goals = project / "data/incoming/point_robot/4/a.parquet", {4: {"position": [0.5]}}
    write(path, metadata(**LIKE_THE_FAMILY, goals=goals, quality="demo"), [collected])
    (outcome,) = ingest(project, {"point_robot": graph.load(project).family("point_robot")}, 0, LATER)
    assert outcome.state == "accepted"
    run_stages(project, "target_data")
    assert not (project / "data/target_data/point_robot/4/demo.parquet").exists()
    assert read_json(project / "data/target_data/point_robot/4/origin.json") == {"accepted": []}


@pytest.mark.parametrize("task", [4, NEW])
def test_bounds_and_horizon_are_those_of_a_recorded_family(task: int, trained_project: Path, tmp_path: Path) -> None:
    """A file that keeps to narrower ones comes first, one that needs all of them second."""
    root = record_project(trained_project, tmp_path / "recorded")
    family = graph.load(root).family(FAMILY)
    narrow: dict[str, object] = {"action_low": (-0.5, -0.5), "action_high": (0.5, 0.5), "horizon": 5}
    for number, (about, length, scale) in enumerate(((narrow, 5, 0.5), ({}, 12, 1.0))):
        values = LIKE_THE_FAMILY | {"family": FAMILY, "quality": "demo", "goals": {task: family.goal(4)}} | about
        made = columns(tasks=(task,), d_s=2, length=length, seed=number)
        path = root / f"data/incoming/{FAMILY}/{task}/{number}.parquet"
        write(path, metadata(**values), [replace(made, action=made.action * np.float32(scale))])
        (outcome,) = ingest(root, {FAMILY: family}, 0, LATER)
        assert outcome.state == "accepted", outcome.message
    run_stages(root, "behavior_policies", "trajectories", "target_data")
    folder = f"{FAMILY}/4" if task == 4 else f"{FAMILY}-new/{NEW}"
    data = of(root, folder, "demo", task)
    assert data.lengths.tolist() == [5, 5, 12, 12]
    found = data.metadata
    assert (found.action_low, found.action_high, found.horizon) == ((-1.0, -1.0), (1.0, 1.0), 12)


def test_what_a_recorded_family_has_is_not_accepted_again(trained_project: Path, tmp_path: Path) -> None:
    root = record_project(trained_project, tmp_path / "recorded")
    source = trained_project / "data/trajectories/point_robot/expert.parquet"
    mine = record(source, root / FOLDER / "mine.parquet", [4])
    dropped = root / f"data/incoming/{FAMILY}/4/again.parquet"
    dropped.parent.mkdir(parents=True)
    dropped.write_bytes(mine.read_bytes())
    (outcome,) = ingest(root, {FAMILY: graph.load(root).family(FAMILY)}, 0, LATER)
    assert (outcome.state, dropped.exists()) == ("duplicate", False)
    assert outcome.message == f"its content is in {mine} already"


def test_a_recorded_family_need_not_have_every_quality_of_every_target(trained_project: Path, tmp_path: Path) -> None:
    root = record_project(trained_project, tmp_path / "recorded")
    source = trained_project / "data/trajectories/point_robot/random.parquet"
    record(source, root / FOLDER / "random.parquet", [task for task in range(6) if task != 4])
    run_stages(root, "behavior_policies", "trajectories", "target_data")
    assert (root / f"data/target_data/{FAMILY}/1/other/expert.parquet").is_file()
    assert not (root / f"data/target_data/{FAMILY}/1/other/random.parquet").exists()
    assert not (root / f"data/target_data/{FAMILY}/4/random.parquet").exists()


def test_episodes_are_counted_and_numbered_after_the_last_one(project: Path) -> None:
    """Numbers of collected episodes may have gaps, where a user recorded them."""
    root = record_project(project, project.parent / "recorded")
    (source := root / "data/imported/my_robot/expert.parquet").unlink()
    record(project / "data/trajectories/point_robot/expert.parquet", source, shift=50)
    made = columns(tasks=(4,), d_s=2)
    values = LIKE_THE_FAMILY | {"family": FAMILY, "goals": {4: graph.load(root).family(FAMILY).goal(4)}}
    write(root / f"data/incoming/{FAMILY}/4/a.parquet", metadata(**values), [made])
    ingest(root, {FAMILY: graph.load(root).family(FAMILY)}, 0, LATER)
    run_stages(root, "behavior_policies", "trajectories")
    key = Key(FAMILY, 4)
    metrics = run_piece(graph.load(root), "target_data", key, silent)
    assert of(root, f"{FAMILY}/4").episode_id.tolist() == list(range(50, 59))
    assert metrics == {"episodes_expert": 9, "episodes_random": 2}


def test_a_quality_that_was_never_collected(project: Path) -> None:
    bring(project, 4, seed=1, quality="demo")
    run_stages(project, "target_data")
    assert len(of(project, "point_robot/4", "demo").task_id) == 2
    assert not (project / "data/target_data/point_robot/1/demo.parquet").exists()


def test_a_new_target_is_a_key_of_its_own(project: Path) -> None:
    bring(project, NEW, seed=1)
    found = graph.load(project)
    assert [str(key) for key in found.keys("target_data")] == ["point_robot-1", "point_robot-4", "point_robot-57"]
    assert found.out("target_data", Key("point_robot", NEW)) == Path("data/target_data/point_robot-new/57")
    run_stages(project, "target_data")
    data = of(project, "point_robot-new/57", new_task=NEW)
    assert data.task_id.tolist() == [NEW, NEW]
    assert data.metadata.goals == {NEW: {"position": [0.5]}}
    assert of(project, "point_robot-new/57/other").task_id[0] == 1, "the first benchmark target"


def test_it_is_tuned_for_as_soon_as_there_are_enough_trajectories(project: Path) -> None:
    stage = "tuned_prompt_dt"
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(
        text.replace("tuned_prompt_dt: {", "tuned_prompt_dt: {target: {few_shot: 3}, ")
    )
    bring(project, NEW, seed=1)
    before = graph.load(project)
    assert Key("point_robot", NEW, 0) not in before.keys(stage)
    assert before.lacking(stage, "point_robot", NEW) == {"expert": (2, 3)}
    bring(project, NEW, seed=2)
    after = graph.load(project)
    key = Key("point_robot", NEW, 0)
    assert key in after.keys(stage)
    assert after.lacking(stage, "point_robot", NEW) == {}
    assert after.out(stage, key) == Path("data/tuned_prompt_dt/point_robot-0-new/57")
    run_stages(project, "target_data", stage)
    assert read_json(project / after.out(stage, key) / "summary.json")["few_shot"] == 3


def test_a_method_without_demonstrations_does_not_wait_for_them(project: Path) -> None:
    stage, text = "tuned_prompt_diffuser_zero_shot", (project / "params.yaml").read_text()
    text = text.replace("methods: [", "methods: [prompt_diffuser_zero_shot, ")
    (project / "params.yaml").write_text(text)
    bring(project, NEW, seed=1)
    found = graph.load(project)
    assert found.lacking("tuned_prompt_dt", "point_robot", NEW) == {"expert": (2, 5)}
    assert found.lacking(stage, "point_robot", NEW) == {}
    key = Key("point_robot", NEW, 0)
    assert key in found.keys(stage)
    run_stages(project, "target_data")
    run_piece(found, stage, key, silent)
    assert read_json(project / found.out(stage, key) / "summary.json")["few_shot"] == 0


@pytest.mark.parametrize("task", [4, NEW])
def test_new_data_concerns_its_target_alone(project: Path, task: int) -> None:
    before = rendering.all_digests(graph.load(project))
    bring(project, task, seed=1)
    after = rendering.all_digests(graph.load(project))
    changed = {
        (stage, name)
        for stage, entries in after.items()
        for name, digests in entries.items()
        if before.get(stage, {}).get(name) != digests
    }
    evaluated = {("target_evaluation", "point_robot")} if task == 4 else set()  # NEW has too few for that
    assert changed == {("target_data", f"point_robot-{task}"), *evaluated}


def plane(*targets: int) -> Family:
    return load_family("point_robot", {"tasks": 6, "test_tasks": list(targets)}, Path.cwd())


def test_the_other_task_is_the_next_target() -> None:
    assert [other_task(plane(4, 1, 2), task) for task in (4, 1, 2, NEW)] == [1, 2, 4, 4]
    assert other_task(plane(0), 0) == 1, "the first training task"
    trained = plane(0)
    trained.train_tasks = (0, 3)
    assert other_task(trained, 0) == 3, "of a family whose target is trained too"
    trained.train_tasks = (0,)
    assert other_task(trained, 0) is None
