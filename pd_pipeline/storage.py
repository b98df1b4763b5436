"""Files that appear whole or not at all, weights without pickle, and content digests.

Every out is written beside its final place, flushed to disk and renamed, so that a kill at any instant leaves either
the old state or the new one.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pd_pipeline.errors import PipelineError

COST_FILE = "cost.json"  # wall-clock figures: the only file of an out that may differ between two equal runs


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; on success it replaces `path`, on error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory; on success it takes the place of `path`, on error `path` is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    retired = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        if path.exists():  # a non-empty directory cannot be replaced in one call: move it aside first
            os.replace(path, retired)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically: equal values give equal bytes."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises PipelineError where it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file: run the stage that makes it") from None
    except json.JSONDecodeError as error:
        raise PipelineError(f"{path}: not valid JSON ({error}): remove it and run its stage again") from None


def write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows of numbers as CSV, atomically; columns in order of appearance, empty where a row has no figure."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names)] + [",".join(repr(row[n]) if n in row else "" for n in names) for row in rows]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays as safetensors, atomically. No file name or time is embedded: equal arrays, equal bytes."""
    with atomic_file(path) as temporary:
        save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, temporary, dict(metadata or {}))


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file: (arrays, metadata). Raises PipelineError where it is missing or broken."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file: run the stage that makes it") from None
    except SafetensorError as error:
        raise PipelineError(f"{path}: not a safetensors file ({error}): remove it and run its stage again") from None


def digest(*parts: Path | str | bytes) -> str:
    """Hex SHA-256 over files, directories (relative names and contents, cost files left out), strings and bytes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path) and part.is_dir():
            for file in sorted(p for p in part.rglob("*") if p.is_file() and p.name != COST_FILE):
                total.update(file.relative_to(part).as_posix().encode() + b"\0" + _file_digest(file))
        elif isinstance(part, Path):
            total.update(_file_digest(part))
        else:
            total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
