"""Files that appear complete or not at all, weights without pickle, and content digests.

Every out is written beside its final path, flushed to disk and renamed, so that a kill at any instant leaves either
the old state or the new one.
"""

import ctypes
import glob
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.parsing import parse

_C_LIBRARY = ctypes.CDLL(None, use_errno=True)
P = TypeVar("P", bound=Parameters)
LARGE = 1 << 20
"""Bytes from which the digest of a file is remembered."""
SETTLED = 2_000_000_000
"""Nanoseconds that must lie between two contents, for the times of a file to tell them apart on any file system."""
_digests: dict[tuple[int, ...], bytes] = {}
_AGAIN = ": remove it and run its stage again"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; on success it replaces `path`, on error it is removed.

    Other threads, processes and machines may be writing the same path: each writes a file of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory; on success it replaces `path`, on error `path` is untouched.

    At every instant the old directory or the new one exists in full, whatever ends the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        _swap(temporary, path)
        _fsync(path.parent)
    finally:
        if os.path.lexists(temporary):
            remove(temporary)


def _swap(new: Path, path: Path) -> None:
    """Move the directory `new` to `path`; what was there is then at `new`, or removed."""
    if not os.path.lexists(path):
        os.rename(new, path)
        return
    if _exchanged(new, path):
        return
    # a file system that cannot exchange two names in one call: at every instant one of the two directories exists
    retired = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.rename(path, retired)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(retired, path)
        raise
    remove(retired)


def _exchanged(a: Path, b: Path) -> bool:
    """Exchange two names in one system call (Linux, renameat2); False where that is not supported."""
    if not hasattr(_C_LIBRARY, "renameat2"):
        return False
    here = -100  # AT_FDCWD: relative to the working directory
    return _C_LIBRARY.renameat2(here, os.fsencode(a), here, os.fsencode(b), 2) == 0  # 2: RENAME_EXCHANGE


def recover(path: Path) -> None:
    """Remove what killed processes left beside `path`, and restore `path` where one had moved it aside.

    The caller must know that no other process is writing `path`.
    """
    for left in sorted(path.parent.glob(f".{glob.escape(path.name)}.*.old")):
        if os.path.lexists(path):
            remove(left)
        else:
            os.rename(left, path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        remove(left)


def remove(path: Path) -> None:
    """Remove a file, a directory or a link, never the target of a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically: equal values give equal bytes."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path, advice: str = _AGAIN) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises PipelineError, with `advice`, where it is missing or broken."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file: run the stage that makes it") from None
    except (ValueError, RecursionError) as error:  # not JSON, not text, or nested too deeply
        raise PipelineError(f"{path}: not valid JSON ({error}){advice}") from None
    if not isinstance(value, dict):
        raise PipelineError(f"{path}: holds no JSON object{advice}")
    return value


def read_model(path: Path, model: type[P], advice: str = _AGAIN) -> P:
    """Read a JSON file as a parameter block. Raises PipelineError where a key is missing, unknown or wrong.

    `advice` ends the message: what to do about a file that no stage makes.
    """
    if not path.is_file() and advice != _AGAIN:
        raise PipelineError(f"{path}: no such file{advice}")
    try:
        return parse(model, read_json(path), str(path))
    except PipelineError as error:
        raise PipelineError(str(error).removesuffix(_AGAIN) + advice) from None


def write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows of numbers as CSV, atomically; columns in order of appearance, empty where a row has no value."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names)] + [",".join(repr(row[n]) if n in row else "" for n in names) for row in rows]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays as safetensors, atomically. No file name or time is embedded: equal arrays, equal bytes."""
    with atomic_file(path) as temporary:
        save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, temporary, dict(metadata or {}))


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file: (arrays, metadata). Raises PipelineError where it is missing, broken or not finite."""
    if not path.is_file():
        raise PipelineError(f"{path}: no such file: run the stage that makes it")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError, TypeError) as error:
        raise PipelineError(f"{path}: not a safetensors file ({error}){_AGAIN}") from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise PipelineError(f"{path}: tensor '{name}' is not finite{_AGAIN}")
    return arrays, metadata


def expect_arrays(path: Path, found: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Raise PipelineError unless `found` has exactly these names and shapes (None: any length)."""
    if set(found) != set(shapes):
        missing, extra = sorted(set(shapes) - set(found)), sorted(set(found) - set(shapes))
        problem = f"lacks {', '.join(missing[:5])}" if missing else f"has unexpected {', '.join(extra[:5])}"
        raise PipelineError(f"{path}: {problem}{_AGAIN}")
    for name, shape in shapes.items():
        actual = found[name].shape
        if len(actual) != len(shape) or any(want not in (None, size) for want, size in zip(shape, actual, strict=True)):
            expected = " x ".join("any" if size is None else str(size) for size in shape) or "a number"
            raise PipelineError(f"{path}: tensor '{name}' has shape {actual}, expected {expected}{_AGAIN}")


def shown(path: Path) -> Path:
    """A path that can be printed, whatever bytes its name has."""
    return Path(os.fsencode(path).decode(errors="backslashreplace"))


def digest(*parts: Path | str | bytes) -> str:
    """Hex SHA-256 over files, directories (relative names and contents), strings and bytes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path) and part.is_dir():
            for file in sorted(p for p in part.rglob("*") if p.is_file()):
                total.update(os.fsencode(file.relative_to(part).as_posix()) + b"\0" + file_digest(file))
        elif isinstance(part, Path):
            total.update(file_digest(part))
        else:
            total.update(hashlib.sha256(os.fsencode(part)).digest())
    return total.hexdigest()


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file's contents.

    A large file is read once per process: the same trajectories are read by the work of a thousand targets. It is known
    by its size, times and inode; one that was written just now is read again, since its times may not tell it from what
    is written next.
    """
    about = path.stat()
    age = time.time_ns() - max(about.st_mtime_ns, about.st_ctime_ns)
    if about.st_size < LARGE or age < SETTLED:
        return _read_digest(path)
    stamp = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    if stamp not in _digests:
        _digests[stamp] = _read_digest(path)
    return _digests[stamp]


def _read_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
