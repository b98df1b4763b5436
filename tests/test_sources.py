"""What a file imports, wherever the statement stands, and that edits are seen."""

import os
from pathlib import Path

import pytest

from pd_pipeline import sources
from pd_pipeline.errors import PipelineError
from pd_pipeline.sources import PACKAGE, forget, import_closure, imported_names, local_closure

EVERYWHERE = """\
from typing import TYPE_CHECKING
import top.inner
from . import beside
if TYPE_CHECKING:
    import never
else:
    import otherwise
if one:
    import a1
elif two:
    import a2
for x in y:
    import b1
else:
    import b2
while x:
    import c1
with x:
    import d1
try:
    import e1
except ValueError:
    import e2
else:
    import e3
finally:
    import e4
match x:
    case 1:
        import f1
class C:
    import g1
    async def method(self):
        async with x:
            from h import one, two
"""
FOUND = {
    *(".beside", "typing", "typing.TYPE_CHECKING", "top.inner", "otherwise", "h", "h.one", "h.two"),
    *("a1", "a2", "b1", "b2", "c1", "d1", "e1", "e2", "e3", "e4", "f1", "g1"),
}


def test_imports_are_found_in_every_statement(tmp_path: Path) -> None:
    file = tmp_path / "everywhere.py"
    file.write_text(EVERYWHERE)
    names = imported_names(file)
    assert sorted(names) == sorted(FOUND)


def test_an_edit_is_seen_though_size_and_time_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text("import one")
    about = file.stat()
    assert imported_names(file) == ("one",)
    file.write_text("import two")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert imported_names(file) == ("two",)


def test_a_file_is_parsed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "one.py"
    file.write_text("import one")
    imported_names(file)
    monkeypatch.setattr(sources.ast, "parse", None)
    forget()
    assert imported_names(file) == ("one",)


def test_a_new_file_is_seen_once_the_caches_are_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "pd_pipeline")
    (tmp_path / "pd_pipeline").mkdir()
    first, second = (tmp_path / f"pd_pipeline/{name}.py" for name in ("first", "second"))
    first.write_text("import pd_pipeline.second")
    forget()
    assert import_closure(("pd_pipeline.first",)) == {first}
    second.touch()
    forget()
    assert import_closure(("pd_pipeline.first",)) == {first, second}
    forget()


def test_a_users_file_depends_on_those_beside_it_and_on_this_package(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import helper\nfrom pd_pipeline.errors import PipelineError\n")
    (tmp_path / "helper.py").write_text("import json")
    found = local_closure(tmp_path / "mine.py", tmp_path)
    assert {tmp_path / "mine.py", tmp_path / "helper.py", PACKAGE / "errors.py"} <= found


PROJECT = {
    "envs/__init__.py": "",
    "envs/arm.py": "from envs.physics import GAIN\nfrom . import shapes\nfrom .parts.claw import CLAW\nimport robot",
    "envs/physics.py": "from json import loads",
    "envs/shapes.py": "",
    "envs/parts/__init__.py": "from ..table import TABLE",
    "envs/parts/claw.py": "from . import nail as sharp",
    "envs/parts/nail.py": "",
    "envs/table.py": "",
    "robot/__init__.py": "from robot.control import loop",
    "robot/control.py": "import envs.arm",
}


def test_so_do_files_in_packages_of_the_project(tmp_path: Path) -> None:
    root = tmp_path / "project"
    for name, text in {**PROJECT, "other.py": "", "robot/unused.py": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "__init__.py").touch()
    found = local_closure(root / "envs/arm.py", root)
    assert {file.relative_to(root).as_posix() for file in found} == {*PROJECT}


def test_invalid_python_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import (")
    with pytest.raises(PipelineError, match=r"bad\.py: not valid Python"):
        imported_names(tmp_path / "bad.py")
