"""Lineage in DVC: what is up to date, and what each out was made from.

`pd-pipeline run`, `dvc repro` and Dagster all call `run` in this module, so all write the same entries to dvc.lock. DVC
hashes dependencies only after a command has finished; here they are also hashed before it, and nothing is recorded if
code, parameters or inputs changed in between.

This is the only module that imports dvc. `dvc.repo.Repo` is an internal API: tests/test_lineage.py covers what is used
of it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pd_pipeline import dvc_locks, locks, records, rendering
from pd_pipeline import graph as graphs
from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.guard import Snapshot, as_json, refuse_changes, snapshot, stamp
from pd_pipeline.lockfile import HEAD, LOCK_FILE, only, with_entry
from pd_pipeline.locks import PieceLock, Waiting
from pd_pipeline.piece import Compute, is_made, run_piece
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
    """MD5 of the out in DVC; None if nothing was recorded."""


def init_dvc(root: Path, git_top: Path | None) -> None:
    """Initialise DVC in a folder, inside the git repository at `git_top` if there is one."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        inside = git_top is not None and git_top != root.resolve()
        Repo.init(str(root), no_scm=git_top is None, subdir=inside).close()
    except DvcException as error:
        raise PipelineError(f"{root}: DVC: {error}") from error


def run(
    graph: Graph,
    stage: str,
    key: Key,
    progress: Progress,
    *,
    force: bool = False,
    record: bool = True,
    compute: Compute | None = None,
) -> Outcome:
    """Do one piece of work unless it is up to date, and record it. `compute` does it elsewhere; None: this process.

    One process at a time works on a piece: a second process waits and then finds it up to date. params.yaml is read
    once for the work and its record; if it changed since `graph` was loaded, it is reloaded before the work starts.
    Outside a DVC project nothing is recorded in DVC, and the record beside the out says whether it is up to date. When
    called by DVC (which writes its own record) or with `record=False`, the work is done, unless another process did it
    while this one waited. Raises PipelineError if code, parameters or inputs changed during the work.
    """
    by_dvc = STAGE_VARIABLE in os.environ
    without_dvc = record and not by_dvc and not is_recording(graph)
    record = record and is_recording(graph)
    graph = graphs.current(graph)
    key = graph.key(stage, str(key))
    with locks.held(graph.root, stage, key) as lock:
        if record:
            keep_rendered(graph)
            if not force and (data_version := up_to_date(graph, stage, key)):
                return Outcome({}, True, data_version)
        waited = by_dvc and lock.waited  # for a process that may have made it
        if (waited or (without_dvc and not force)) and is_made(graph, stage, key):
            return Outcome({}, True, None)
        before = snapshot(graph, stage, key)
        if record and lock.waited and not force and is_made(graph, stage, key):
            # made by the process that we waited for but not recorded: DVC had started it and was killed
            return Outcome({}, True, _recorded(graph, stage, key, before, lock))
        if rendering.is_project(graph.root):
            _adopt(graph, stage, key)
        metrics = (compute or run_piece)(graph, stage, key, progress)
        if record:
            return Outcome(metrics, False, _recorded(graph, stage, key, before, lock))
        refuse_changes(graph, stage, key, before)
        return Outcome(metrics, False, None)


_one_thread = threading.RLock()
"""Held while DVC works: it changes the working directory, and threads of one process share that."""
_rendered: dict[Path, str] = {}
"""Root -> state of the rendered files and of their sources when they were last in sync."""


def keep_rendered(graph: Graph) -> bool:
    """Update dvc.yaml, digests.json and the DVC record of the stage that writes digests.json.

    Returns whether a file changed. When called by DVC, which writes its own record, nothing is recorded.
    """
    with _one_thread:
        if _rendered.get(graph.root) == _state(graph):
            return False
        file = graph.root / rendering.DVC_FILE
        before = file.read_text() if file.is_file() else None
        changed = rendering.write(graph)
        if STAGE_VARIABLE in os.environ and rendering.pieces_of(before) != rendering.pieces_of(file.read_text()):
            raise PipelineError(
                f"{rendering.DVC_FILE} was out of date: {PARAMS_FILE} or the code asks for other pieces of work. It is "
                "written again now; DVC has read the old one: repeat the command"
            )
        if is_recording(graph):
            _with_repo(graph.root, lambda repo: _record_digests(graph.root, repo), locks.Waiting())
        _rendered[graph.root] = _state(graph)
        return changed


def _state(graph: Graph) -> str:
    made = [graph.root / name for name in (rendering.DVC_FILE, rendering.DIGESTS_FILE, LOCK_FILE)]
    read = (*rendering.code_files(graph), *rendering.recording_files(graph), *made[:2])
    stamps = [stamp(path) for path in read if path.exists()]
    decided = [str(folder) for name in graph.stages for folder in graph.decision_folders(name)]
    return as_json([graph.text, stamps, decided, made[2].exists()])


def _record_digests(root: Path, repo: Any) -> None:
    piece = repo.stage.load_one(path=_dvc_file(repo), name=rendering.DIGESTS_STAGE)
    if piece.status():
        with chdir(root):
            piece.save()
        piece.commit()
        _enter(root / LOCK_FILE, piece)


def make(graph: Graph, stage: str, key: Key, progress: Progress, compute: Compute | None = None) -> bool:
    """Like `run` for a piece of work of a study's point, unrecorded in DVC. Returns False if it was up to date."""
    with locks.held(graph.home(stage, key), stage, key):
        if is_made(graph, stage, key):
            return False
        before = snapshot(graph, stage, key)
        (compute or run_piece)(graph, stage, key, progress)
        refuse_changes(graph, stage, key, before)
    return True


def is_recording(graph: Graph) -> bool:
    """Whether work is recorded by this process: in a DVC project, unless DVC called it and records it itself."""
    return rendering.is_project(graph.root) and STAGE_VARIABLE not in os.environ


def _adopt(graph: Graph, stage: str, key: Key) -> None:
    """Write the missing record of an out if its files match dvc.lock, such as after `dvc checkout`."""
    out = graph.root / graph.out(stage, key)
    known = not records.foreign(out, records.find(graph.root, stage, key))
    if known or not out.is_dir() or not (graph.root / LOCK_FILE).is_file():
        return
    with _repo(graph.root) as repo:
        if not _piece(graph, repo, stage, key).outs[0].status():
            records.write(graph.root, stage, key, out, out, made="elsewhere", seconds=0.0)


def _recorded(graph: Graph, stage: str, key: Key, before: Snapshot, lock: PieceLock) -> str:
    """Record the piece. If DVC works on the same piece, it waits for our lock: release it for a moment."""
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
    """MD5 of the out if code, parameters, inputs and out match dvc.lock; otherwise None."""
    if not (graph.root / LOCK_FILE).is_file() or not (graph.root / graph.out(stage, key)).exists():
        return None
    if rendering.recorded(graph.root, stage, key) != rendering.digests(graph, stage, key):
        return None
    return _with_repo(graph.root, lambda repo: _data_version(_piece(graph, repo, stage, key)), locks.Waiting())


def why(graph: Graph, stage: str, key: Key) -> str:
    """Why a piece of work is out of date, such as `plm changed`; empty if it is up to date, or DVC records nothing."""
    if not rendering.is_project(graph.root):
        return ""
    if not (graph.root / graph.out(stage, key)).exists():
        return "not made yet"
    now = rendering.digests(graph, stage, key)

    def look(repo: Any) -> list[str]:
        piece, found = _piece(graph, repo, stage, key), []
        for dep in piece.deps:
            if (known := dep.hash_info.value) is None:
                return ["not recorded yet"]
            if isinstance(known, dict):  # an entry of digests.json
                (before,) = known.values()
                found += [f"its {name} changed" for name in now if before.get(name) != now[name]]
            elif dep.status():
                found.append(f"{dep.def_path} changed")
        return found + ["its files changed"] * any(out.status() for out in piece.outs)

    return ", ".join(_with_repo(graph.root, look, locks.Waiting()))


def data_versions(graph: Graph, stages: Iterable[str] | None = None) -> dict[tuple[str, Key], str]:
    """(stage, key) -> MD5 of the out, for all work that is up to date in the given stages (default: all)."""
    from dvc.lock import LockError

    now = rendering.all_digests(graph)

    def look(repo: Any) -> dict[tuple[str, Key], str]:
        pieces = [(name, key) for name in stages or graph.stages for key in graph.keys(name)]
        locked, found = _locked(repo, {address(*piece) for piece in pieces}), {}
        for stage, key in pieces:
            if address(stage, key) not in locked:
                continue
            if rendering.recorded(graph.root, stage, key) != now[stage][rendering.entry(key)]:
                continue
            with suppress(LockError):  # another process works on it
                if data_version := _data_version(_piece(graph, repo, stage, key, locked)):
                    found[stage, key] = data_version
        return found

    if not rendering.is_project(graph.root) or not (graph.root / rendering.DVC_FILE).is_file():
        return {}
    return _with_repo(graph.root, look, locks.Waiting())


@dataclass(frozen=True)
class LockEntry:
    """What dvc.lock says of one piece of work."""

    md5: str
    """MD5 of the out, by which DVC's cache and remotes know it."""
    inputs: dict[str, str]
    """Path of an input, relative to the project -> its MD5."""
    digests: dict[str, str]
    """Digests of code and parameters, as `rendering.digests` gives them."""


def lock_entries(graph: Graph, pieces: Iterable[tuple[str, Key]]) -> dict[tuple[str, Key], LockEntry]:
    """The entries in dvc.lock of those pieces of work whose outs are as recorded there, or are not here."""
    from dvc.lock import LockError

    if not rendering.is_project(graph.root) or not (graph.root / LOCK_FILE).is_file():
        return {}
    asked = {address(stage, key): (stage, key) for stage, key in pieces}

    def look(repo: Any) -> dict[tuple[str, Key], LockEntry]:
        entries, found = _locked(repo, asked), {}
        for name, piece in asked.items():
            with suppress(LockError):  # in use by another process
                out = graph.root / graph.out(*piece)
                if name in entries and not (out.exists() and _piece(graph, repo, *piece, entries).outs[0].status()):
                    found[piece] = _lock_entry(entries[name])
        return found

    return _with_repo(graph.root, look, locks.Waiting())


def _lock_entry(values: Mapping[str, Any]) -> LockEntry:
    recorded = values.get("params", {}).get(rendering.DIGESTS_FILE, {})
    return LockEntry(
        md5=values["outs"][0]["md5"],
        inputs={dependency["path"]: dependency["md5"] for dependency in values.get("deps", ())},
        digests=next(iter(recorded.values()), {}),  # each piece depends on one entry of digests.json
    )


def _data_version(piece: Any) -> str | None:
    return None if piece.status() else str(piece.outs[0].hash_info.value)


def _record(graph: Graph, stage: str, key: Key, before: Snapshot, repo: Any) -> str:
    """Record the out and its dependencies in dvc.lock and the cache. Returns the MD5 of the out."""
    # the steps of `Repo.commit`: what `save` hashed is recorded only if nothing has changed since `before`
    piece = _piece(graph, repo, stage, key)
    with chdir(graph.root):  # DVC's run cache looks for dvc.yaml in the working directory
        piece.save()
    refuse_changes(graph, stage, key, before)
    piece.commit()
    _enter(graph.root / LOCK_FILE, piece)
    return str(piece.outs[0].hash_info.value)


def _enter(lock: Path, piece: Any) -> None:
    """Write the piece's entry to dvc.lock, as a text edit if possible."""
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    entry = dumps_yaml({"schema": "2.0", "stages": to_lockfile(piece)})
    text = with_entry(lock.read_text() if lock.is_file() else "", entry)
    if text is None:
        piece.dump(update_pipeline=False)
        return
    with atomic_file(lock) as temporary:
        temporary.write_text(text)


def _piece(graph: Graph, repo: Any, stage: str, key: Key, locked: Mapping[str, Any] | None = None) -> Any:
    """DVC's object for a piece of work, as `repo.stage.load_one` makes it, without reading all the others.

    `locked`: what `_locked` found, if it was asked for this piece.
    """
    from dvc.dvcfile import load_file

    file, name = load_file(repo, _dvc_file(repo)), address(stage, key)
    entries = _locked(repo, [name]) if locked is None else locked
    return file.LOADER.load_stage(file, name, rendering.definition(graph, stage, key), entries.get(name))


def _locked(repo: Any, names: Collection[str]) -> dict[str, Any]:
    """The entries of dvc.lock with these names, checked by DVC, which raises DvcException."""
    from dvc.dvcfile import Lockfile
    from dvc.utils.serialize import parse_yaml

    path = Path(repo.root_dir) / LOCK_FILE
    text = only(path.read_text(), names) if path.is_file() else HEAD
    if text == HEAD:
        return {}
    return dict(Lockfile.validate(parse_yaml(text, str(path)) or {}, str(path)).get("stages", {}))


def _dvc_file(repo: Any) -> str:
    return str(Path(repo.root_dir) / rendering.DVC_FILE)


class Busy(Exception):
    """Another process holds a DVC lock that is needed."""


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    """Open the DVC repository. Raises Busy if it is locked, and PipelineError for other errors of DVC."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with _one_thread, Repo(str(root), _wait_for_lock=True) as repo:
            yield repo
    except LockError as error:
        raise Busy from error
    except DvcException as error:
        raise PipelineError(f"DVC: {error}: `pd-pipeline doctor` may find the cause") from error


def _with_repo(root: Path, work: Callable[[Any], T], waiting: Waiting, once: bool = False) -> T:
    """Call `work` with the locked DVC repository, and retry while another process holds a lock that it needs.

    Raises Busy instead of retrying if `once` is set.
    """
    from dvc.repo import lock_repo

    while True:
        try:
            with _repo(root) as repo, lock_repo(repo):
                return work(repo)
        except Busy:  # DVC waits for the lock of the repository, but not for those of outs and dependencies
            waiting.say(_who_holds(root))
            if once:
                raise
            time.sleep(_BUSY_SECONDS)


def _who_holds(root: Path) -> str:
    """A sentence about the processes named in DVC's lock file, and what to do if such a lock is stale."""
    found = dvc_locks.holders(root)
    stale = [holder for holder in found if not holder.plausible]
    if stale:
        return (
            f"waiting for DVC's lock, held by process {stale[0].pid} ('{stale[0].command}'), but the process with this "
            f"number is '{stale[0].running}': the lock is stale: `pd-pipeline doctor` removes it"
        )
    names = ", ".join(f"process {holder.pid} ('{holder.command}')" for holder in found) or "another process"
    return f"waiting for DVC's lock, held by {names}: continues when that ends"
