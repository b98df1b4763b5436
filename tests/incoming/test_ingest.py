"""Files from the drop zone are accepted, quarantined, recognised or left alone, and none is lost."""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.families.point_robot import PointRobot
from pd_pipeline.incoming import ingest as module
from pd_pipeline.incoming import store
from pd_pipeline.incoming.drop_zone import task_of
from pd_pipeline.incoming.ingest import Outcome, ingest
from pd_pipeline.storage import file_digest
from pd_pipeline.trajectories.reading import write
from tests.builders import changed, columns, metadata

LIKE_THE_FAMILY = {"observation_size": 2, "action_low": (-1.0, -1.0), "action_high": (1.0, 1.0), "horizon": 12}
NEW = 57
LATER = datetime.now(UTC) + timedelta(hours=1)


def drop(
    root: Path, target: str = "57", name: str = "a.parquet", task: int = NEW, seed: int = 0, **about: object
) -> Path:
    path = root / "data/incoming/point_robot" / target / name
    values = LIKE_THE_FAMILY | {"goals": {task: {}}} | about
    write(path, metadata(**values), [columns(tasks=(task,), d_s=2, seed=seed)])
    return path


@pytest.fixture
def run(tmp_path: Path, point_robot: PointRobot) -> Callable[..., list[Outcome]]:
    def call(moment: datetime = LATER) -> list[Outcome]:
        return ingest(tmp_path, {"point_robot": point_robot}, settle_seconds=10, now=moment)

    return call


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_good_file_is_moved_whole_and_described(tmp_path: Path, run: Callable[..., list[Outcome]]) -> None:
    path = drop(tmp_path, quality="demo")
    content = path.read_bytes()
    (outcome,) = run()
    assert (outcome.state, outcome.family, outcome.task) == ("accepted", "point_robot", NEW)
    (accepted,) = store.files(tmp_path, "point_robot", NEW)
    assert accepted == tmp_path / "data/ingested/point_robot/57/0001-demo.parquet"
    assert accepted.read_bytes() == content
    known = store.received(accepted)
    assert (known.source, known.quality, known.episodes, known.steps) == (
        "data/incoming/point_robot/57/a.parquet",
        "demo",
        2,
        10,
    )
    assert known.digest == file_digest(accepted).hex()
    assert known.received == LATER.isoformat(timespec="seconds")
    assert files_in(tmp_path / "data/incoming") == []
    assert store.targets(tmp_path, "point_robot") == {NEW: {"demo": 2}}


def test_files_are_numbered_as_they_were_written(tmp_path: Path, run: Callable[..., list[Outcome]]) -> None:
    for seed, (name, age) in enumerate((("b.parquet", 300), ("a.parquet", 200))):
        stamp = LATER.timestamp() - 3600 - age
        os.utime(drop(tmp_path, name=name, seed=seed), (stamp, stamp))
    run()
    drop(tmp_path, name="c.parquet", seed=2)
    run()
    sources = [store.received(file).source.split("/")[-1] for file in store.files(tmp_path, "point_robot", NEW)]
    assert sources == ["b.parquet", "a.parquet", "c.parquet"]
    assert store.targets(tmp_path, "point_robot") == {NEW: {"expert": 6}}


def test_what_is_still_written_is_left_until_it_settles_or_is_marked(
    tmp_path: Path, run: Callable[..., list[Outcome]]
) -> None:
    path = drop(tmp_path)
    soon = datetime.fromtimestamp(path.stat().st_mtime + 9, UTC)
    assert [outcome.state for outcome in run(soon)] == ["waiting"]
    assert path.exists()
    assert [outcome.state for outcome in run(soon + timedelta(seconds=2))] == ["accepted"]
    marked = drop(tmp_path, name="b.parquet", seed=1)
    marked.with_name("b.parquet.done").touch()
    assert [outcome.state for outcome in run(soon)] == ["accepted"]
    assert files_in(tmp_path / "data/incoming") == []
    drop(tmp_path, name="c.parquet", seed=2)
    (tmp_path / "data/incoming/point_robot/57/.done").touch()
    assert [outcome.state for outcome in run(soon)] == ["accepted"]


def test_a_file_that_grows_while_it_is_read_waits(
    tmp_path: Path, run: Callable[..., list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop(tmp_path)
    check = module.check_file

    def growing(file: Path, *arguments: object, **named: object) -> object:
        found = check(file, *arguments, **named)  # type: ignore[arg-type]
        with file.open("ab") as end:
            end.write(b"more")
        return found

    monkeypatch.setattr(module, "check_file", growing)
    assert [outcome.state for outcome in run()] == ["waiting"]
    assert path.exists()


def test_hidden_and_unfinished_names_are_ignored(tmp_path: Path, run: Callable[..., list[Outcome]]) -> None:
    folder = drop(tmp_path).parent
    run()
    names = (".a.parquet.x1", "b.parquet.tmp", "c.parquet.part")
    for name in names:
        (folder / name).write_bytes(b"half")
    assert run() == []
    assert files_in(tmp_path / "data/incoming") == sorted(f"point_robot/57/{name}" for name in names)


def test_the_same_content_is_accepted_once(tmp_path: Path, run: Callable[..., list[Outcome]]) -> None:
    content = drop(tmp_path).read_bytes()
    run()
    again = tmp_path / "data/incoming/point_robot/point_robot-57/again.parquet"
    again.parent.mkdir(parents=True)
    again.write_bytes(content)
    (outcome,) = run()
    assert outcome.state == "duplicate"
    assert "data/ingested/point_robot/57/0001-expert.parquet" in outcome.message
    assert not again.exists()
    assert len(store.files(tmp_path, "point_robot", NEW)) == 1


def not_finite(path: Path) -> None:
    made = columns(tasks=(NEW,), d_s=2)
    values = LIKE_THE_FAMILY | {"goals": {NEW: {}}}
    write(path, metadata(**values), [made])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_copies_of_episodes_are_counted_and_a_file_of_copies_alone_is_removed(
    tmp_path: Path, run: Callable[..., list[Outcome]]
) -> None:
    first, second = (columns(tasks=(NEW,), d_s=2, seed=seed) for seed in (0, 1))
    half = first.select(first.episode_id == 1)
    for name, made in (("a", [first]), ("b", [half, replace(second, episode_id=second.episode_id + 2)]), ("c", [half])):
        path = tmp_path / f"data/incoming/point_robot/57/{name}.parquet"
        write(path, metadata(**LIKE_THE_FAMILY, goals={NEW: {}}), made)
        (outcome,) = run()
        if name == "b":
            assert outcome.state == "accepted"
            assert outcome.message.endswith("0002-expert.parquet: 3 episodes, 1 of them copies, which are left out")
    assert outcome.state == "duplicate"
    assert outcome.message == "all of its episodes are in accepted files of point_robot-57 already"
    assert not path.exists()
    assert store.targets(tmp_path, "point_robot") == {NEW: {"expert": 4}}


def test_a_file_with_another_label_is_not_removed(tmp_path: Path, run: Callable[..., list[Outcome]]) -> None:
    drop(tmp_path, quality="medium")
    run()
    content = drop(tmp_path, quality="expert").read_bytes()
    (outcome,) = run()
    assert outcome.state == "quarantined"
    assert "in accepted files of another quality already" in outcome.message
    assert (tmp_path / "data/quarantine/point_robot/57/a.parquet").read_bytes() == content


@pytest.mark.parametrize(
    ("where", "make", "reason"),
    [
        ("57/a.parquet", not_finite, "damaged"),
        ("57/a.parquet", lambda path: path.write_bytes(b"nothing"), "not a readable Parquet file"),
        (
            "57/a.csv",
            lambda path: path.write_text("1,2"),
            "not a .parquet file: `pd-pipeline import SOURCE --family point_robot --task 57",
        ),
        ("a.parquet", lambda path: path.write_bytes(b""), "put it into data/incoming/<family>/<task>/"),
        ("x/y/z/a.parquet", lambda path: path.write_bytes(b""), "put it into data/incoming/<family>/<task>/"),
        ("kitchen/a.parquet", lambda path: path.write_bytes(b""), "'kitchen' has no task number: name the folder 57"),
        ("0/a.parquet", lambda path: path.write_bytes(b""), "task 0 is a training task of point_robot"),
        ("57/a.parquet", lambda path: path.symlink_to("/etc/hostname"), "a link: what it points to could change"),
        ("57/a.parquet", os.mkfifo, "not a regular file"),
    ],
)
def test_a_bad_file_is_quarantined_with_its_reason_and_others_go_on(
    where: str, make: Callable[[Path], object], reason: str, tmp_path: Path, run: Callable[..., list[Outcome]]
) -> None:
    path = tmp_path / "data/incoming/point_robot" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    good = drop(tmp_path, target="58", task=58)
    outcomes = {outcome.file.as_posix(): outcome for outcome in run()}
    name = f"data/incoming/point_robot/{where}"
    assert outcomes[name].state == "quarantined"
    assert reason in outcomes[name].message
    assert "\n" not in outcomes[name].message
    assert outcomes[good.relative_to(tmp_path).as_posix()].state == "accepted"
    moved = tmp_path / "data/quarantine/point_robot" / where
    assert os.path.lexists(moved)
    assert reason in moved.with_name(moved.name + ".reason.txt").read_text()
    assert not os.path.lexists(path)
    assert run() == []


@pytest.mark.parametrize(
    ("about", "tasks", "reason"),
    [
        ({"horizon": 13}, (NEW,), "horizon is 13, but family 'point_robot' of this project has 12"),
        ({"family": "reach"}, (NEW,), "unknown family 'reach'"),
        ({"goals": {NEW: {}, 58: {}}}, (NEW, 58), "task 58 is not among the tasks of family"),
        ({"goals": {3: {}}}, (3,), "holds task 3, but the target is task 57: one file per target"),
    ],
)
def test_a_file_that_is_not_of_its_target_is_quarantined(
    about: dict[str, object],
    tasks: tuple[int, ...],
    reason: str,
    tmp_path: Path,
    run: Callable[..., list[Outcome]],
    point_robot: PointRobot,
) -> None:
    path = tmp_path / "data/incoming/point_robot/57/a.parquet"
    write(path, metadata(**(LIKE_THE_FAMILY | {"goals": {NEW: {}}} | about)), [columns(tasks=tasks, d_s=2)])
    (outcome,) = run()
    assert outcome.state == "quarantined"
    assert reason in outcome.message


def test_an_unknown_family_is_quarantined(tmp_path: Path, run: Callable[..., list[Outcome]]) -> None:
    path = tmp_path / "data/incoming/robot/57/a.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    (outcome,) = run()
    assert "'robot' is not among run.families of params.yaml (point_robot): add it there" in outcome.message


def test_a_family_that_is_not_run_waits_for_it(tmp_path: Path, point_robot: PointRobot) -> None:
    path = drop(tmp_path)
    (outcome,) = ingest(tmp_path, {}, 0, LATER, others={"point_robot"})
    assert (outcome.state, path.exists()) == ("waiting", True)
    assert outcome.message == "'point_robot' is not among run.families of params.yaml: add it there"
    (outcome,) = ingest(tmp_path, {"point_robot": point_robot}, 0, LATER)
    assert outcome.state == "accepted"


def test_a_damaged_accepted_file_does_not_hold_up_a_new_one(tmp_path: Path, run: Callable[..., list[Outcome]]) -> None:
    drop(tmp_path)
    run()
    (accepted,) = store.files(tmp_path, "point_robot", NEW)
    accepted.write_bytes(b"gone")
    drop(tmp_path, seed=1)
    assert [outcome.state for outcome in run()] == ["accepted"]


def test_without_what_is_known_of_an_accepted_file_new_ones_wait(
    tmp_path: Path, run: Callable[..., list[Outcome]]
) -> None:
    drop(tmp_path)
    run()
    (accepted,) = store.files(tmp_path, "point_robot", NEW)
    (about := accepted.with_suffix(".json")).rename(tmp_path / "about.json")
    drop(tmp_path, seed=1)
    (outcome,) = run()
    assert outcome.state == "waiting"
    assert "must be mended first" in outcome.message
    assert "0001-expert.json: no such file" in outcome.message
    (tmp_path / "about.json").rename(about)
    assert [outcome.state for outcome in run()] == ["accepted"]


@pytest.mark.parametrize(
    "name", [b"gr\xfcn.parquet", "\N{CJK UNIFIED IDEOGRAPH-4E00}".encode() * 80 + b".parquet"], ids=["bytes", "long"]
)
def test_odd_names_hold_up_nothing(tmp_path: Path, run: Callable[..., list[Outcome]], name: bytes) -> None:
    good = drop(tmp_path, name="z.parquet")
    odd = Path(os.fsdecode(bytes(good.parent) + b"/" + name))
    odd.write_bytes(b"bad")
    os.utime(odd, (0, 0))
    found = run()
    assert [outcome.state for outcome in found] == ["quarantined", "accepted"]
    print(found[0].file, found[0].message)  # in any encoding
    assert not odd.exists()
    (kept,) = [path for path in (tmp_path / "data/quarantine").rglob("*.parquet")]
    assert kept.read_bytes() == b"bad"
    assert module.quarantined(tmp_path)[0].startswith("data/incoming/point_robot/57/")
    kept.unlink()
    assert module.quarantined(tmp_path) == [], "its user has settled it"


def test_a_file_that_cannot_be_moved_waits_and_others_go_on(
    tmp_path: Path, run: Callable[..., list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop(tmp_path)
    os.utime(path, (0, 0))
    drop(tmp_path, name="b.parquet", seed=1)
    rename = os.rename

    def refused(source: Path, target: Path) -> None:
        if Path(source) == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    first, second = run()
    assert (first.state, second.state) == ("waiting", "accepted")
    assert first.message.startswith("it cannot be taken: ")
    assert "Permission denied" in first.message


def test_a_link_from_another_file_system_is_quarantined(
    tmp_path: Path, run: Callable[..., list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, rename = drop(tmp_path).with_name("link.parquet"), os.rename
    link.symlink_to("nowhere")

    def other_file_system(source: Path, target: Path) -> None:
        if Path(source) == link:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", other_file_system)
    assert sorted(outcome.state for outcome in run()) == ["accepted", "quarantined"]
    assert (tmp_path / "data/quarantine/point_robot/57/link.parquet").readlink() == Path("nowhere")


def test_a_marker_of_a_folder_is_not_about_files_that_come_later(
    tmp_path: Path, run: Callable[..., list[Outcome]]
) -> None:
    marker = drop(tmp_path).with_name(".done")
    marker.touch()
    now = datetime.now(UTC)
    assert [outcome.state for outcome in run(now)] == ["accepted"]
    later = drop(tmp_path, name="b.parquet", seed=1)
    os.utime(
        later, (0, time.time() + 5)
    )  # a copy keeps the time of what it is a copy of; here of a clock that is ahead
    (outcome,) = run(now)
    assert outcome.state == "waiting"
    assert "ahead of this machine's clock" in outcome.message
    marker.touch()
    assert [outcome.state for outcome in run(now)] == ["accepted"]


def test_settling_at_once_is_at_once_whatever_the_clock(tmp_path: Path, point_robot: PointRobot) -> None:
    path = drop(tmp_path)
    os.utime(path, (0, time.time() + 3600))
    (outcome,) = ingest(tmp_path, {"point_robot": point_robot}, settle_seconds=0)
    assert outcome.state == "accepted"


def test_what_changes_at_the_last_moment_is_not_accepted(
    tmp_path: Path, run: Callable[..., list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = drop(tmp_path), module._nothing_new

    def growing(*arguments: Any) -> str:
        found = real(*arguments)
        with path.open("ab") as end:
            end.write(b"more")
        return found

    monkeypatch.setattr(module, "_nothing_new", growing)
    assert [outcome.state for outcome in run()] == ["waiting"]
    assert store.files(tmp_path, "point_robot", NEW) == []


def test_nothing_in_quarantine_is_replaced(tmp_path: Path, run: Callable[..., list[Outcome]]) -> None:
    path = tmp_path / "data/incoming/point_robot/57/a.parquet"
    path.parent.mkdir(parents=True)
    for text in ("one", "two"):
        path.write_text(text)
        run()
    folder = tmp_path / "data/quarantine/point_robot/57"
    assert [(folder / name).read_text() for name in ("a.parquet", "a-2.parquet")] == ["one", "two"]


def test_a_file_from_another_file_system_is_copied_whole(
    tmp_path: Path, run: Callable[..., list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop(tmp_path)
    content = path.read_bytes()
    rename = os.rename

    def other_file_system(source: Path, target: Path) -> None:
        if Path(source) == path:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", other_file_system)
    assert [outcome.state for outcome in run()] == ["accepted"]
    assert store.files(tmp_path, "point_robot", NEW)[0].read_bytes() == content
    assert not path.exists()


def test_killed_before_the_move_nothing_is_lost(
    tmp_path: Path, run: Callable[..., list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop(tmp_path)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert path.exists()
    assert store.targets(tmp_path, "point_robot") == {}, "a JSON without its file counts for nothing"
    assert [outcome.state for outcome in run()] == ["accepted"]
    assert [file.name for file in store.files(tmp_path, "point_robot", NEW)] == ["0001-expert.parquet"]


@pytest.mark.parametrize(
    ("name", "task"),
    [("57", 57), ("reach-57", 57), ("0", 0), ("reach", None), ("057", None), ("-5", None), ("5.5", None)],
)
def test_the_task_in_the_name_of_a_folder(name: str, task: int | None) -> None:
    assert task_of(name) == task


def test_bounds_of_actions_are_checked(tmp_path: Path, run: Callable[..., list[Outcome]]) -> None:
    path = drop(tmp_path, action_low=(-2.0, -2.0), action_high=(2.0, 2.0))
    made = changed(columns(tasks=(NEW,), d_s=2), "action", 3, np.float32(1.5))
    write(path, metadata(**(LIKE_THE_FAMILY | {"goals": {NEW: {}}, "action_high": (2.0, 2.0)})), [made])
    (outcome,) = run()
    assert outcome.state == "quarantined"
    assert "action_high is (2.0, 2.0), but family 'point_robot'" in outcome.message
