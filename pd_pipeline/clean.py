"""`make clean`: remove what the pipeline made, and nothing else.

What it made is known by the records beside the outs: a file of another name or content is somebody's own and stays,
and so does whatever lies behind a link. Needs the standard library alone, so that it works in a broken environment:
`python -m pd_pipeline.clean`.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

OWN = (".work", ".dagster", "data/tensorboard", "data/records", ".pytest_cache", ".mypy_cache", ".ruff_cache")
"""Folders of the project that hold nothing but what tools wrote."""


def clean(root: Path) -> Iterator[str]:
    """Remove all outs of the project at `root` and what helped to make them; says what is left and why."""
    data = root / "data"
    if data.is_symlink():
        yield f"left: {data} is a link: what it points to is not touched"
    else:
        for record in sorted((data / "records").rglob("*.json")):
            _remove_made(_out(data, record), _files(record))
        _remove_leftovers(data)
    for name in OWN:
        path = root / name
        if any(part.is_symlink() for part in (path, *path.parents) if root in part.parents):
            yield f"left: {path} lies behind a link"
        elif path.is_dir():
            shutil.rmtree(path)
    if data.is_dir() and not data.is_symlink():
        _remove_empty(data)
        kept = sorted(path for path in data.iterdir() if path.name != ".gitkeep")
        yield from (f"left: {path}{_why(path)}" for path in kept)


def _out(data: Path, record: Path) -> Path:
    """The out that a record speaks of: data/records/<stage>/<key>.json."""
    stage, key = record.parent.name, record.stem
    if stage == "report":
        return data / "reports"
    family, _, rest = key.rpartition("-")
    other, _, task = family.rpartition("-")
    if stage.startswith("tuned_"):  # <family>-<task>-<seed> lies at <family>-<seed>/<task>
        return data / stage / f"{other}-{rest}" / task
    return data / stage / key


def _files(record: Path) -> set[tuple[str, str]]:
    """Name and SHA-256 of each file of an out, now and before."""
    try:
        values = json.loads(record.read_bytes())
        return {*values["files"].items(), *values.get("replaced", {}).items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return set()


def _remove_made(out: Path, files: set[tuple[str, str]]) -> None:
    for name, digest in files:
        path = out / name
        inside = out.resolve() == out.absolute() and out.resolve() in path.resolve().parents
        if inside and path.is_file() and not path.is_symlink() and _digest(path) == digest:
            path.unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_leftovers(data: Path) -> None:
    """Temporary outs of processes that were killed."""
    for stage in data.iterdir() if data.is_dir() else ():
        if stage.is_dir() and not stage.is_symlink():
            for path in [*stage.glob(".*.tmp"), *stage.glob("*/.*.tmp")]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
            for path in [*stage.glob(".gitignore"), *stage.glob("*/.gitignore")]:  # DVC's own
                path.unlink()


def _remove_empty(folder: Path) -> None:
    for path, names, _ in os.walk(folder, topdown=False):
        for name in names:
            inner = Path(path) / name
            if not inner.is_symlink() and not any(inner.iterdir()):
                inner.rmdir()


def _why(path: Path) -> str:
    if path.is_symlink():
        return " is a link: what it points to is not touched"
    first = next((file for file in sorted(path.rglob("*")) if file.is_file() or file.is_symlink()), path)
    return f" holds what the pipeline did not make, such as {first}" if first != path else " is not the pipeline's"


if __name__ == "__main__":
    for line in clean(Path(sys.argv[1] if len(sys.argv) > 1 else ".").absolute()):
        print(line)
