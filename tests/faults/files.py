"""Damaged files: trajectories, outs and checkpoints, refused in one line or read correctly."""

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np

from pd_pipeline import graph
from pd_pipeline.errors import EXPECTED, PipelineError, described
from pd_pipeline.graph import Graph
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from pd_pipeline.trajectories.reading import Trajectories, read
from tests.faults.report import Attack, complaint

SECONDS = 25
SECONDS_OF_WORK = 120  # for a stage with damaged input that may continue and do all its work
Damage = Callable[[bytes, random.Random], bytes]


class TooLong(BaseException):
    """A try did not end in time."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TooLong in the main thread after `seconds`."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flip(content: bytes, rng: random.Random) -> bytes:
    """One bit."""
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    """The beginning only."""
    return content[: rng.randrange(len(content))]


def zeros(content: bytes, rng: random.Random) -> bytes:
    """A block of zeros, as a file system leaves after a crash."""
    start = rng.randrange(len(content))
    size = min(rng.choice((16, 512, 4096)), len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def noise(content: bytes, rng: random.Random) -> bytes:
    """Random bytes in the middle."""
    start = rng.randrange(len(content))
    return content[:start] + rng.randbytes(64) + content[start + 64 :]


def extend(content: bytes, rng: random.Random) -> bytes:
    """Extra bytes at the end."""
    return content + rng.randbytes(rng.randrange(1, 200))


def replaced(content: bytes, rng: random.Random) -> bytes:
    """Another file altogether."""
    return rng.choice(
        (b"", b"\xff\xfe\x00", b"[]", b"null", b"{}", b'{"a": 1}', b"[" * 100_000, b"PAR1" * 3, b"\n" * 9)
    )


BINARY: tuple[Damage, ...] = (flip, flip, flip, truncate, zeros, noise, extend, replaced)
STRUCTURE: tuple[Damage, ...] = (truncate, extend, replaced)
"""What must be noticed in files that carry no checksums of their own: another bit of a weight is another weight."""


def trajectories(file: Path, tries: int, folder: Path, seed: int = 0) -> Attack:
    """Damage a trajectory file; it may be refused in one line, or read exactly as before."""
    found, rng = Attack("damaged trajectory files"), random.Random(seed)
    good, content, target = read(file), file.read_bytes(), folder / "damaged.parquet"
    for _ in range(tries):
        how = rng.choice(BINARY)
        target.write_bytes(how(content, rng))
        found.survived(_problem(lambda: _same(read(target), good), how.__name__))
    return found


def _same(one: Trajectories, other: Trajectories) -> str | None:
    names = ("observations", "actions", "rewards", "returns_to_go", "success", "starts", "task_id", "episode_id")
    differ = [name for name in names if not np.array_equal(getattr(one, name), getattr(other, name))]
    if one.metadata != other.metadata:
        differ.append("metadata")
    return f"read as other {', '.join(differ)}" if differ else None


def _problem(attempt: Callable[[], str | None], what: str, seconds: int = SECONDS) -> str | None:
    """Run `attempt` on damaged input; a one-line refusal is fine, and so is what `attempt` accepts."""
    try:
        with time_limit(seconds):
            said = attempt()
    except PipelineError as error:
        said = complaint(str(error))
    except EXPECTED as error:
        said = complaint(described(error))
    except TooLong:
        said = f"not over in {seconds} s"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return None if said is None else f"{what}: {said}"


def outs(root: Path, tries: int, seed: int = 0) -> Attack:
    """Damage a file of an out and run a stage that reads it; `root` is a finished project.

    The stage may refuse in one line, or go on where the damage does not matter to it.
    """
    found, rng = Attack("damaged outs and checkpoints"), random.Random(seed)
    project = graph.load(root)
    readers = [
        (file, stage, key)
        for stage in project.stages
        for key in project.keys(stage)[:1]
        for need, other in project.upstream(stage, key)
        for file in sorted((root / project.out(need, other)).rglob("*"))
        if file.is_file() and file.suffix not in (".parquet",)
    ]
    for _ in range(tries):
        file, stage, key = rng.choice(readers)
        content = file.read_bytes()
        how = rng.choice((_structure(file), *STRUCTURE))
        damaged = how(content, rng)
        if file.suffix == ".csv" and how is truncate:
            continue  # a shorter table is a table
        file.write_bytes(damaged)
        try:
            what = f"{file.relative_to(root)} {how.__name__}, read by {stage}"
            found.survived(_problem(lambda s=stage, k=key: _made(project, s, k), what, SECONDS_OF_WORK))  # type: ignore[misc]
        finally:
            file.write_bytes(content)
            shutil.rmtree(root / ".work", ignore_errors=True)
    return found


def _made(project: Graph, stage: str, key: graph.Key) -> None:
    run_piece(project, stage, key, silent)


def _structure(file: Path) -> Damage:
    """Damage that keeps the format of a file: a value of another type, a missing key, a tensor of another shape."""

    def other_values(content: bytes, rng: random.Random) -> bytes:
        try:
            values = json.loads(content)
        except ValueError:
            return b"step,loss\n1,x\n"
        name = rng.choice(sorted(values)) if isinstance(values, dict) and values else None
        if name is None:
            return b"[]"
        if rng.random() < 0.4:
            del values[name]
        else:
            values[name] = rng.choice((None, -1, 10**9, "x" * 10, [], {}, [[1]], 1e300, True))
        return json.dumps(values).encode()

    def other_tensors(content: bytes, rng: random.Random) -> bytes:
        from safetensors.numpy import load, save

        arrays = dict(load(content))
        name = rng.choice(sorted(arrays))
        how = rng.randrange(4)
        if how == 0:
            del arrays[name]
        elif how == 1:
            arrays[name] = np.zeros((3, 1, 2), np.float32)
        elif how == 2 and arrays[name].dtype.kind == "f":
            arrays[name] = np.full_like(arrays[name], np.nan)
        else:
            arrays[name] = np.zeros(arrays[name].shape, np.int8)
        return save(arrays)

    return other_tensors if file.suffix == ".safetensors" else other_values
