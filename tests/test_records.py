"""Records beside the outs: what the pipeline made, and what it cost."""

import errno
import time
from pathlib import Path

import pytest
import torch

from pd_pipeline import __version__, graph, records, rendering
from pd_pipeline.errors import PipelineError
from pd_pipeline.piece import is_made, run_piece
from pd_pipeline.progress import silent
from pd_pipeline.records import Record
from pd_pipeline.stage import Key, StageContext
from pd_pipeline.storage import digest, read_json, write_json
from tests.dvc_project import SMALL_PARAMS


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "data/plm/x-0"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "inner/b").write_text("b")
    return folder


def test_a_record_distinguishes_its_files_from_others(tmp_path: Path, out: Path) -> None:
    records.write(tmp_path, "plm", "x-0", out, out, made="now", seconds=1.0)
    record = records.find(tmp_path, "plm", "x-0")
    assert record is not None
    assert records.foreign(out, record) == []
    (out / "mine").write_text("mine")
    (out / "a").write_text("changed")
    (out / "inner/link").symlink_to(tmp_path)
    assert records.foreign(out, record) == ["a", "inner/link", "mine"]
    assert records.foreign(out, None) == ["a", "inner/b", "inner/link", "mine"], "without a record all are foreign"
    assert records.foreign(tmp_path / "none", None) == []


def test_the_record_still_knows_the_out_being_replaced(tmp_path: Path, out: Path) -> None:
    """A kill between the record and the exchange of the outs must not make the old out look foreign."""
    records.write(tmp_path, "plm", "x-0", out, out, made="old", seconds=1.0)
    new = tmp_path / "new"
    new.mkdir()
    (new / "a").write_text("new")
    records.write(tmp_path, "plm", "x-0", out, new, made="new", seconds=1.0)
    record = records.find(tmp_path, "plm", "x-0")
    assert record is not None
    assert record.made == "new"
    assert records.foreign(out, record) == []
    assert records.foreign(new, record) == []


def test_an_out_is_not_foreign_however_often_its_replacement_failed(tmp_path: Path, out: Path) -> None:
    """Each failure came after the record was written, as that of a full disk."""
    records.write(tmp_path, "plm", "x-0", out, out, made="first", seconds=1.0)
    for made in ("second", "third"):
        new = tmp_path / made
        new.mkdir()
        (new / "a").write_text(made)
        records.write(tmp_path, "plm", "x-0", out, new, made=made, seconds=1.0)
        assert records.foreign(out, records.find(tmp_path, "plm", "x-0")) == []


def test_too_little_memory_of_a_card_is_told_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    project, key = graph.load(tmp_path), Key("other")

    def run(_: StageContext) -> dict[str, object]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr("pd_pipeline.behavior.policies.run", run)
    with pytest.raises(MemoryError, match="20 GiB"):
        run_piece(project, "behavior_policies", key, silent)
    assert not (tmp_path / "data/behavior_policies/other").exists()


def test_a_full_disk_does_not_hide_the_error_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(records, "write_json", full)

    def work() -> None:
        with records.clock(tmp_path):
            time.sleep(0.1)
            raise PipelineError("the error of the stage")

    with pytest.raises(PipelineError, match="the error of the stage"):
        work()
    assert capsys.readouterr().err == ""


def test_a_refusal_names_the_file_and_where_own_data_goes(out: Path) -> None:
    with pytest.raises(PipelineError, match=r"x-0/mine and 1 more: not written by stage plm.*data/incoming/"):
        records.refuse_foreign(out, ["mine", "other"], "plm")
    records.refuse_foreign(out, [], "plm")


def test_a_broken_record_is_named(tmp_path: Path, out: Path) -> None:
    file = records.path(tmp_path, "plm", "x-0")
    write_json(file, {"made": 1})
    with pytest.raises(PipelineError, match=r"x-0\.json"):
        records.find(tmp_path, "plm", "x-0")


def test_the_clock_adds_up_what_killed_processes_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "TICK_SECONDS", 0.05)
    file, deadline = tmp_path / records.CLOCK_FILE, time.monotonic() + 60
    with records.clock(tmp_path) as first:
        while not file.is_file() or read_json(file)["seconds"] < 0.1:  # what a SIGKILL would leave
            assert time.monotonic() < deadline, "it does not tick"
            time.sleep(0.02)
        spent = first.seconds
    with records.clock(tmp_path) as second:
        assert second.seconds >= spent
        time.sleep(0.2)
    assert read_json(file)["seconds"] >= spent + 0.2


def test_wall_clock_figures_are_in_no_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An out that is made again more slowly has the same digest, and the record has both times."""
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    project, key = graph.load(tmp_path), Key("point_robot")
    run_piece(project, "behavior_policies", key, silent)
    for stage in ("trajectories", "prompts"):
        run_piece(project, stage, key, silent)
    outs = [tmp_path / project.out(stage, key) for stage in ("behavior_policies", "trajectories", "prompts")]
    before = [digest(out) for out in outs]
    from pd_pipeline.prompts import stage as prompts

    run = prompts.run

    def slow(context: StageContext) -> dict[str, object]:
        time.sleep(0.3)
        return run(context)

    monkeypatch.setattr(prompts, "run", slow)
    for stage in ("behavior_policies", "trajectories", "prompts"):
        run_piece(project, stage, key, silent)
    assert [digest(out) for out in outs] == before
    record = records.find(tmp_path, "prompts", key)
    assert isinstance(record, Record)
    assert record.seconds >= 0.3


def test_a_record_says_what_an_out_was_made_from_and_by(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    project, key = graph.load(tmp_path), Key("point_robot")
    for stage in ("behavior_policies", "trajectories"):
        run_piece(project, stage, key, silent)
    record = records.find(tmp_path, "trajectories", key)
    assert isinstance(record, Record)
    assert record.inputs == {"behavior_policies": digest(tmp_path / "data/behavior_policies/point_robot")}
    assert record.code == rendering.digests(project, "trajectories", key)["code"]
    assert (record.version, record.revision) == (__version__, "unknown"), "not in git"
    assert record.environment == project.family("point_robot").params.model_dump(mode="json")
    assert records.digest_of(record.files) == digest(tmp_path / "data/trajectories/point_robot")


def test_the_digest_of_a_listing_is_that_of_its_folder(out: Path) -> None:
    for name in ("a.b", "inner-2", "inner.txt", "B"):  # sorted as paths, not as text
        (out / name).write_text(name)
    (out / "inner/link").symlink_to(out)
    listing = records.listing(out)
    assert records.digest_of(dict(sorted(listing.items(), reverse=True))) == digest(out)


def test_a_finished_piece_is_up_to_date_until_something_changes(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS)
    project, key = graph.load(tmp_path), Key("point_robot")
    assert not is_made(project, "behavior_policies", key)
    run_piece(project, "behavior_policies", key, silent)
    assert is_made(project, "behavior_policies", key)
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS.replace("horizon: 6", "horizon: 7"))
    assert not is_made(graph.load(tmp_path), "behavior_policies", key)
    assert is_made(project, "behavior_policies", key)
    (tmp_path / "data/behavior_policies/point_robot/policies.json").write_text("{}")
    assert not is_made(project, "behavior_policies", key)
