"""A large file is hashed once."""

import os
from pathlib import Path

import pytest

from pd_pipeline import content
from pd_pipeline.content import KNOWN, content_digest


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read."""
    names: list[str] = []
    real = content.file_digest

    def watched(path: Path) -> bytes:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(content, "file_digest", watched)
    return names


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, hashed: list[str]) -> None:
    files = [write(tmp_path / name, name) for name in "ab"]
    first = content_digest(tmp_path, files)
    assert content_digest(tmp_path, reversed(files)) == first
    assert hashed == ["a", "b"]
    write(files[1], "changed")
    assert content_digest(tmp_path, files) != first
    assert hashed == ["a", "b", "b"]


def test_it_depends_on_names_and_contents_alone(tmp_path: Path, hashed: list[str]) -> None:
    one = write(tmp_path / "a", "text")
    before = content_digest(tmp_path, [one])
    os.utime(one, ns=(1, 1))
    assert content_digest(tmp_path, [one]) == before
    assert hashed == ["a", "a"], "other times: it is read again"
    (tmp_path / "elsewhere").mkdir()
    assert content_digest(tmp_path, [write(tmp_path / "elsewhere/a", "text")]) == before
    assert content_digest(tmp_path, [write(tmp_path / "b", "text")]) != before


def test_a_change_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    one = write(tmp_path / "a", "text")
    stamp = one.stat().st_mtime_ns
    before = content_digest(tmp_path, [one])
    write(one, "next")
    os.utime(one, ns=(stamp, stamp))
    assert content_digest(tmp_path, [one]) != before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}'])
def test_what_is_known_may_be_lost(tmp_path: Path, damage: str) -> None:
    one = write(tmp_path / "a", "text")
    before = content_digest(tmp_path, [one])
    write(tmp_path / KNOWN, damage.replace('"a"', f'"{one}"'))
    assert content_digest(tmp_path, [one]) == before
