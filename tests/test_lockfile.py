"""Replacing one entry of dvc.lock as text gives what DVC would have written."""

from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml, loads_yaml

from pd_pipeline.lockfile import HEAD, only, with_entry


def entry(name: str, md5: str) -> dict[str, Any]:
    return {
        name: {
            "cmd": f"pd-pipeline run {name}",
            "deps": [{"path": "a.py", "hash": "md5", "md5": md5, "size": 3}],
            "params": {"params.yaml": {"families.x.plm": {"name": "a: b", "list": [1, 2], "empty": {}}}},
            "outs": [{"path": f"data/{name}", "hash": "md5", "md5": md5 + ".dir", "size": 9, "nfiles": 2}],
        }
    }


def lock(*entries: dict[str, Any]) -> str:
    stages = {name: value for each in entries for name, value in each.items()}
    return dumps_yaml({"schema": "2.0", "stages": stages})


FIRST, SECOND, THIRD = entry("plm@reach-0", "1"), entry("plm@reach-1", "2"), entry("report", "3")


@pytest.mark.parametrize(
    ("before", "added"),
    [
        ((FIRST, SECOND, THIRD), entry("plm@reach-0", "9")),
        ((FIRST, SECOND, THIRD), entry("plm@reach-1", "9")),
        ((FIRST, SECOND, THIRD), entry("report", "9")),
        ((FIRST, SECOND), THIRD),
        ((SECOND,), FIRST),
    ],
)
def test_an_entry_replaces_its_namesake_or_is_appended(
    before: tuple[dict[str, Any], ...], added: dict[str, Any]
) -> None:
    stages = {name: value for each in before for name, value in each.items()} | added
    found = with_entry(lock(*before), lock(added))
    assert found == dumps_yaml({"schema": "2.0", "stages": stages})
    assert loads_yaml(found)["stages"] == stages


def test_the_first_entry_makes_the_file() -> None:
    assert with_entry("", lock(FIRST)) == lock(FIRST)
    assert lock(FIRST).startswith(HEAD)


@pytest.mark.parametrize(
    "text",
    [
        "schema: '3.0'\nstages:\n  a:\n    cmd: b\n",
        lock(FIRST) + "datasets:\n- name: x\n",
        "stages: {}\nschema: '2.0'\n",
        lock(FIRST).rstrip("\n"),
        dumps_yaml({"schema": "2.0", "stages": {"a": FIRST, "b": FIRST}}),
    ],
)
def test_a_file_with_another_layout_is_left_to_dvc(text: str) -> None:
    assert with_entry(text, lock(SECOND)) is None


def with_anchor(name: str) -> dict[str, Any]:
    shared = {"steps": 3}
    return {name: {"cmd": "graph", "params": {"params.yaml": {"families": {"a": shared, "b": shared}}}}}


def test_an_entry_may_refer_to_itself() -> None:
    digests, again = with_anchor("digests"), with_anchor("digests") | entry("a", "1")
    text = lock(FIRST, digests, SECOND)
    assert "&id001" in text
    assert only(text, {"plm@reach-1"}) == lock(SECOND)
    found = with_entry(text, lock(entry("plm@reach-1", "9")))
    assert found == lock(FIRST, digests, entry("plm@reach-1", "9"))
    assert with_entry(text, lock(with_anchor("digests"))) == text
    assert with_entry(text, lock({"other": again["digests"]})) is None, "two entries with an anchor of the same name"


def test_a_name_is_a_whole_one() -> None:
    text = lock(entry("plm@reach-10", "1"), entry("plm@reach-1", "2"))
    assert only(text, {"plm@reach-1"}) == lock(entry("plm@reach-1", "2"))
    assert only(text, {"reach-1"}) == HEAD
    quoted = lock(FIRST).replace("  plm@reach-0:", "  'plm@reach-0':")
    assert only(quoted, {"plm@reach-0"}) == quoted
    many = lock(*(entry(f"plm@reach-{i}", str(i)) for i in range(50)))
    names = {f"plm@reach-{i}" for i in range(0, 50, 2)}
    one_by_one = "".join(only(many, {name}).removeprefix(HEAD) for name in sorted(names, key=lambda n: int(n[10:])))
    assert only(many, names) == HEAD + one_by_one


def test_a_conflict_is_left_to_dvc() -> None:
    text = lock(FIRST) + "<<<<<<< ours\n" + lock(SECOND).removeprefix(HEAD)
    assert only(text, {"plm@reach-0"}) == text
    assert with_entry(text, lock(THIRD)) is None


def test_entries_are_picked_by_name() -> None:
    assert only(lock(FIRST, SECOND, THIRD), {"plm@reach-1", "report"}) == lock(SECOND, THIRD)
    assert only(lock(FIRST, SECOND), {"plm@reach-0", "plm@reach-1"}) == lock(FIRST, SECOND)
    assert only(lock(FIRST), set()) == HEAD
    assert only("schema: '3.0'\n", set()) == "schema: '3.0'\n", "of another layout nothing is left out"
