"""`make clean`: remove what the pipeline made, and nothing else.

The records beside the outs say what it made: a file of another name or content is the user's and stays, and so does
whatever lies behind a link. Needs only the standard library, so that it works in a broken environment:
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
"""Folders of the project that hold only files written by tools."""
DIGESTS = "digests.json"  # beside dvc.yaml; DVC does without it, as in a new clone, until the graph is written again


def clean(root: Path) -> Iterator[str]:
    """Remove all outs of the project at `root` and all work files; yields lines on what is left and why."""
    data = root / "data"
    points = data / "points"
    if points.is_dir() and not data.is_symlink() and not points.is_symlink():
        for home in sorted(points.iterdir()):  # each a small project: what the points of studies share
            yield from clean(home)
            _remove_empty(home, data)
    if data.is_symlink():
        yield f"left: {data} is a link: what it points to is not touched"
    else:
        made = [_made(record, root) for record in sorted((data / "records").rglob("*.json"))]
        outs = {out: files for out, files in filter(None, made) if data in out.parents and out.resolve() == out}
        for out, files in outs.items():
            _remove_made(out, files)
            _remove_leftovers(out)
        for out in outs:
            _remove_empty(out, data)
    for name in OWN:
        path = root / name
        if any(part.is_symlink() for part in (path, *path.parents) if root in part.parents):
            yield f"left: {path} lies behind a link"
        elif path.is_dir():
            shutil.rmtree(path)
    digests = root / DIGESTS
    if _is_of_graph(digests):
        digests.unlink()
    elif digests.exists():
        yield f"left: {digests} is not the pipeline's"
    if data.is_dir() and not data.is_symlink():
        kept = sorted(path for path in data.iterdir() if path.name != ".gitkeep")
        yield from (f"left: {path}{_why(path)}" for path in kept)


def _made(record: Path, root: Path) -> tuple[Path, set[tuple[str, str]]] | None:
    """The out of a record, with name and SHA-256 of its present and earlier files; None if the record is damaged."""
    try:
        values = json.loads(record.read_bytes())
        files = {*values["files"].items(), *values.get("replaced", {}).items()}
        return root / values["out"], files
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def _is_of_graph(path: Path) -> bool:
    """Whether a file is what the graph writes: stage -> family -> digests of code, parameters and recordings."""
    try:
        stages = json.loads(path.read_bytes())
        entries = [entry for families in stages.values() for entry in families.values()]
        known = all({"code", "parameters"} <= entry.keys() <= {"code", "parameters", "recordings"} for entry in entries)
        return known and bool(entries) and not path.is_symlink()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _remove_made(out: Path, files: set[tuple[str, str]]) -> None:
    for name, digest in files:
        path = out / name
        folder = path.parent.resolve()
        if out in (folder, *folder.parents) and path.is_file() and _digest(path) == digest:
            path.unlink()  # of a link into DVC's cache the link, not what it points to


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_leftovers(out: Path) -> None:
    """Remove what killed processes left beside an out, and the .gitignore that DVC wrote there."""
    folder = out.parent
    for path in folder.glob(f".{out.name}.*.tmp"):
        if path.name.split(".")[-2].isdigit() and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    ignored = folder / ".gitignore"
    if ignored.is_file() and not ignored.is_symlink():
        ignored.unlink()


def _remove_empty(out: Path, data: Path) -> None:
    """Remove empty folders of an out, and empty ones between it and `data`."""
    if out.is_dir():
        for path, _, _ in os.walk(out, topdown=False):
            if not any(Path(path).iterdir()):
                Path(path).rmdir()
    folder = out.parent
    while folder != data and data in folder.parents and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _why(path: Path) -> str:
    if path.is_symlink():
        return " is a link: what it points to is not touched"
    first = next((file for file in sorted(path.rglob("*")) if file.is_file() or file.is_symlink()), path)
    return f" holds what the pipeline did not make, such as {first}" if first != path else " is not the pipeline's"


if __name__ == "__main__":
    for line in clean(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()):
        print(line)
