"""Outs in a folder or bucket that machines share: what one of them has made, no other makes again.

    files/ab/<SHA-256>       the contents of a file, once
    outs/ab/<digest>.json    what a piece of work left (`Entry`); `digest` is that of its code, parameters and inputs

`machine.data_root` names the place: a path, or a URL that fsspec knows, such as s3://bucket/folder. A machine copies
whole outs from there into its own `data/`, and back. The entry of an out is written after the files that it names, so
it is there completely or not at all, and what is read is checked against its SHA-256.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pd_pipeline import records
from pd_pipeline.config import PARAMS_FILE, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.parsing import parse
from pd_pipeline.piece import Compute, is_made, refuse_missing, replaceable, resume_folder
from pd_pipeline.progress import Progress
from pd_pipeline.records import Record
from pd_pipeline.stage import Key
from pd_pipeline.storage import atomic_directory, atomic_file, file_digest, remove

CONNECTIONS = 16
"""Files on their way at once: a bucket takes tens of milliseconds to answer, whatever their size."""


class Entry(Parameters):
    """What a piece of work left."""

    record: Record
    metrics: dict[str, Any] = {}


class DataRoot:
    """The files and entries at `url`. Raises PipelineError where the URL or the package for it is wrong.

    Whatever else goes wrong there is an OSError that names the URL, since it may be gone the next time.
    """

    def __init__(self, url: str):
        import fsspec  # here, since few projects have one, and every command would pay for it
        from fsspec.implementations.local import LocalFileSystem

        self.url = url
        try:
            self._files, self._path = fsspec.url_to_fs(url)
            self._is_local = isinstance(self._files, LocalFileSystem)
        except (ImportError, ValueError) as error:
            raise PipelineError(
                f"{PARAMS_FILE}: machine.data_root: {url}: {error}: name a folder, or a URL whose package is "
                "installed (for s3://: pip install 'pd-pipeline[s3]')"
            ) from None

    def send(self, folder: Path, files: Mapping[str, str]) -> None:
        """Copy files of a folder (relative path -> SHA-256) there, as far as they are not there yet."""
        with self._reached(), ThreadPoolExecutor(CONNECTIONS) as threads:
            list(threads.map(lambda name: self._send(folder / name, self._place(files[name])), files))

    def _send(self, source: Path, place: str) -> None:
        try:
            if self._files.info(place)["size"] == source.stat().st_size:  # else an upload was cut off
                return
        except FileNotFoundError:
            pass
        if self._is_local:
            with atomic_file(Path(place)) as temporary:
                shutil.copyfile(source, temporary)
        else:  # a bucket shows an object when it is complete
            self._files.put_file(str(source), place)

    def fetch(self, files: Mapping[str, str], folder: Path) -> None:
        """Copy files (relative path -> SHA-256) from there into a folder."""
        with self._reached(), ThreadPoolExecutor(CONNECTIONS) as threads:
            list(threads.map(lambda name: self._fetch(files[name], folder / name), files))

    def _fetch(self, sha256: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(self._place(sha256), str(target))
        if file_digest(target).hex() != sha256:
            raise PipelineError(f"{self.url}: {self._place(sha256)} is damaged: remove it and run again")

    def find(self, made: str) -> Entry | None:
        """The entry of the work with this digest, if there is one."""
        place = self._entry(made)
        with self._reached():
            try:
                text = self._files.cat_file(place)
            except FileNotFoundError:
                return None
        try:
            return parse(Entry, json.loads(text), place)
        except (ValueError, PipelineError) as error:
            raise PipelineError(f"{self.url}: {place} is damaged ({error}): remove it and run again") from None

    def enter(self, entry: Entry) -> None:
        """Write an entry whose files are there."""
        place, text = self._entry(entry.record.made), entry.model_dump_json(indent=1)
        with self._reached():
            if self._is_local:
                with atomic_file(Path(place)) as temporary:
                    temporary.write_text(text)
            else:
                self._files.pipe_file(place, text.encode())

    def _place(self, sha256: str) -> str:
        return f"{self._path}/files/{sha256[:2]}/{sha256}"

    def _entry(self, made: str) -> str:
        return f"{self._path}/outs/{made[:2]}/{made}.json"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:  # each kind of storage has its own errors
            raise OSError(f"machine.data_root: {self.url}: {error or type(error).__name__}") from error


def of(graph: Graph) -> DataRoot | None:
    """The data root of a project, if it has one."""
    url = graph.params.machine.data_root
    if url is None:
        return None
    return DataRoot(url if "://" in url else str(graph.root / Path(url).expanduser()))


def obtain(
    graph: Graph, stage: str, key: Key, progress: Progress, compute: Compute, force: bool = False
) -> dict[str, Any]:
    """Take the out of a piece of work from the data root, or else `compute` it and put it there. Returns its metrics.

    `force`: compute it in any case. Without a data root, compute it.
    """
    root = of(graph)
    if root is None:
        return compute(graph, stage, key, progress)
    refuse_missing(graph, stage, key)
    if not force and (metrics := take(root, graph, stage, key, progress)) is not None:
        return metrics
    metrics = compute(graph, stage, key, progress)
    offer(root, graph, stage, key, metrics)
    return metrics


def take(root: DataRoot, graph: Graph, stage: str, key: Key, progress: Progress) -> dict[str, Any] | None:
    """Copy the out of a piece of work from there. Returns its metrics; None if there is none.

    Raises PipelineError if the out contains files that the stage did not write: these are never replaced.
    """
    entry = root.find(graph.work_digest(stage, key))
    if entry is None:
        return None
    if not is_made(graph, stage, key):
        title, count = f"{stage} {key}, from {root.url}".replace(" ,", ","), len(entry.record.files)
        progress(title, 0, count)
        replace_out(root, graph.home(stage, key), stage, key, replaceable(graph, stage, key), entry.record)
        progress(title, count, count)
    shutil.rmtree(resume_folder(graph, stage, key, entry.record.made).parent, ignore_errors=True)
    return entry.metrics


def offer(root: DataRoot, graph: Graph, stage: str, key: Key, metrics: Mapping[str, Any]) -> None:
    """Copy the out of a piece of work there, unless it was made from something else than is here now.

    One that is there already, such as from a node of a cluster, is left.
    """
    record = records.find(graph.home(stage, key), stage, key)
    assert record is not None, f"{stage} {key} was made without a record"
    if record.made != graph.work_digest(stage, key):
        return  # code, parameters or inputs changed meanwhile: the caller finds that, too, and says so
    entry = Entry(record=record.model_copy(update={"replaced": {}}), metrics=dict(metrics))
    if root.find(record.made) != entry:
        root.send(graph.root / graph.out(stage, key), record.files)
        root.enter(entry)


def replace_out(root: DataRoot, home: Path, stage: str, key: object, out: Path, record: Record) -> None:
    """Replace an out by the one that `record` describes. Raises PipelineError if it has files of the user."""
    with atomic_directory(out) as new:
        root.fetch(record.files, new)
        records.refuse_foreign(out, records.foreign(out, records.find(home, stage, key)), stage)
        records.write(home, stage, key, out, new, **record.model_dump(exclude={"out", "files", "replaced"}))


def fetch_beside(root: DataRoot, files: Mapping[str, str], folder: Path) -> None:
    """Fetch files into a folder; what stands in it directly, a file or a folder, appears there whole."""
    with atomic_directory(folder / ".fetched") as new:
        root.fetch(files, new)
    for part in sorted((folder / ".fetched").iterdir()):
        remove(folder / part.name)
        part.rename(folder / part.name)
    remove(folder / ".fetched")
