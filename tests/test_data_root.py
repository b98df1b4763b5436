"""Outs that machines share, in a folder and in a bucket: whole, checked, and never in place of a user's files."""

import math
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline import doctor, graph, lineage, made_from, records
from pd_pipeline.data_root import DataRoot, Entry, Gone, fetch_beside, obtain, of, offer
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.piece import name_of
from pd_pipeline.progress import silent
from pd_pipeline.records import Record
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest, read_json, write_json
from tests import s3
from tests.dvc_project import SMALL_PARAMS, change, make_project

PARAMS = SMALL_PARAMS.replace("[point_robot, other]", "[point_robot]")
POLICIES, TRAJECTORIES, KEY = "behavior_policies", "trajectories", Key("point_robot")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a folder in a bucket, and an environment in which it is found."""
    with s3.serving("robots") as address, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in s3.environment(address).items():
            patch.setenv(name, value)
        yield "s3://robots/outs"


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return shared(tmp_path)
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def shared(tmp_path: Path) -> str:
    (tmp_path / "shared").mkdir()
    return str(tmp_path / "shared")


def project(folder: Path, url: str, params: str = PARAMS) -> Graph:
    text = params.replace("machine: {device: cpu}", f"machine: {{device: cpu, data_root: {url!r}}}")
    return graph.load(make_project(folder, text))


def make_both(given: Graph, **more: Any) -> None:
    for stage in (POLICIES, TRAJECTORIES):
        lineage.run(given, stage, KEY, silent, **more)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are computed from now on, not taken."""
    seen: list[str] = []
    compute = lineage.run_piece

    def counting(given: Graph, stage: str, *more: Any) -> Any:
        seen.append(stage)
        return compute(given, stage, *more)

    monkeypatch.setattr(lineage, "run_piece", counting)
    return seen


def test_what_one_machine_has_made_no_other_makes_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = project(tmp_path / "one", url)
    made = lineage.run(one, POLICIES, KEY, silent), lineage.run(one, TRAJECTORIES, KEY, silent)
    computed = counted(monkeypatch)
    two = project(tmp_path / "two", url)
    taken = lineage.run(two, POLICIES, KEY, silent), lineage.run(two, TRAJECTORIES, KEY, silent)
    assert computed == []
    assert taken == made, "metrics, and the digest that DVC knows"
    assert digest(two.root / "data/trajectories") == digest(one.root / "data/trajectories")
    there, here = (records.find(each.root, TRAJECTORIES, KEY) for each in (one, two))
    assert here == there
    assert lineage.run(two, TRAJECTORIES, KEY, silent).skipped
    make_both(two, force=True)
    assert computed == [POLICIES, TRAJECTORIES]


def test_other_parameters_are_other_outs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = shared(tmp_path)
    one = project(tmp_path / "one", url)
    make_both(one)
    computed = counted(monkeypatch)
    change(one.root, "horizon: 6", "horizon: 7")
    make_both(one)
    assert computed == [POLICIES, TRAJECTORIES]
    change(one.root, "horizon: 7", "horizon: 6")
    make_both(one)
    assert computed == [POLICIES, TRAJECTORIES], "the first ones are still there"
    make_both(project(tmp_path / "two", url, PARAMS.replace("device: cpu", "device: auto")))
    assert computed == [POLICIES, TRAJECTORIES, POLICIES, TRAJECTORIES], "without a data root"


def test_files_of_the_user_are_not_replaced(tmp_path: Path) -> None:
    url = shared(tmp_path)
    make_both(project(tmp_path / "one", url))
    two = project(tmp_path / "two", url)
    lineage.run(two, POLICIES, KEY, silent)
    own = two.root / "data/trajectories/point_robot/notes.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(PipelineError, match=r"notes.txt: not written by stage trajectories"):
        lineage.run(two, TRAJECTORIES, KEY, silent)
    assert [path.name for path in own.parent.iterdir()] == ["notes.txt"]


def test_damage_is_named_and_nothing_half_written(url: str, tmp_path: Path) -> None:
    root = DataRoot(url)
    (tmp_path / "from/deep").mkdir(parents=True)
    (tmp_path / "from/a").write_text("first")
    (tmp_path / "from/deep/b").write_text("second")
    files = records.listing(tmp_path / "from")
    root.send(tmp_path / "from", files)
    root.fetch(files, tmp_path / "to")
    assert records.listing(tmp_path / "to") == files
    place = root._place(files["a"])
    root._files.pipe_file(place, b"fir")  # as an upload that was cut off
    root.send(tmp_path / "from", files)
    root.fetch(files, tmp_path / "again")
    root._files.pipe_file(place, b"First")
    (tmp_path / "into").mkdir()
    with pytest.raises(Gone, match=rf"{re.escape(url)}: .*{files['a']} was damaged, and is removed: run again"):
        fetch_beside(root, files, tmp_path / "into")
    assert not any((tmp_path / "into").iterdir())
    with pytest.raises(Gone, match=rf"{re.escape(url)}: .*{files['a']} is not there any more"):
        root.fetch(files, tmp_path / "once more")
    made = "a1" * 32
    assert root.find(made) is None
    entry = Entry(record=Record(out="data/x", made=made, files=files, seconds=1.0), metrics={"loss": 0.5})
    root.enter(made, entry)
    assert root.find(made) == entry
    root._files.pipe_file(root._entry(made), b"{}")
    assert root.find(made) is None, "as if it were not there"


def test_what_was_removed_or_damaged_there_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bucket may give its objects a lifetime; files are older than the entries that name them."""
    url = shared(tmp_path)
    make_both(project(tmp_path / "one", url))
    for file in Path(url).glob("files/*/*"):
        file.unlink()
    computed = counted(monkeypatch)
    make_both(project(tmp_path / "two", url))
    assert computed == [POLICIES, TRAJECTORIES]
    assert "trajectories point_robot: made again: " in caplog.text
    make_both(project(tmp_path / "three", url))
    assert computed == [POLICIES, TRAJECTORIES], "and is there again"


def test_what_is_fetched_beside_other_files_appears_whole(tmp_path: Path) -> None:
    root = DataRoot(shared(tmp_path))
    (tmp_path / "from/part-1").mkdir(parents=True)
    (tmp_path / "from/part-1/scores").write_text("1")
    (tmp_path / "into/part-1").mkdir(parents=True)
    (tmp_path / "into/part-1/older").touch()
    (tmp_path / "into/kept").touch()
    files = records.listing(tmp_path / "from")
    root.send(tmp_path / "from", files)
    fetch_beside(root, files, tmp_path / "into")
    assert sorted(records.listing(tmp_path / "into")) == ["kept", "part-1/scores"]


def fails(*_: Any, **__: Any) -> None:
    raise OSError("the bucket is full")


def test_work_that_cannot_be_left_there_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = shared(tmp_path)
    one = project(tmp_path / "one", url)
    with monkeypatch.context() as patch:
        patch.setattr(DataRoot, "enter", fails)
        make_both(one)
    assert f"trajectories point_robot: is made, but not left at {url}: the bucket is full" in caplog.text
    assert lineage.run(one, TRAJECTORIES, KEY, silent).skipped, "it is recorded, and now it is left there"
    assert lineage.run(one, POLICIES, KEY, silent).skipped
    computed = counted(monkeypatch)
    make_both(project(tmp_path / "two", url))
    assert computed == []
    monkeypatch.setattr(DataRoot, "find", fails)
    assert lineage.run(one, TRAJECTORIES, KEY, silent).skipped, "nobody asks again"


@pytest.mark.parametrize("by_dvc", [True, False], ids=["recorded in DVC", "outside DVC"])
def test_what_was_made_before_is_left_there_and_in_another_one(
    by_dvc: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = graph.load(make_project(tmp_path / "one", PARAMS))
    if not by_dvc:
        shutil.rmtree(one.root / ".dvc")
    make_both(one)
    computed = counted(monkeypatch)
    before = "machine: {device: cpu}"
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        now = f"machine: {{device: cpu, data_root: {str(tmp_path / name)!r}}}"
        change(one.root, before, now)
        before = now
        make_both(graph.load(one.root))
        make_both(project(tmp_path / f"of {name}", str(tmp_path / name)))
    assert computed == []


def test_of_two_that_made_the_same_the_first_stays_unless_forced(tmp_path: Path) -> None:
    one = project(tmp_path / "one", shared(tmp_path))
    make_both(one)
    root = of(one)
    assert root is not None
    name = name_of(made_from.work_digest(one, TRAJECTORIES, KEY))
    entry = root.find(name)
    assert entry is not None
    lineage.run(one, TRAJECTORIES, KEY, silent, force=True)
    assert root.find(name) == entry, "the same files"
    other = Entry(record=entry.record.model_copy(update={"files": {"x": "0" * 64}}))
    root.enter(name, other)
    offer(root, one, TRAJECTORIES, KEY, {})
    assert root.find(name) == other
    offer(root, one, TRAJECTORIES, KEY, {"steps": np.float32(3.0), "gap": math.nan}, replace=True)
    found = root.find(name)
    assert found is not None
    assert found.record.files == entry.record.files
    assert found.metrics["steps"] == 3.0
    assert math.isnan(found.metrics["gap"])


def test_another_version_of_what_computes_makes_another_out(monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of("made")
    monkeypatch.setattr("pd_pipeline.piece.metadata.version", lambda _: "0.1")
    other = name_of("made")
    assert other != before
    monkeypatch.setattr("pd_pipeline.piece.metadata.version", lambda _: "0.1+cpu")
    assert name_of("made") == other, "the build for a card is the same version"


@pytest.mark.parametrize("known", [True, False])
def test_outs_of_other_versions_are_not_left_there_under_those_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Such as those made before an upgrade, or before records named versions."""
    one = graph.load(make_project(tmp_path / "one", PARAMS))
    make_both(one)
    place = records.path(one.root, TRAJECTORIES, KEY)
    values = read_json(place)
    assert values["packages"]["mujoco"]
    write_json(place, values | {"packages": {"mujoco": "0.1"} if known else {}})
    (tmp_path / "shared").mkdir()
    change(one.root, "machine: {device: cpu}", f"machine: {{device: cpu, data_root: {str(tmp_path / 'shared')!r}}}")
    make_both(graph.load(one.root))
    entered = [read_json(path)["record"]["out"] for path in (tmp_path / "shared/outs").glob("*/*.json")]
    assert entered == [f"data/behavior_policies/{KEY}"]


def test_many_send_the_same_at_once(tmp_path: Path) -> None:
    root = DataRoot(shared(tmp_path))
    (tmp_path / "from").mkdir()
    for name in range(40):
        (tmp_path / "from" / str(name)).write_bytes(bytes(100_000))
    files = records.listing(tmp_path / "from")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: root.send(tmp_path / "from", files), range(8)))
    root.fetch(files, tmp_path / "to")
    assert records.listing(tmp_path / "to") == files
    assert len([path for path in (tmp_path / "shared").rglob("*") if path.is_file()]) == 1


def test_the_report_is_written_by_everyone_for_themselves(tmp_path: Path) -> None:
    """It names the machine and the revision."""
    one = project(tmp_path / "one", shared(tmp_path), PARAMS)
    seen: list[str] = []

    def compute(_: Graph, stage: str, *__: Any) -> dict[str, Any]:
        seen.append(stage)
        return {}

    obtain(one, "report", Key(), silent, compute)
    assert seen == ["report"]
    assert not any((tmp_path / "shared").iterdir())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("nosuch://robots/outs", PipelineError, r"params.yaml: machine.data_root: nosuch://robots/outs: .*nosuch"),
        ("s3://robots/outs", OSError, r"machine.data_root: s3://robots/outs: .*connect"),
        ("nowhere", PipelineError, r"machine.data_root: .*/nowhere: there is no .*/nowhere: make it, mount it"),
    ],
)
def test_a_place_that_is_not_there_is_named(
    wrong: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(error, match=message):
        lineage.run(project(tmp_path, wrong), POLICIES, KEY, silent)
    s3fs.S3FileSystem.clear_instance_cache()
    assert not (tmp_path / "data/behavior_policies").exists()


def test_a_path_is_relative_to_the_project(tmp_path: Path) -> None:
    assert (root := of(project(tmp_path / "one", "../shared"))) is not None
    assert Path(root.url).resolve() == tmp_path / "shared"
    assert of(graph.load(make_project(tmp_path / "two", PARAMS))) is None


def test_the_doctor_says_whether_it_answers(tmp_path: Path) -> None:
    def said(url: str) -> list[tuple[str, str]]:
        given = project(tmp_path / "project", url)
        return [(found.level, found.text) for found in doctor.shared_outs(given)]

    ((level, text),) = said(str(tmp_path / "shared"))
    assert level == "problem"
    assert "there is no" in text
    shutil.rmtree(tmp_path / "project")
    folder = shared(tmp_path)
    assert said(folder) == [("ok", f"machine.data_root: {folder} answers")]
    shutil.rmtree(tmp_path / "project")
    ((level, text),) = said("nosuch://robots")
    assert level == "problem"
    assert "name a folder, or a URL whose package is installed" in text
