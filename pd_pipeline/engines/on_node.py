"""Pieces of work, or parts of them, on the node of a cluster that was chosen for them.

A node sees the project under the same path as the process that asked, or where PD_PIPELINE_PROJECT says. Either both
see the same files, or they share outs in a data root (see `data_root`): then the node fetches what it reads and leaves
there what it made.
"""

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pd_pipeline import data_root, locks, made_from, records, storage
from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.data_root import DataRoot
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph, load
from pd_pipeline.incoming import store
from pd_pipeline.piece import is_made, packages, refuse_missing, resume_folder, run_piece, stage_context
from pd_pipeline.progress import LineProgress
from pd_pipeline.records import Record
from pd_pipeline.rendering import address
from pd_pipeline.stage import Key, Spread, StageContext
from pd_pipeline.workers import CORES

PROJECT = "PD_PIPELINE_PROJECT"
"""Variable with the project's folder on this node, where that is another path than on the machine with the command."""
TOKEN = "token"
PARTS, UNSENT = Path(".work/parts"), Path(".work/unsent")
"""Where parts for another node are made, and the metrics of a piece of work until it is in the data root."""
Work = Callable[[StageContext, Sequence[Any]], Iterable[Any]]


class Out(NamedTuple):
    """An out that a piece of work reads; paths are relative to the project."""

    stage: str
    key: str
    home: str
    record: Record


class Inputs(NamedTuple):
    """What a piece of work reads, in a data root."""

    url: str
    outs: tuple[Out, ...]
    recordings: dict[str, str]
    """Path of a user's file, relative to the project -> its SHA-256."""


class Asked(NamedTuple):
    """A piece of work as its graph is rebuilt on a node."""

    root: str
    overrides: tuple[str, ...]
    base: dict[str, Any]
    homes: dict[tuple[str, str | None, int | None], str]
    """As in the graph, relative to the root."""
    stage: str
    key: str
    code: str
    """Digest of its code where it was asked for."""
    work: str
    """Digest of all that it is made from there."""
    packages: dict[str, str]
    """Versions of the packages that compute, there."""
    inputs: Inputs | None = None


def asked(graph: Graph, stage: str, key: Key) -> Asked:
    """What a node has to know of a piece of work. What it reads is sent to the data root, if there is one."""
    shared = data_root.of(graph)
    # a node needs to know no other family and no study, whose data it may not have
    alone = () if key.family is None else (f"run.families=[{key.family}]", "run.studies=[]")
    return Asked(
        root=str(graph.root),
        overrides=(*graph.overrides, *alone),
        base=dict(graph.base),
        homes={name: home.relative_to(graph.root).as_posix() for name, home in graph.homes.items()},
        stage=stage,
        key=str(key),
        code=made_from.code_digest(graph, stage, key),
        work=made_from.work_digest(graph, stage, key),
        packages=packages(),
        inputs=None if shared is None else _sent(shared, graph, stage, key),
    )


def _sent(shared: DataRoot, graph: Graph, stage: str, key: Key) -> Inputs:
    """Send what a piece of work reads to the data root, as far as it is not there."""
    outs = []
    for need, other in graph.upstream(stage, key):
        home, out = graph.home(need, other), graph.root / graph.out(need, other)
        record, files = records.find(home, need, other), records.listing(out)
        if record is None or record.files != files:  # such as after `dvc checkout`
            name = out.relative_to(home).as_posix()
            record = Record(out=name, made="elsewhere", files=files, seconds=0.0)
        shared.send(out, files)
        outs.append(Out(need, str(other), home.relative_to(graph.root).as_posix(), record))
    recordings = {}
    for file in _recordings(graph, key):
        for part in (file.with_suffix(".json"), file):  # an accepted file is there only with what is known of it
            if part.is_file() and graph.root in part.parents:
                recordings[part.relative_to(graph.root).as_posix()] = storage.file_digest(part).hex()
    shared.send(graph.root, recordings)
    return Inputs(shared.url, tuple(outs), recordings)


def _recordings(graph: Graph, key: Key) -> list[Path]:
    """The files of users without which a node does not know the family or the target of a key."""
    if key.family is None:
        return []
    of_family = [path for paths in graph.family(key.family).recordings.values() for path in paths]
    return of_family + ([] if key.task is None else store.files(graph.root, key.family, key.task))


def _fetch_recordings(inputs: Inputs, root: Path) -> None:
    """Fetch files of users that are not here. Raises PipelineError where another file is in their place."""
    shared = DataRoot(inputs.url)
    with locks.held(root, "fetching", "recordings"):  # pieces that start at the same time may read the same
        for name, sha256 in inputs.recordings.items():
            file = root / name
            if not file.is_file():
                with storage.atomic_file(file) as temporary:
                    shared.fetch({temporary.name: sha256}, temporary.parent)
            elif storage.file_digest(file).hex() != sha256:
                raise PipelineError(
                    f"{file}: holds something else than the file of the command: move it away, and run again"
                )


def _recordings_of_here(graph: Graph, key: Key, inputs: Inputs | None) -> list[str]:
    """Files of users that were fetched, or brought, and that the command does not have; sorted."""
    if inputs is None:
        return []
    names = [file.relative_to(graph.root).as_posix() for file in _recordings(graph, key) if graph.root in file.parents]
    return sorted({*names} - inputs.recordings.keys())


def _fetch_outs(inputs: Inputs, root: Path) -> None:
    """Fetch the outs that a piece of work reads, as far as this node has not the same already.

    Raises PipelineError where that would replace a file that the pipeline did not write.
    """
    shared = DataRoot(inputs.url)
    for stage, key, folder, record in inputs.outs:
        home = root / folder
        out = home / record.out
        if _is(out, record):
            continue
        with locks.held(home, stage, key):
            if not _is(out, record):  # another piece that reads it has fetched it meanwhile
                storage.recover(out)
                data_root.replace_out(shared, home, stage, key, out, record)


def _is(out: Path, record: Record) -> bool:
    return out.is_dir() and records.listing(out) == record.files


def compute(piece: Asked, cpus: int, spread: Callable[[Path, str], Spread] | None = None) -> dict[str, Any]:
    """Do a piece of work on this node, on so many cores; its parts by `spread`, if that is given.

    `spread` gets the work folder and a token that this node leaves there, by which others see whether it is theirs.
    """
    graph, stage, key = _prepared(piece, cpus)
    parts = None
    if spread is not None:
        folder, token = resume_folder(graph, stage, key, piece.work), os.urandom(16).hex()
        parts = _with_token(spread(folder, token), folder, token)
    progress = LineProgress(_print)
    if piece.inputs is None:
        return run_piece(graph, stage, key, progress, parts)
    # not the lock of the piece, which the command holds: it may be here, too
    with locks.held(graph.home(stage, key), f"computing-{stage}", key):
        unsent = graph.root / UNSENT / f"{piece.work}.json"
        if not (unsent.is_file() and is_made(graph, stage, key)):
            made = run_piece(graph, stage, key, progress, parts)
            with storage.atomic_file(unsent) as temporary:
                temporary.write_text(json.dumps(made, default=float))
        metrics: dict[str, Any] = json.loads(unsent.read_text())
        data_root.offer(DataRoot(piece.inputs.url), graph, stage, key, metrics, replace=True)
        unsent.unlink()
    return metrics


def _with_token(spread: Spread, folder: Path, token: str) -> Spread:
    """`spread`, with the token in the work folder, which the piece of work makes."""

    def marked(work: Work, parts: Sequence[Any]) -> Iterator[Any]:
        (folder / TOKEN).write_text(token)
        return spread(work, parts)

    return marked


class Parts(NamedTuple):
    """What some parts of a piece of work gave."""

    results: list[Any]
    files: dict[str, str]
    """Files for the work folder that are in the data root: relative path -> SHA-256."""


def compute_parts(piece: Asked, cpus: int, work: Work, parts: Sequence[Any], token: str) -> Parts:
    """Compute some parts of a piece of work on this node, on so many cores.

    They are left in the work folder itself where this node sees that of the node which puts them together: it has the
    token. Raises PipelineError if this node does not see it, and there is no data root.
    """
    graph, stage, key = _prepared(piece, cpus)
    folder = resume_folder(graph, stage, key, piece.work)
    if (folder / TOKEN).is_file() and (folder / TOKEN).read_text() == token:
        return Parts(_worked(graph, stage, key, folder, work, parts), {})
    if piece.inputs is None:
        raise PipelineError(
            f"{_here(piece)}: does not see the files in {folder} of another node: "
            f"share {graph.root} between all nodes, or name a `machine.data_root`"
        )
    (graph.root / PARTS).mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=graph.root / PARTS))
    try:
        results = _worked(graph, stage, key, own, work, parts)
        files = records.listing(own)
        DataRoot(piece.inputs.url).send(own, files)
        return Parts(results, files)
    finally:
        shutil.rmtree(own)


def _worked(graph: Graph, stage: str, key: Key, folder: Path, work: Work, parts: Sequence[Any]) -> list[Any]:
    context = stage_context(graph, stage, key, folder / "unused", folder, LineProgress(_print))
    return list(work(context, parts))


def collected(piece: Asked, folder: Path, done: Parts) -> list[Any]:
    """The results of parts, when their files are in the work folder."""
    if done.files and piece.inputs is not None:
        data_root.fetch_beside(DataRoot(piece.inputs.url), done.files, folder)
    return done.results


def _refuse_other_packages(piece: Asked) -> None:
    """Raise PipelineError if a package that computes has another version here."""
    for package, version in packages().items():
        if version != (there := piece.packages.get(package)):
            raise PipelineError(
                f"{package} {version} is installed, but {there} where the command runs: with another version comes out "
                "something else: install the same on all nodes"
            )


def _prepared(piece: Asked, cpus: int) -> tuple[Graph, str, Key]:
    """The graph on this node, and what is to be made of it, on so many cores.

    Raises PipelineError, with the name of the node, if this node sees something else than the process that asked.
    """
    os.environ[CORES] = str(cpus)
    if "torch" in sys.modules:  # this process has done another piece, perhaps on another number of cores
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", cpus)))
    root = Path(os.environ.get(PROJECT, piece.root)).resolve()
    try:
        graph, key = _same_code(piece, root)
        _refuse_other_packages(piece)
        if piece.inputs is not None:
            _fetch_outs(piece.inputs, root)
        refuse_missing(graph, piece.stage, key)
    except PipelineError as error:
        raise PipelineError(f"{_here(piece)}: {error}") from None
    if made_from.work_digest(graph, piece.stage, key) != piece.work:
        more = _recordings_of_here(graph, key, piece.inputs)
        if more:
            named = f"{root / more[0]}{f' and {len(more) - 1} more' * (len(more) > 1)}"
            raise PipelineError(
                f"{_here(piece)}: {named}: not among the files of the command, such as after one was removed there: "
                "remove it here, too"
            )
        how = "share the files" if piece.inputs is None else "have the same params.yaml"
        raise PipelineError(
            f"{_here(piece)}: {root} has other parameters or inputs than {piece.root}, "
            f"where the command runs: {how} on all nodes"
        )
    return graph, piece.stage, key


def _same_code(piece: Asked, root: Path) -> tuple[Graph, Key]:
    """The graph at `root`, and the key. Raises PipelineError where there is no such project, or other code."""
    if not (root / PARAMS_FILE).is_file():
        raise PipelineError(
            f"{root} holds no {PARAMS_FILE}: have the project there, or set {PROJECT} where `ray start` is called"
        )
    if piece.inputs is not None:
        _fetch_recordings(piece.inputs, root)
    homes = {name: root / folder for name, folder in piece.homes.items()}
    graph = replace(load(root, piece.overrides, piece.base), homes=homes)
    key = graph.key(piece.stage, piece.key)
    if made_from.code_digest(graph, piece.stage, key) != piece.code:
        raise PipelineError(f"sees other code than the command: have the same version of the package and of {root}")
    return graph, key


def _here(piece: Asked) -> str:
    """Begins an error: what was to be made, and on which node."""
    return f"{address(piece.stage, piece.key)}: node {socket.gethostname()}"


def _print(line: str) -> None:
    print(line, flush=True)
