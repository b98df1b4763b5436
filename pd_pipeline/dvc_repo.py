"""DVC's repository of a project, opened, locked and read: the only module that imports dvc.

`dvc.repo.Repo` is an internal API: tests/test_lineage.py covers what is used of it.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pd_pipeline import dvc_locks, rendering
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.lockfile import HEAD, LOCK_FILE, only, with_entry
from pd_pipeline.locks import Waiting
from pd_pipeline.rendering import address
from pd_pipeline.stage import Key
from pd_pipeline.storage import atomic_file

BUSY_SECONDS = 0.5
T = TypeVar("T")

one_thread = threading.RLock()
"""Held while DVC works: it changes the working directory, and threads of one process share that."""


def init_dvc(root: Path, git_top: Path | None) -> None:
    """Initialise DVC in a folder, inside the git repository at `git_top` if there is one."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        inside = git_top is not None and git_top != root.resolve()
        Repo.init(str(root), no_scm=git_top is None, subdir=inside).close()
    except DvcException as error:
        raise PipelineError(f"{root}: DVC: {error}") from error


class Busy(Exception):
    """Another process holds a DVC lock that is needed."""


@contextmanager
def opened(root: Path) -> Iterator[Any]:
    """Open the DVC repository. Raises Busy if it is locked, and PipelineError for other errors of DVC."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with one_thread, Repo(str(root), _wait_for_lock=True) as repo:
            yield repo
    except LockError as error:
        raise Busy from error
    except DvcException as error:
        raise PipelineError(f"DVC: {error}: `pd-pipeline doctor` may find the cause") from error


def with_repo(root: Path, work: Callable[[Any], T], waiting: Waiting, once: bool = False) -> T:
    """Call `work` with the locked DVC repository, and retry while another process holds a lock that it needs.

    Raises Busy instead of retrying if `once` is set.
    """
    from dvc.repo import lock_repo

    while True:
        try:
            with opened(root) as repo, lock_repo(repo):
                return work(repo)
        except Busy:  # DVC waits for the lock of the repository, but not for those of outs and dependencies
            waiting.say(_who_holds(root))
            if once:
                raise
            time.sleep(BUSY_SECONDS)


def unless_in_use() -> AbstractContextManager[None]:
    """Passes over what another process works on, whose lock DVC cannot take."""
    from dvc.lock import LockError

    return suppress(LockError)


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


def piece_of(graph: Graph, repo: Any, stage: str, key: Key, locked: Mapping[str, Any] | None = None) -> Any:
    """DVC's object for a piece of work, as `repo.stage.load_one` makes it, without reading all the others.

    `locked`: what `locked_entries` found, if it was asked for this piece.
    """
    from dvc.dvcfile import load_file

    file, name = load_file(repo, dvc_file(repo)), address(stage, key)
    entries = locked_entries(repo, [name]) if locked is None else locked
    return file.LOADER.load_stage(file, name, rendering.definition(graph, stage, key), entries.get(name))


def locked_entries(repo: Any, names: Collection[str]) -> dict[str, Any]:
    """The entries of dvc.lock with these names, checked by DVC, which raises DvcException."""
    from dvc.dvcfile import Lockfile
    from dvc.utils.serialize import parse_yaml

    path = Path(repo.root_dir) / LOCK_FILE
    text = only(path.read_text(), names) if path.is_file() else HEAD
    if text == HEAD:
        return {}
    return dict(Lockfile.validate(parse_yaml(text, str(path)) or {}, str(path)).get("stages", {}))


def dvc_file(repo: Any) -> str:
    """The path of dvc.yaml: DVC's default is the working directory."""
    return str(Path(repo.root_dir) / rendering.DVC_FILE)


def enter(lock: Path, piece: Any) -> None:
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
