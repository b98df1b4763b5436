"""An import says what it does, refuses what is bad, and does nothing twice."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pd_pipeline import graph
from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange import formats, importing
from pd_pipeline.exchange.lerobot_writing import write as write_lerobot
from pd_pipeline.exchange.mapping import assign
from pd_pipeline.incoming.ingest import take
from pd_pipeline.storage import digest
from pd_pipeline.trajectories.checking import check_file
from pd_pipeline.trajectories.reading import read, read_metadata, write
from tests.dvc_project import SMALL_PARAMS, make_project
from tests.exchange import builders
from tests.exchange.builders import ALL, FAMILY, about, every, exported, imported, trajectory_file
from tests.exchange.test_d4rl import plain


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return trajectory_file(tmp_path / "original/medium.parquet")


def test_the_same_source_is_imported_once(tmp_path: Path, original: Path) -> None:
    (made,), _ = imported(tmp_path, original)
    before = made.stat().st_mtime_ns
    again, said = imported(tmp_path, original)
    assert again == []
    assert f"imported already, as {made}: nothing to do" in said
    copy = shutil.copytree(original.parent, tmp_path / "copy")
    assert imported(tmp_path, copy)[0] == [], "the same contents elsewhere"
    assert made.stat().st_mtime_ns == before
    with pytest.raises(PipelineError, match=r"imported before with other options \(none\), as .*: remove that file"):
        imported(tmp_path, original, task=3)


def test_another_source_adds_tasks_and_episodes_with_numbers_of_their_own(tmp_path: Path, original: Path) -> None:
    """A goal that the family has is its task, whatever its number; what has no goal is a new task."""
    imported(tmp_path, original)
    goals = {2: {"words": "stack"}, 5: {"words": "turn"}}
    second = trajectory_file(tmp_path / "second.parquet", goals=goals)
    (made,), said = imported(tmp_path, second)
    assert "task 2 -> task 5 of robot" in said
    assert "task 5 -> task 6 of robot" in said
    data = read(made)
    assert data.task_id.tolist() == [5, 5, 5, 6, 6]
    assert data.episode_id.tolist() == [4, 7, 8, 0, 3], "3 was the last of task 5; other numbers stay"
    assert read_metadata(made).goals == {5: {"words": "stack"}, 6: {"words": "turn"}}


def test_all_episodes_may_be_of_one_task(tmp_path: Path, original: Path) -> None:
    (made,), _ = imported(tmp_path, original, task=9, quality="expert")
    data = read(made)
    assert set(data.task_id) == {9}
    assert data.episode_id.tolist() == [0, 7, 8, 9, 10]
    metadata = read_metadata(made)
    assert (metadata.goals, metadata.quality) == ({9: {}}, "expert")
    assert metadata.origin[0].options == {"task": 9, "quality": "expert"}
    more, _ = imported(tmp_path, plain(tmp_path / "more.hdf5"), task=9)
    assert read(more[0]).episode_id.tolist() == [11, 12]


def grown(path: Path, steps: int) -> Path:
    """A log whose episodes have five steps each."""
    rng = np.random.default_rng(1)
    full = [rng.normal(size=(100, 3)), rng.uniform(-0.5, 0.5, (100, 2)), rng.normal(size=100)]
    arrays = dict(zip(("observations", "actions", "rewards"), (each[:steps] for each in full), strict=True))
    timeouts = np.arange(steps) % 5 == 4
    return plain(path, **arrays, terminals=np.zeros(steps, bool), timeouts=timeouts)


@pytest.mark.parametrize("task", [None, 4])
def test_of_a_log_that_has_grown_only_what_is_new_is_imported(tmp_path: Path, task: int | None) -> None:
    """Under whatever name and in whatever format it comes, and also where nobody says which task it is."""
    (first,), _ = imported(tmp_path, grown(tmp_path / "log.hdf5", 15), task=task)
    longer = grown(tmp_path / "log_until_friday.hdf5", 25)
    (second,), said = imported(tmp_path, longer, task=task)
    assert "left out: 3 episodes that are copies of others of their task" in said
    assert [read(file).episode_id.tolist() for file in (first, second)] == [[0, 1, 2], [3, 4]]
    assert {*read(second).task_id} == {task or 0}
    copy = exported("lerobot", tmp_path, second)
    nothing, said = imported(tmp_path, copy, task=task)
    assert nothing == []
    assert f"{copy}: all of its episodes are in {first.parent} already: nothing to do" in said


@pytest.mark.parametrize("task", [None, 4])
def test_an_episode_that_had_not_ended_is_not_there_twice(tmp_path: Path, task: int | None) -> None:
    """Its first steps would be few-shot and the whole of it held out."""
    (first,), _ = imported(tmp_path, grown(tmp_path / "log.hdf5", 8), task=task)
    assert read(first).lengths.tolist() == [5, 3]
    longer = grown(tmp_path / "longer.hdf5", 15)
    (second,), said = imported(tmp_path, longer, task=task)
    assert read(second).lengths.tolist() == [5]
    assert {*read(second).task_id} == {task or 0}
    assert "left out: 1 episodes that are copies" in said
    assert "left out: 1 episodes whose beginning their task has already" in said
    again, said = imported(tmp_path, grown(tmp_path / "middle.hdf5", 10), task=task)
    assert (again, "1 episodes whose beginning" in said) == ([], True)
    first.unlink()
    (third,), said = imported(tmp_path, longer, task=task)
    assert read(third).lengths.tolist() == [5, 5]
    assert "whose beginning" not in said


@pytest.mark.parametrize("task", [None, 4])
def test_nor_if_the_whole_of_it_came_first(tmp_path: Path, task: int | None) -> None:
    """A copy of the log of yesterday may be imported after that of today."""
    imported(tmp_path, grown(tmp_path / "friday.hdf5", 15), task=task)
    earlier, said = imported(tmp_path, grown(tmp_path / "monday.hdf5", 8), task=task)
    assert (earlier, "all of its episodes are in" in said) == ([], True)


def test_nor_in_the_drop_zone(tmp_path: Path) -> None:
    root = make_project(tmp_path, SMALL_PARAMS + "automation: {settle_seconds: 0}\n")
    where = root / "data/incoming/point_robot/57"
    for steps, kept in ((8, [5, 3]), (15, [5]), (10, None), (8, None)):
        rng = np.random.default_rng(1)
        full = {"observations": rng.normal(size=(15, 2)) / 100, "actions": rng.uniform(-0.01, 0.01, (15, 2)),
                "rewards": rng.normal(size=15)}  # fmt: skip
        ends = {"terminals": np.zeros(steps, bool), "timeouts": np.arange(steps) % 5 == 4}
        log = plain(root / f"{steps}.hdf5", **{name: each[:steps] for name, each in full.items()}, **ends)
        made, said = imported(root, log, "point_robot", out=where)
        assert [read(file, new_task=57).lengths.tolist() for file in made] == ([kept] if kept else [])
        if kept is None:
            assert "all of its episodes are in accepted files of task 57 already: nothing to do" in said
        assert {outcome.state for outcome in take(graph.load(root))} <= {"accepted"}


def test_an_episode_that_ended_by_itself_is_no_beginning(tmp_path: Path) -> None:
    """From the same start another policy may go on."""
    for count, name in ((5, "short"), (10, "long")):
        arrays = {"observations": np.zeros((count, 3)), "actions": np.zeros((count, 2)), "rewards": np.zeros(count)}
        ends = {"terminals": np.arange(count) == count - 1, "timeouts": None}
        (made,), _ = imported(tmp_path, plain(tmp_path / f"{name}.hdf5", **arrays, **ends), task=1)
        assert read(made).lengths.tolist() == [count]


@pytest.mark.parametrize("task", [None, 0])
def test_rewards_of_a_grown_log_are_asked_for_as_before(tmp_path: Path, task: int | None) -> None:
    imported(tmp_path, grown(tmp_path / "log.hdf5", 15), reward=1.0)
    longer = grown(tmp_path / "longer.hdf5", 25)
    for otherwise in (None, 2.0):
        with pytest.raises(
            PipelineError, match="of task 0, which was imported with --reward 1: import it so again, or"
        ):
            imported(tmp_path, longer, task=task, reward=otherwise)
    (other,), _ = imported(tmp_path, grown(tmp_path / "other.hdf5", 20), task=6)
    assert {*read(other).task_id} == {6}
    (made,), _ = imported(tmp_path, longer, task=0, reward=1.0)
    assert read(made).lengths.tolist() == [5, 5]


def still(path: Path, seed: int) -> Path:
    """Three episodes of five steps, the last of which nothing happens in."""
    rng = np.random.default_rng(seed)
    arrays = {"observations": rng.normal(size=(15, 3)), "actions": rng.uniform(-1, 1, (15, 2)), "rewards": np.ones(15)}
    for values in arrays.values():
        values[10:] = 0
    return plain(path, **arrays, terminals=np.arange(15) % 5 == 4, timeouts=None)


def test_one_episode_in_common_makes_no_task_another(tmp_path: Path) -> None:
    """A robot that stands still looks the same in every task."""
    imported(tmp_path, still(tmp_path / "push.hdf5", 1))
    (made,), said = imported(tmp_path, still(tmp_path / "pick.hdf5", 2))
    assert "task 0 -> task 1" in said
    assert read(made).lengths.tolist() == [5, 5, 5]


def test_a_task_that_could_be_two_is_not_guessed(tmp_path: Path) -> None:
    imported(tmp_path, grown(tmp_path / "a.hdf5", 15), task=0)
    imported(tmp_path, grown(tmp_path / "b.hdf5", 20), task=1)
    with pytest.raises(PipelineError, match="task 0 shares episodes with tasks 0 and 1: say by --task which"):
        imported(tmp_path, grown(tmp_path / "c.hdf5", 30))
    (made,), _ = imported(tmp_path, grown(tmp_path / "c.hdf5", 30), task=1)
    assert read(made).lengths.tolist() == [5, 5]


def test_what_was_removed_comes_back(tmp_path: Path) -> None:
    """The file of a grown log does not hold all of it."""
    (first,), _ = imported(tmp_path, grown(tmp_path / "log.hdf5", 15), task=0)
    longer = grown(tmp_path / "longer.hdf5", 25)
    (second,), _ = imported(tmp_path, longer, task=0)
    content = second.read_bytes()
    first.unlink()
    (third,), _ = imported(tmp_path, longer, task=0)
    assert read(third).lengths.tolist() == [5, 5, 5]
    assert second.read_bytes() == content
    assert sorted(second.parent.iterdir()) == sorted([second, third])
    again, said = imported(tmp_path, longer, task=0)
    assert (again, "imported already, as" in said) == ([], True)


def test_files_of_one_family_in_a_folder_keep_their_tasks_together(tmp_path: Path) -> None:
    """Expert and medium trajectories of a task without a goal are of one task."""
    for quality, episode in (("expert", ALL[0]), ("medium", ALL[1])):
        write(tmp_path / f"source/{quality}.parquet", about(goals={2: {}}, quality=quality), [episode])
    (tmp_path / "data/imported/robot").mkdir(parents=True)
    (tmp_path / "data/imported/robot/._a.parquet").write_bytes(b"hidden")
    files, _ = imported(tmp_path, tmp_path / "source")
    assert [read(file).task_id.tolist() for file in files] == [[2], [2]]


def test_an_episode_that_a_source_holds_twice_is_imported_once(tmp_path: Path) -> None:
    twice = {name: np.tile(np.arange(5.0), 2) / 10 for name in ("rewards", "x")}
    arrays = {"observations": np.repeat(twice["x"][:, None], 3, 1), "actions": np.repeat(twice["x"][:, None], 2, 1)}
    ends = {"terminals": np.arange(10) % 5 == 4, "timeouts": None}
    (made,), said = imported(tmp_path, plain(tmp_path / "a.hdf5", rewards=twice["rewards"], **arrays, **ends))
    assert read(made).lengths.tolist() == [5]
    assert "left out: 1 episodes that are copies" in said


def test_episodes_of_another_task_are_no_copies(tmp_path: Path) -> None:
    """The same motions may be relabelled."""
    imported(tmp_path, grown(tmp_path / "log.hdf5", 15), task=0)
    other = grown(tmp_path / "other.hdf5", 20)
    (made,), _ = imported(tmp_path, other, task=1)
    assert read(made).episode_id.tolist() == [0, 1, 2, 3]


def test_bounds_that_nobody_states(tmp_path: Path) -> None:
    """In a first import -1 and 1 if all lies within; then those of the files, widened where an action lies beyond."""
    (first,), _ = imported(tmp_path, grown(tmp_path / "log.hdf5", 15), action_low=-0.6, action_high=[0.7, 0.8])
    assert read_metadata(first).action_high == pytest.approx((0.7, 0.8))
    (second,), said = imported(tmp_path, grown(tmp_path / "more.hdf5", 30))
    assert read_metadata(second).action_low == read_metadata(first).action_low
    assert read_metadata(second).action_high == read_metadata(first).action_high
    assert "between -0.6 and 0.8 (those of the family's files and of the actions)" in said
    (third,), _ = imported(tmp_path, plain(tmp_path / "a.hdf5", actions=np.full((10, 2), [0.1, 3.0])))
    assert read_metadata(third).action_high == pytest.approx((0.7, 3.0))
    (other,), _ = imported(tmp_path, grown(tmp_path / "log.hdf5", 15), "other")
    assert (read_metadata(other).action_low, read_metadata(other).action_high) == ((-1, -1), (1, 1))
    with pytest.raises(PipelineError, match=r"--action-low: 3 numbers, but an action of .* has 2: give one for all"):
        imported(tmp_path, grown(tmp_path / "log.hdf5", 10), "third", action_low=[0, 0, 0])


@pytest.mark.parametrize(
    ("goals", "existing", "asked", "found"),
    [
        ({0: {}}, {}, None, {0: 0}),
        ({0: {}}, {0: {}, 4: {}}, None, {0: 5}),
        ({0: {"a": 1}, 1: {}}, {0: {"a": 2}, 1: {"a": 1}}, None, {0: 1, 1: 2}),
        ({3: {"a": 1}, 1: {"a": 2}}, {1: {}}, None, {1: 2, 3: 3}),
        ({3: {}, 1: {"a": 2}}, {1: {}}, 1, {1: 1, 3: 1}),
    ],
)
def test_tasks_are_assigned(goals: dict, existing: dict, asked: int | None, found: dict) -> None:
    assert assign(goals, existing, asked, {}) == found


def test_a_task_that_shares_an_episode_is_that_task_unless_it_has_a_goal_of_its_own() -> None:
    assert assign({0: {}, 1: {"a": 2}}, {0: {}, 4: {}}, None, {0: 4, 1: 4}) == {0: 4, 1: 1}


def test_of_tasks_with_the_same_goal_it_is_the_one_that_shares_episodes() -> None:
    pick = {"task": "pick"}
    assert assign({0: pick, 1: pick}, {0: pick, 1: pick}, None, {0: 1, 1: 0}) == {0: 1, 1: 0}
    assert assign({0: pick, 1: pick}, {0: pick, 1: pick}, None, {}) == {0: 0, 1: 1}


def test_rewards_may_be_given(tmp_path: Path) -> None:
    source = plain(tmp_path / "a.hdf5", rewards=None)
    with pytest.raises(PipelineError, match="holds no rewards: --reward 0 gives every step the same; without rewards"):
        imported(tmp_path, source)
    with pytest.raises(PipelineError, match="--reward success: it does not say which steps succeed"):
        imported(tmp_path, source, reward="success")
    (made,), said = imported(tmp_path, source, reward="0.5")
    assert "reward: 0.5, as asked; success: not recorded, never" in said
    assert set(every(made).reward) == {0.5}


def test_a_reward_of_success_is_sparse(tmp_path: Path, original: Path) -> None:
    (made,), _ = imported(tmp_path, original, reward="success")
    found = every(made)
    np.testing.assert_array_equal(found.reward, found.success.astype(np.float32))
    assert found.reward.any()


def test_bounds_are_asked_for_stated_or_read_off(tmp_path: Path) -> None:
    actions = np.linspace(-3, 5, 20, dtype=np.float32).reshape(10, 2)
    actions[:, 1] = 2.0
    (made,), said = imported(tmp_path, plain(tmp_path / "wide.hdf5", actions=actions))
    metadata = read_metadata(made)
    assert metadata.action_low == pytest.approx((-3.0, 1.0))
    assert metadata.action_high == pytest.approx((float(actions[-1, 0]), 3.0))
    assert "(read off the actions)" in said
    (asked,), _ = imported(tmp_path, plain(tmp_path / "asked.hdf5"), "other", action_low=-2, action_high=2)
    assert read_metadata(asked).action_high == (2.0, 2.0)
    (unit,), _ = imported(tmp_path, plain(tmp_path / "unit.hdf5"), "unit")
    assert read_metadata(unit).action_low == (-1.0, -1.0)


def test_what_validation_refuses_is_not_imported(tmp_path: Path) -> None:
    observations = np.zeros((10, 3), np.float32)
    observations[7, 1] = np.nan
    source = plain(tmp_path / "bad.hdf5", observations=observations)
    with pytest.raises(
        PipelineError, match=r"bad\.hdf5: refused, nothing is imported: task 0, episode 1, step 3: observation is not"
    ):
        imported(tmp_path, source)
    assert not list((tmp_path / "data/imported").rglob("*.parquet"))
    with pytest.raises(PipelineError, match=r"action .* is outside \[\[-0\.5, -0\.5\], \[0\.5, 0\.5\]\]"):
        imported(tmp_path, plain(tmp_path / "far.hdf5"), action_low=-0.5, action_high=0.5)


def test_all_files_of_a_folder_or_none(tmp_path: Path, original: Path) -> None:
    (original.parent / "zzz.parquet").write_bytes(original.read_bytes()[:-40])
    with pytest.raises(PipelineError, match=r"zzz\.parquet"):
        imported(tmp_path, original.parent)
    assert not list((tmp_path / "data/imported").rglob("*.parquet"))
    assert not list((tmp_path / "data/imported").rglob(".import*"))


def test_what_a_killed_import_left_is_removed(tmp_path: Path, original: Path) -> None:
    left = tmp_path / f"data/imported/{FAMILY}/.import.99.tmp"
    left.mkdir(parents=True)
    (left / "half.parquet").write_text("half")
    imported(tmp_path, original)
    assert not left.exists()


def test_another_width_is_refused(tmp_path: Path, original: Path) -> None:
    imported(tmp_path, plain(tmp_path / "a.hdf5", observations=np.zeros((10, 4), np.float32)))
    with pytest.raises(PipelineError, match=r"observation_size is 3, but 4 in .*: import it for another family"):
        imported(tmp_path, original)


def test_a_family_with_a_simulator_is_not_imported_for(tmp_path: Path, original: Path) -> None:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    for family in ("reach", "other"):
        with pytest.raises(PipelineError, match=f"--family {family}: this family has a simulator"):
            imported(tmp_path, original, family)
    with pytest.raises(PipelineError, match=r"--family\.family: String should match pattern"):
        imported(tmp_path, original, "no/name")
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS + "  mine: {environment: {data: recordings}}\n")
    (made,), _ = imported(tmp_path, original, "mine")
    assert made.parent == tmp_path / "recordings", "where params.yaml says"
    (elsewhere,), _ = imported(tmp_path, original, "mine", out=tmp_path / "other")
    assert check_file(elsewhere, {"mine": _family(tmp_path)}).episodes == 5


def test_a_target_of_a_family_with_a_simulator_may_get_imported_ones(tmp_path: Path) -> None:
    """In the drop zone, with the bounds and the horizon of the family."""
    root = make_project(tmp_path, SMALL_PARAMS + "automation: {settle_seconds: 0}\n")
    where, project = root / "data/incoming/point_robot/57", graph.load(root)
    family = project.family("point_robot")
    small = {"observations": np.zeros((10, family.observation_size)), "actions": np.full((10, 2), 0.01)}
    (made,), said = imported(root, plain(root / "a.hdf5", **small), "point_robot", task=57, out=where)
    assert "(those of the family)" in said
    assert (read_metadata(made).horizon, read_metadata(made).action_high) == (family.horizon, (*family.action_high,))
    (outcome,) = take(project)
    assert outcome.state == "accepted", outcome.message
    (here,), _ = imported(root, plain(root / "c.hdf5", observations=np.ones((10, 2))), "point_robot", out=where)
    assert {*read(here, new_task=57).task_id} == {57}, "the folder says it"
    refused = {
        "data/incoming": "not a folder of a target of point_robot: data/incoming/point_robot/TASK is",
        "data/incoming/point_robot": "not a folder of a target of point_robot",
        "data/incoming/other/57": "not a folder of a target of point_robot",
        "data/incoming/point_robot/0": "task 0 is a training task of point_robot, not a target",
    }
    for folder, message in refused.items():
        with pytest.raises(PipelineError, match=message):
            imported(root, here, "point_robot", out=root / folder)
    with pytest.raises(PipelineError, match=r"--task 5: --out .* is the folder of task 57: give one of them alone"):
        imported(root, here, "point_robot", out=where, task=5)
    with pytest.raises(PipelineError, match="--action-low: bounds of new data of a target are those of its family"):
        imported(root, here, "point_robot", out=where, action_low=-3)
    wide = {"observations": np.zeros((10, 9))}
    with pytest.raises(PipelineError, match="observation_size is 9, but 2 in this family: import it for another"):
        imported(root, plain(root / "b.hdf5", **wide), "point_robot", task=57, out=where)


def _family(root: Path):  # type: ignore[no-untyped-def]
    from pd_pipeline.families.base import load_family

    return load_family("mine", {"data": "recordings"}, root)


@pytest.mark.parametrize("source", ["nothing.hdf5", "no/such/folder", "."])
def test_an_unknown_source_is_named_with_the_formats(tmp_path: Path, source: str) -> None:
    with pytest.raises(PipelineError, match=r"not found, or of no known format \(lerobot: .*; minari: .*; d4rl: .*"):
        imported(tmp_path, tmp_path / source)
    with pytest.raises(PipelineError, match=r"--format csv: no such format: choose one of lerobot, minari, d4rl, parq"):
        imported(tmp_path, tmp_path / source, format="csv")


def test_a_format_that_is_named_must_fit(tmp_path: Path, original: Path) -> None:
    with pytest.raises(PipelineError, match=r"\.parquet: not a readable HDF5 file"):
        imported(tmp_path, original, format="d4rl")
    with pytest.raises(PipelineError, match=r"of no known format \(d4rl: an HDF5 file"):
        imported(tmp_path, "nowhere", format="d4rl")
    with pytest.raises(PipelineError, match="holds no parquet data"):
        imported(tmp_path, Path(__file__).parent, format="parquet")
    assert imported(tmp_path, original, format="parquet")[0]


@pytest.mark.parametrize("named", [None, "d4rl"])
def test_a_file_may_have_any_name(tmp_path: Path, named: str | None) -> None:
    assert imported(tmp_path, plain(tmp_path / "log.H5PY"), format=named)[0]
    assert imported(tmp_path, plain(Path(os.fsdecode(bytes(tmp_path) + b"/gr\xfcn")), rewards=np.ones(10)))[0]


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = tmp_path / "log.parquet", importing._write

    def later(*arguments: Any) -> None:
        write(source, about(), now)
        real(*arguments)

    monkeypatch.setattr(importing, "_write", later)
    now = list[Any]()
    for now[:] in (ALL[1:], [*ALL[:3], builders.steps(2, 9, 4, True), *ALL[3:]]):
        write(source, about(), ALL)
        with pytest.raises(PipelineError, match=r"log\.parquet: it changed while it was read: import it when its rec"):
            imported(tmp_path, source)
    assert not list((tmp_path / "data").rglob("*.parquet"))


def test_without_names_a_part_of_an_observation(tmp_path: Path) -> None:
    source = plain(tmp_path / "a.hdf5", timeouts=None)
    for name in ("no", "the", "timeouts"):
        with pytest.raises(PipelineError, match=rf"--without {name}: no such part of an observation: it has observ"):
            imported(tmp_path, source, without=(name,))


def test_each_format_recognises_its_own(tmp_path: Path, original: Path) -> None:
    for named in formats.FORMATS:
        source = original if named == "parquet" else exported(named, tmp_path, original)
        assert [n for n in formats.FORMATS if formats.module(n).detect(str(source))] == [named]


def test_many_tasks_are_counted_and_not_listed(tmp_path: Path) -> None:
    import dataclasses

    made = [dataclasses.replace(ALL[3], task_id=np.full(4, task, np.int32)) for task in range(30)]
    write(tmp_path / "many.parquet", about(goals={task: {} for task in range(30)}), made)
    _, said = imported(tmp_path, tmp_path / "many.parquet")
    assert sum("-> task" in line for line in said) == 10
    assert "and 20 more tasks" in said


def test_sources_stay_as_they_are(tmp_path: Path, original: Path) -> None:
    for named in ("d4rl", "lerobot", "minari"):
        source = exported(named, tmp_path, original)
        before = digest(source)
        imported(tmp_path / "project", source, named)
        assert digest(source) == before


MEASURE = """
import resource, sys
from pathlib import Path
from pd_pipeline.exchange import importing, mapping
from pd_pipeline.trajectories import episodes
import h5py, pyarrow.parquet
episodes.ROWS_PER_GROUP = 2048
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
importing.bring(Path(sys.argv[2]), sys.argv[1], "x", mapping.Asked(), None, None, lambda *_: None, lambda _: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    grown = {}
    for steps in (30_000, 300_000):
        source, rng = tmp_path / f"{steps}.hdf5", np.random.default_rng(0)
        with h5py.File(source, "w") as file:
            for name, shape in (("observations", (steps, 20)), ("actions", (steps, 4)), ("rewards", (steps,))):
                file[name] = rng.uniform(-1, 1, shape).astype(np.float32)
            file["terminals"] = np.zeros(steps, bool)
            file["timeouts"] = np.arange(steps) % 500 == 499
        command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / f"project-{steps}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[steps] = int(done.stdout) / 1024  # MB
    assert grown[300_000] - grown[30_000] < 12, f"{grown}, while the data are 27 MB larger"


def test_a_long_import_of_lerobot_reads_each_row_group_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    from tests.exchange.builders import many

    write_lerobot(tmp_path / "le", about(goals={0: {}}, observation_size=10), many(6, 10), 10)
    count = 0
    real = pq.ParquetFile.read_row_group

    def counted(self, *given, **named):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        return real(self, *given, **named)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    imported(tmp_path, tmp_path / "le")
    assert count == 12, "once for the digests of episodes, once for their steps"


def test_accepted_episodes_of_a_target_are_not_pre_trained_on(tmp_path: Path) -> None:
    """Whatever the number of their task in a log."""
    (made,), _ = imported(tmp_path, grown(tmp_path / "log.hdf5", 10), task=57)
    accepted = tmp_path / f"data/ingested/{FAMILY}/57/0001-expert.parquet"
    accepted.parent.mkdir(parents=True)
    shutil.move(made, accepted)
    about_it = {"source": "a", "digest": "0" * 64, "quality": "expert", "episodes": 2, "steps": 10, "received": "now"}
    accepted.with_suffix(".json").write_text(json.dumps(about_it))
    longer = grown(tmp_path / "longer.hdf5", 25)
    (training,), said = imported(tmp_path, longer, task=3)
    assert read(training).lengths.tolist() == [5, 5, 5]
    assert "left out: 2 episodes that are accepted data of a target" in said
    assert "copies" not in said


def test_more_of_a_target_with_accepted_data_is_not_pre_trained_on(tmp_path: Path, original: Path) -> None:
    """It may be imported into the drop zone alone."""
    accepted = tmp_path / f"data/ingested/{FAMILY}/57/0001-expert.parquet"
    accepted.parent.mkdir(parents=True)
    accepted.touch()
    where = f"data/incoming/{FAMILY}/57"
    with pytest.raises(PipelineError, match=f"task 57 of {FAMILY} is a target with accepted data, .*--out {where}"):
        imported(tmp_path, original, task=57)
    assert not list((tmp_path / "data/imported").rglob("*.parquet"))
