"""Lineage in DVC: what is up to date, and what each out was made from.

`pd-pipeline run`, `dvc repro` and Dagster all call `run` in this module, so all write the same entries to dvc.lock. DVC
hashes dependencies only after a command has finished; here they are also hashed before it, and nothing is recorded if
code, parameters or inputs changed in between.
"""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pd_pipeline import data_root, locks, made_from, records, rendering
from pd_pipeline import graph as graphs
from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.dvc_repo import (
    BUSY_SECONDS,
    Busy,
    dvc_file,
    enter,
    locked_entries,
    one_thread,
    opened,
    piece_of,
    unless_in_use,
    with_repo,
)
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.guard import Snapshot, as_json, refuse_changes, snapshot, stamp
from pd_pipeline.lockfile import LOCK_FILE
from pd_pipeline.locks import PieceLock
from pd_pipeline.piece import Compute, is_made, run_piece
from pd_pipeline.progress import Progress
from pd_pipeline.rendering import address
from pd_pipeline.stage import Key

STAGE_VARIABLE = "DVC_STAGE"  # DVC sets it for the commands it runs


@dataclass(frozen=True)
class Outcome:
    """What `run` did."""

    metrics: dict[str, Any]
    skipped: bool
    data_version: str | None
    """MD5 of the out in DVC; None if nothing was recorded."""


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
                data_root.offer_made(graph, stage, key)
                return Outcome({}, True, data_version)
        waited = by_dvc and lock.waited  # for a process that may have made it
        if (waited or (without_dvc and not force)) and is_made(graph, stage, key):
            data_root.offer_made(graph, stage, key)
            return Outcome({}, True, None)
        before = snapshot(graph, stage, key)
        if record and lock.waited and not force and is_made(graph, stage, key):
            # made by the process that we waited for but not recorded: DVC had started it and was killed
            return Outcome({}, True, _recorded(graph, stage, key, before, lock))
        if rendering.is_project(graph.root):
            _adopt(graph, stage, key)
        metrics = data_root.obtain(graph, stage, key, progress, compute or run_piece, force)
        if record:
            return Outcome(metrics, False, _recorded(graph, stage, key, before, lock))
        refuse_changes(graph, stage, key, before)
        return Outcome(metrics, False, None)


_rendered: dict[Path, str] = {}
"""Root -> state of the rendered files and of their sources when they were last in sync."""


def keep_rendered(graph: Graph) -> bool:
    """Update dvc.yaml, digests.json and the DVC record of the stage that writes digests.json.

    Returns whether a file changed. When called by DVC, which writes its own record, nothing is recorded.
    """
    with one_thread:
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
            with_repo(graph.root, lambda repo: _record_digests(graph.root, repo), locks.Waiting())
        _rendered[graph.root] = _state(graph)
        return changed


def _state(graph: Graph) -> str:
    made = [graph.root / name for name in (rendering.DVC_FILE, rendering.DIGESTS_FILE, LOCK_FILE)]
    read = (*rendering.code_files(graph), *rendering.recording_files(graph), *made[:2])
    stamps = [stamp(path) for path in read if path.exists()]
    decided = [str(folder) for name in graph.stages for folder in made_from.decision_folders(graph, name)]
    return as_json([graph.text, stamps, decided, made[2].exists()])


def _record_digests(root: Path, repo: Any) -> None:
    piece = repo.stage.load_one(path=dvc_file(repo), name=rendering.DIGESTS_STAGE)
    if piece.status():
        with chdir(root):
            piece.save()
        piece.commit()
        enter(root / LOCK_FILE, piece)


def make(graph: Graph, stage: str, key: Key, progress: Progress, compute: Compute | None = None) -> bool:
    """Like `run` for a piece of work of a study's point, unrecorded in DVC. Returns False if it was up to date."""
    with locks.held(graph.home(stage, key), stage, key):
        if is_made(graph, stage, key):
            data_root.offer_made(graph, stage, key)
            return False
        before = snapshot(graph, stage, key)
        data_root.obtain(graph, stage, key, progress, compute or run_piece)
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
    with opened(graph.root) as repo:
        if not piece_of(graph, repo, stage, key).outs[0].status():
            records.write(graph.root, stage, key, out, out, made="elsewhere", seconds=0.0)


def _recorded(graph: Graph, stage: str, key: Key, before: Snapshot, lock: PieceLock) -> str:
    """Record the piece. If DVC works on the same piece, it waits for our lock: release it for a moment."""
    waiting = locks.Waiting()
    while True:
        try:
            return with_repo(graph.root, lambda repo: _record(graph, stage, key, before, repo), waiting, once=True)
        except Busy:
            lock.release()
            time.sleep(BUSY_SECONDS)
            lock.acquire()


# DVC


def up_to_date(graph: Graph, stage: str, key: Key) -> str | None:
    """MD5 of the out if code, parameters, inputs and out match dvc.lock; otherwise None."""
    if not (graph.root / LOCK_FILE).is_file() or not (graph.root / graph.out(stage, key)).exists():
        return None
    if rendering.recorded(graph.root, stage, key) != rendering.digests(graph, stage, key):
        return None
    return with_repo(graph.root, lambda repo: _data_version(piece_of(graph, repo, stage, key)), locks.Waiting())


def is_current(graph: Graph, stage: str, key: Key) -> bool:
    """Whether an out is up to date by its record, or by dvc.lock, such as after `dvc pull`."""
    return is_made(graph, stage, key) or up_to_date(graph, stage, key) is not None


def why(graph: Graph, stage: str, key: Key) -> str:
    """Why a piece of work is out of date, such as `plm changed`; empty if it is up to date, or DVC records nothing."""
    if not rendering.is_project(graph.root):
        return ""
    if not (graph.root / graph.out(stage, key)).exists():
        return "not made yet"
    now = rendering.digests(graph, stage, key)

    def look(repo: Any) -> list[str]:
        piece, found = piece_of(graph, repo, stage, key), []
        for dep in piece.deps:
            if (known := dep.hash_info.value) is None:
                return ["not recorded yet"]
            if isinstance(known, dict):  # an entry of digests.json
                (before,) = known.values()
                found += [f"its {name} changed" for name in now if before.get(name) != now[name]]
            elif dep.status():
                found.append(f"{dep.def_path} changed")
        return found + ["its files changed"] * any(out.status() for out in piece.outs)

    return ", ".join(with_repo(graph.root, look, locks.Waiting()))


def data_versions(graph: Graph, pieces: Iterable[tuple[str, Key]] | None = None) -> dict[tuple[str, Key], str]:
    """(stage, key) -> MD5 of the out, for those of some pieces of work (default: all) that are up to date."""
    now = rendering.all_digests(graph)
    asked = [(name, key) for name in graph.stages for key in graph.keys(name)] if pieces is None else [*pieces]

    def look(repo: Any) -> dict[tuple[str, Key], str]:
        locked, found = locked_entries(repo, {address(*piece) for piece in asked}), {}
        for stage, key in asked:
            if address(stage, key) not in locked:
                continue
            if rendering.recorded(graph.root, stage, key) != now[stage][rendering.entry(key)]:
                continue
            with unless_in_use():
                if data_version := _data_version(piece_of(graph, repo, stage, key, locked)):
                    found[stage, key] = data_version
        return found

    if not rendering.is_project(graph.root) or not (graph.root / rendering.DVC_FILE).is_file():
        return {}
    return with_repo(graph.root, look, locks.Waiting())


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
    if not rendering.is_project(graph.root) or not (graph.root / LOCK_FILE).is_file():
        return {}
    asked = {address(stage, key): (stage, key) for stage, key in pieces}

    def look(repo: Any) -> dict[tuple[str, Key], LockEntry]:
        entries, found = locked_entries(repo, asked), {}
        for name, piece in asked.items():
            with unless_in_use():
                out = graph.root / graph.out(*piece)
                if name in entries and not (out.exists() and piece_of(graph, repo, *piece, entries).outs[0].status()):
                    found[piece] = _lock_entry(entries[name])
        return found

    return with_repo(graph.root, look, locks.Waiting())


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
    piece = piece_of(graph, repo, stage, key)
    with chdir(graph.root):  # DVC's run cache looks for dvc.yaml in the working directory
        piece.save()
    refuse_changes(graph, stage, key, before)
    piece.commit()
    enter(graph.root / LOCK_FILE, piece)
    return str(piece.outs[0].hash_info.value)
