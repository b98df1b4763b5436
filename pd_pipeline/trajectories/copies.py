"""Copies of episodes: the same observations, actions and rewards, bit for bit.

An episode that is there twice could be tuned on and held out at once, and would count twice in an interval.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from pd_pipeline.families.base import Family
from pd_pipeline.trajectories.reading import stream
from pd_pipeline.trajectories.validation import Columns


def episode_digests(
    path: Path, tasks: Iterable[int] | None = None, family: Family | None = None, new_task: int | None = None
) -> Iterator[bytes]:
    """SHA-256 of each episode of a file, in its order and in constant memory. Raises PipelineError as `stream` does.

    Row groups do not matter, nor do the numbers of episodes and tasks.
    """
    hashes: list[hashlib._Hash] = []  # one per column: an episode may reach over several batches
    for batch in stream(path, tasks, family, new_task):
        columns = (batch.observation, batch.action, batch.reward)
        bounds = np.unique([0, *np.flatnonzero(batch.step == 0), len(batch.step)]).tolist()
        for first, last in pairwise(bounds):
            if batch.step[first] == 0:
                if hashes:
                    yield _joined(hashes)
                hashes = [sha256() for _ in columns]
            for one, column in zip(hashes, columns, strict=True):
                one.update(np.ascontiguousarray(column[first:last], np.float32).data)
    if hashes:
        yield _joined(hashes)


def episode_digest(steps: Columns) -> bytes:
    """What `episode_digests` gives for an episode, of its steps in memory."""
    return next(beginning_digests(steps, [len(steps.step)]))


def beginning_digests(steps: Columns, lengths: Iterable[int]) -> Iterator[bytes]:
    """What `episode_digest` would give for the first steps of an episode alone; `lengths` ascend."""
    columns = [np.ascontiguousarray(column, np.float32) for column in (steps.observation, steps.action, steps.reward)]
    hashes = [sha256() for _ in columns]
    for first, last in pairwise([0, *lengths]):
        for one, column in zip(hashes, columns, strict=True):
            one.update(column[first:last].data)
        yield _joined(hashes)


def motion_digest(steps: Columns) -> bytes:
    """SHA-256 of an episode's observations and actions: rewards may be given to the same motion differently."""
    columns = (steps.observation, steps.action)
    return _joined([sha256(np.ascontiguousarray(column, np.float32).data) for column in columns])


def first_seen(digests: Mapping[Path, Iterable[bytes]], known: Iterable[bytes] = ()) -> dict[Path, np.ndarray]:
    """File -> for each of its m episodes whether it is neither `known` nor in an earlier place, (m,) bool."""
    seen, found = {*known}, {}
    for path, episodes in digests.items():
        new = []
        for digest in episodes:
            new.append(digest not in seen)
            seen.add(digest)
        found[path] = np.array(new, bool)
    return found


def _joined(hashes: "Iterable[hashlib._Hash]") -> bytes:
    return sha256(b"".join(one.digest() for one in hashes)).digest()
