"""DVC: what is up to date, what was made from what, and the record of it.

Three doors lead to a piece of work: `pd-pipeline run`, `dvc repro` and Dagster. Behind all of them stands `run` here,
so that all leave the same record in dvc.lock. DVC itself hashes dependencies after a command has run; here they are
taken before it too, and work whose code, parameters or inputs changed meanwhile is refused.

The only module that imports dvc. `dvc.repo.Repo` is an internal API: tests/test_lineage.py holds what is used of it.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pd_pipeline import dvc_locks, locks, records, rendering
from pd_pipeline import graph as graphs
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.guard import Snapshot, as_json, refuse_changes, snapshot, stamp
from pd_pipeline.lockfile import LOCK_FILE, with_entry
from pd_pipeline.locks import PieceLock, Waiting
from pd_pipeline.progress import Progress
from pd_pipeline.rendering import address
from pd_pipeline.stage import Key
from pd_pipeline.storage import atomic_file

STAGE_VARIABLE = "DVC_STAGE"  # DVC sets it for the commands it runs
_BUSY_SECONDS = 0.5
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What `run` did."""

    metrics: dict[str, Any]
    skipped: bool
    data_version: str | None
    """MD5 of the out as DVC has it; None where nothing was recorded."""


def begin(root: Path, git_top: Path | None) -> None:
    """Have DVC keep records in a folder, in the git repository of `git_top` where there is one."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        inside = git_top is not None and git_top != root.resolve()
        Repo.init(str(root), no_scm=git_top is None, subdir=inside).close()
    except DvcException as error:
        raise PipelineError(f"{root}: DVC: {error}") from error


def run(graph: Graph, stage: str, key: Key, progress: Progress, *, force: bool = False, record: bool = True) -> Outcome:
    """Do one piece of work unless it is up to date, and record it.

    One process at a time works on a piece: whoever comes second waits and then finds it made. params.yaml is read once
    for the work and its record; where it changed since `graph` was loaded, it is read again before the work begins.
    Called by DVC, which records on its own, or outside a DVC project, or with `record` False, the work is always done
    and nothing recorded. Raises PipelineError where something that the work is made from changed while it ran.
    """
    by_dvc = STAGE_VARIABLE in os.environ
    record = record and is_recording(graph)
    graph = graphs.current(graph)
    key = graph.key(stage, str(key))
    with locks.held(graph.root, stage, key) as lock:
        if record:
            keep_rendered(graph)
            if not force and (data_version := up_to_date(graph, stage, key)):
                return Outcome({}, True, data_version)
        if by_dvc and lock.waited and graphs.made_already(graph, stage, key):
            return Outcome({}, True, None)  # by the process that was waited for
        before = snapshot(graph, stage, key)
        if record and lock.waited and not force and graphs.made_already(graph, stage, key):
            # by the process that was waited for, and recorded by nobody: DVC had started it and was killed
            return Outcome({}, True, _recorded(graph, stage, key, before, lock))
        if rendering.is_project(graph.root):
            _adopt(graph, stage, key)
        metrics = graphs.run(graph, stage, key, progress)
        if record:
            return Outcome(metrics, False, _recorded(graph, stage, key, before, lock))
        refuse_changes(graph, stage, key, before)
        return Outcome(metrics, False, None)


_rendered: dict[Path, str] = {}
"""Root -> state of what is rendered and of what that follows from, when they last agreed."""


def keep_rendered(graph: Graph) -> bool:
    """Bring dvc.yaml and digests.json up to date, and with them DVC's record of the stage that writes digests.json.

    Returns whether a file had to change. Called by DVC, which records on its own, nothing is recorded.
    """
    if _rendered.get(graph.root) == _state(graph):
        return False
    changed = rendering.write(graph)
    if is_recording(graph):
        _with_repo(graph.root, lambda repo: _record_digests(graph.root, repo), locks.Waiting())
    _rendered[graph.root] = _state(graph)
    return changed


def _state(graph: Graph) -> str:
    made = [graph.root / name for name in (rendering.DVC_FILE, rendering.DIGESTS_FILE, LOCK_FILE)]
    stamps = [stamp(path) for path in (*rendering.code_files(graph), *made[:2]) if path.exists()]
    return as_json([graph.text, stamps, made[2].exists()])


def _record_digests(root: Path, repo: Any) -> None:
    piece = repo.stage.load_one(path=_dvc_file(repo), name=rendering.DIGESTS_STAGE)
    if piece.status():
        with chdir(root):
            piece.save()
        piece.commit()
        _enter(root / LOCK_FILE, piece)


def make(graph: Graph, stage: str, key: Key, progress: Progress) -> bool:
    """Do a piece of work of a study's point unless it is made; DVC does not know it. Returns whether there was work."""
    with locks.held(graph.home(stage, key), stage, key):
        if graphs.made_already(graph, stage, key):
            return False
        before = snapshot(graph, stage, key)
        graphs.run(graph, stage, key, progress)
        refuse_changes(graph, stage, key, before)
    return True


def is_recording(graph: Graph) -> bool:
    """Whether what is made is recorded here: in a project of DVC, unless DVC itself is at work and will do so."""
    return rendering.is_project(graph.root) and STAGE_VARIABLE not in os.environ


def _adopt(graph: Graph, stage: str, key: Key) -> None:
    """Give an out of files that no record knows one, if it is what DVC has on record: checked out, another version."""
    out = graph.root / graph.out(stage, key)
    known = not records.foreign(out, records.find(graph.root, stage, key))
    if known or not out.is_dir() or not (graph.root / LOCK_FILE).is_file():
        return
    with _repo(graph.root) as repo:
        if not _piece(repo, stage, key).outs[0].status():
            records.enter(graph.root, stage, key, out, out, made="elsewhere", seconds=0.0)


def _recorded(graph: Graph, stage: str, key: Key, before: Snapshot, lock: PieceLock) -> str:
    """Record the piece. Where DVC itself is at the same piece, it waits for our lock: it gets it for a while."""
    waiting = locks.Waiting()
    while True:
        try:
            return _with_repo(graph.root, lambda repo: _record(graph, stage, key, before, repo), waiting, once=True)
        except Busy:
            lock.release()
            time.sleep(_BUSY_SECONDS)
            lock.acquire()


# DVC


def up_to_date(graph: Graph, stage: str, key: Key) -> str | None:
    """MD5 of the out, if code, parameters, inputs and out are still those that DVC has on record; else None."""
    if not (graph.root / LOCK_FILE).is_file() or not (graph.root / graph.out(stage, key)).exists():
        return None
    if rendering.recorded(graph.root, stage, key) != rendering.digests(graph, stage, key):
        return None
    return _with_repo(graph.root, lambda repo: _data_version(_piece(repo, stage, key)), locks.Waiting())


def data_versions(graph: Graph, stages: Iterable[str] | None = None) -> dict[tuple[str, Key], str]:
    """MD5 of the out of every piece of work of all stages, or of some, that is up to date, upstream first."""
    from dvc.lock import LockError

    now = rendering.all_digests(graph)

    def look(repo: Any) -> dict[tuple[str, Key], str]:
        pieces = {piece.name: piece for piece in repo.stage.load_all(path=_dvc_file(repo))}
        found = {}
        for stage, key in [(name, key) for name in stages or graph.stages for key in graph.keys(name)]:
            piece = pieces.get(address(stage, key))
            if rendering.recorded(graph.root, stage, key) != now[stage][key.family or "all"]:
                continue
            with suppress(LockError):  # being made by another process
                if piece is not None and (data_version := _data_version(piece)):
                    found[stage, key] = data_version
        return found

    if not rendering.is_project(graph.root) or not (graph.root / rendering.DVC_FILE).is_file():
        return {}
    return _with_repo(graph.root, look, locks.Waiting())


def _data_version(piece: Any) -> str | None:
    return None if piece.status() else str(piece.outs[0].hash_info.value)


def _record(graph: Graph, stage: str, key: Key, before: Snapshot, repo: Any) -> str:
    """Write what was made, and from what, into dvc.lock and the cache; returns the MD5 of the out."""
    # `Repo.commit` in its parts: what `save` hashes is recorded only if it is still what was there before
    piece = _piece(repo, stage, key)
    with chdir(graph.root):  # DVC's cache of runs looks for dvc.yaml in the working directory
        piece.save()
    refuse_changes(graph, stage, key, before)
    piece.commit()
    _enter(graph.root / LOCK_FILE, piece)
    return str(piece.outs[0].hash_info.value)


def _enter(lock: Path, piece: Any) -> None:
    """Write the piece's entry into dvc.lock, as text where that can be done."""
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    entry = dumps_yaml({"schema": "2.0", "stages": to_lockfile(piece)})
    text = with_entry(lock.read_text() if lock.is_file() else "", entry)
    if text is None:
        piece.dump(update_pipeline=False)
        return
    with atomic_file(lock) as temporary:
        temporary.write_text(text)


def _piece(repo: Any, stage: str, key: Key) -> Any:
    """DVC's own object for a piece of work; the path is given since DVC would look in the working directory."""
    return repo.stage.load_one(path=_dvc_file(repo), name=address(stage, key))


def _dvc_file(repo: Any) -> str:
    return str(Path(repo.root_dir) / rendering.DVC_FILE)


class Busy(Exception):
    """Another process holds what is needed, in DVC's own lock."""


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    """DVC's repository. Raises PipelineError for what DVC refuses."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            yield repo
    except LockError as error:
        raise Busy from error
    except DvcException as error:
        raise PipelineError(f"DVC: {error}: `pd-pipeline doctor` may know why") from error


def _with_repo(root: Path, work: Callable[[Any], T], waiting: Waiting, once: bool = False) -> T:
    """Give `work` the locked DVC repository, waiting for processes that hold it or, unless `once`, what it needs.

    Raises Busy where `once` is set and another process holds what the work needs.
    """
    from dvc.repo import lock_repo

    while True:
        try:
            with _repo(root) as repo, lock_repo(repo):
                return work(repo)
        except Busy:  # DVC's lock of outs and dependencies fails at once; only that of the repository is waited for
            waiting.say(_who_holds(root))
            if once:
                raise
            time.sleep(_BUSY_SECONDS)


def _who_holds(root: Path) -> str:
    """A sentence on the processes that DVC's lock file names, and what to do about those that cannot have it."""
    found = dvc_locks.holders(root)
    stale = [holder for holder in found if not holder.plausible]
    if stale:
        return (
            f"waiting for DVC's lock of process {stale[0].pid} ('{stale[0].command}'), but the process of that number "
            f"is '{stale[0].running}': the lock was left behind: `pd-pipeline doctor` removes it"
        )
    names = ", ".join(f"process {holder.pid} ('{holder.command}')" for holder in found) or "another process"
    return f"waiting for DVC's lock, held by {names}: it is free when that ends"
