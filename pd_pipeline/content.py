"""Digests of files that a user brings: they may be large, so each is hashed once and then known by its size and times.

What is known is kept in `.work/content.json`, which may be removed at any time.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import digest, file_digest, read_json, write_json

KNOWN = Path(".work/content.json")


def content_digest(root: Path, files: Iterable[Path]) -> str:
    """Digest of the names and contents of files; those that did not change since the last call are not read."""
    known = _known(root)
    parts: list[str] = []
    found: dict[str, Any] = {}
    for file in sorted(files):
        stamp = _stamp(file)
        before = known.get(str(file))
        same = isinstance(before, dict) and before.get("stamp") == stamp
        found[str(file)] = before if same else {"stamp": stamp, "sha256": file_digest(file).hex()}
        parts += [file.name, found[str(file)]["sha256"]]
    if any(known.get(name) != entry for name, entry in found.items()):
        write_json(root / KNOWN, known | found)
    return digest(*parts)


def _stamp(file: Path) -> list[int]:
    about = file.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _known(root: Path) -> dict[str, Any]:
    try:
        return read_json(root / KNOWN)
    except PipelineError:  # missing, or damaged by a full disk: everything is hashed again
        return {}
