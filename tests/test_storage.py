"""Files appear complete or not at all; equal contents have equal bytes and digests."""

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pd_pipeline import storage
from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import (
    atomic_directory,
    atomic_file,
    digest,
    expect_arrays,
    file_digest,
    load_arrays,
    read_json,
    read_model,
    recover,
    save_arrays,
    write_json,
)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    path.write_text("old")
    with suppress(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half-way")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_old_directory_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_text("old")
    with suppress(RuntimeError), atomic_directory(path) as temporary:
        (temporary / "new").write_text("half")
        raise RuntimeError("half-way")
    assert [p.name for p in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for name in ("first", "second"):
        with atomic_directory(path) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / name).write_text(name)
    assert [p.name for p in (path / "sub").iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged in one call", "in two renames"])
@pytest.mark.parametrize("moment", range(4))
def test_a_kill_at_any_rename_leaves_one_directory(tmp_path: Path, exchange: bool, moment: int) -> None:
    """Once the piece is made again, leftovers are gone and the surviving directory is back in place."""
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_text("old")
    code = f"""
import os, pathlib
from pd_pipeline import storage
calls = 0
def dying(function):
    def call(*args):
        global calls
        if calls == {moment}:
            os._exit(9)
        calls += 1
        done = function(*args)
        if calls == {moment}:
            os._exit(9)
        return done
    return call
exchange = storage._exchanged if {exchange} else lambda a, b: False
os.rename, storage._exchanged, storage.remove = dying(os.rename), dying(exchange), dying(storage.remove)
with storage.atomic_directory(pathlib.Path({str(path)!r})) as temporary:
    (temporary / "new").write_text("new")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 9 if moment < 2 else done.returncode in (0, 9)
    recover(path)
    assert [p.name for p in path.iterdir()] in (["old"], ["new"])
    assert list(tmp_path.iterdir()) == [path]


def test_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    path.write_text("old")
    code = f"""
import os, pathlib, signal
from pd_pipeline.storage import atomic_file
with atomic_file(pathlib.Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "value.json"
    write_json(path, {"b": 1, "a": [1.5, None]})
    first = path.read_bytes()
    write_json(path, {"a": [1.5, None], "b": 1})
    assert path.read_bytes() == first
    assert read_json(path) == {"a": [1.5, None], "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == first


def test_arrays_round_trip_with_equal_bytes(tmp_path: Path) -> None:
    arrays = {
        "view": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
        "flags": np.array([True, False]),
        "ids": np.array([1, 2], np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    save_arrays(tmp_path / "a.safetensors", arrays, {"step": "7"})
    save_arrays(tmp_path / "b.safetensors", dict(reversed(arrays.items())), {"step": "7"})
    loaded, metadata = load_arrays(tmp_path / "a.safetensors")
    assert metadata == {"step": "7"}
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(("reader", "name"), [(read_json, "x.json"), (load_arrays, "x.safetensors")])
def test_missing_and_broken_files_are_named(tmp_path: Path, reader, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(PipelineError, match=rf"{name}: no such file"):
        reader(path)
    path.write_bytes(b'{"a": ')
    with pytest.raises(PipelineError, match=rf"{name}: not "):
        reader(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "holds no JSON object"),
        (b"7", "holds no JSON object"),
        (b"null", "holds no JSON object"),
    ],
)
def test_json_that_is_not_an_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(PipelineError, match=rf"x\.json: {message}"):
        read_json(tmp_path / "x.json")


class Block(Parameters):
    width: int


@pytest.mark.parametrize(
    ("values", "message"),
    [({}, "width: Field required"), ({"width": "wide"}, "width: .*'wide'"), ({"widht": 3, "width": 3}, "'width'")],
)
def test_json_is_read_as_parameters(tmp_path: Path, values: dict, message: str) -> None:
    write_json(tmp_path / "x.json", {"width": 3})
    assert read_model(tmp_path / "x.json", Block).width == 3
    write_json(tmp_path / "x.json", values)
    with pytest.raises(PipelineError, match=rf"x\.json: .*{message}"):
        read_model(tmp_path / "x.json", Block)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_arrays_that_are_not_finite_are_refused(tmp_path: Path, bad: float, kind: type) -> None:
    save_arrays(tmp_path / "x.safetensors", {"a": np.ones(3), "b": np.array([1, bad], kind)})
    with pytest.raises(PipelineError, match=r"x\.safetensors: tensor 'b' is not finite"):
        load_arrays(tmp_path / "x.safetensors")


def test_unexpected_names_and_shapes_of_arrays_are_refused() -> None:
    found = {"a": np.zeros((2, 3)), "b": np.zeros(())}
    expect_arrays(Path("x"), found, {"a": (None, 3), "b": ()})
    for shapes, message in (
        ({"a": (None, 3), "b": (), "c": (1,)}, "x: lacks c"),
        ({"a": (None, 3)}, "x: has unexpected b"),
        ({"a": (None, 4), "b": ()}, r"x: tensor 'a' has shape \(2, 3\), expected any x 4"),
        ({"a": (6,), "b": ()}, "x: tensor 'a'"),
        ({"a": (2, 3), "b": (1,)}, "x: tensor 'b' .* expected 1"),
    ):
        with pytest.raises(PipelineError, match=message):
            expect_arrays(Path("x"), found, shapes)


def test_truncated_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_arrays(path, {"a": np.zeros(100)})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(PipelineError, match="not a safetensors file"):
        load_arrays(path)


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = storage._read_digest
    monkeypatch.setattr(storage, "_read_digest", lambda path: read.append(path) or real(path))
    large, small = tmp_path / "large", tmp_path / "small"
    for file, size in ((large, storage.LARGE), (small, 10)):
        file.write_bytes(bytes(size))
    first = [file_digest(file) for file in (large, large)]
    assert read == [large, large], "it was written just now"
    monkeypatch.setattr(storage, "SETTLED", 0)
    assert [file_digest(file) for file in (large, large, small, small)][:2] == first
    assert read[2:] == [large, small, small]
    about = large.stat()
    large.write_bytes(b"1" + bytes(storage.LARGE - 1))
    os.utime(large, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert file_digest(large) == hashlib.sha256(large.read_bytes()).digest() != first[0], "of the same size and time"
    large.rename(tmp_path / "moved")
    assert file_digest(tmp_path / "moved") != first[0]


def test_digests_depend_on_names_and_contents_but_not_on_times(tmp_path: Path) -> None:
    base = tmp_path / "out"
    (base / "sub").mkdir(parents=True)
    (base / "sub" / "a").write_text("a")
    first = digest(base, "text")
    os.utime(base / "sub" / "a", (1, 1))
    assert digest(base, "text") == first, "times do not count"
    assert digest(base, "other") != first
    (base / "sub" / "a").write_text("b")
    assert digest(base, "text") != first
    (base / "sub" / "a").write_text("a")
    (base / "sub" / "a").rename(base / "sub" / "b")
    assert digest(base, "text") != first
    assert digest("ab", "c") != digest("a", "bc"), "parts are delimited"
