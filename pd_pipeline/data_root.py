"""Outs in a folder or bucket that machines share: what one of them has made, no other makes again.

    files/ab/<SHA-256>       the contents of a file, once
    outs/ab/<digest>.json    what a piece of work left (`Entry`), by the digest of what it was made from (`name_of`)

`machine.data_root` names the place: a path, or a URL that fsspec knows, such as s3://bucket/folder. A machine copies
whole outs from there into its own `data/`, and back. An entry is written after the files that it names, what is read is
checked against its SHA-256, and an entry whose files are gone or damaged counts for nothing: its out is made again. So
anything there may be removed at any time.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pd_pipeline import made_from, records
from pd_pipeline.config import PARAMS_FILE, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.parsing import parse
from pd_pipeline.piece import Compute, is_made, name_of, packages, refuse_missing, replaceable, resume_folder
from pd_pipeline.progress import Progress
from pd_pipeline.records import Record
from pd_pipeline.stage import Key
from pd_pipeline.storage import atomic_directory, atomic_file, digest, file_digest, remove

CONNECTIONS = 16
"""Files on their way at once: a bucket takes tens of milliseconds to answer, whatever their size."""
SENT = Path(".work/shared")
"""One empty file per entry that this machine knows to be there, so that no command asks for it again."""
log = logging.getLogger("pd_pipeline")
_found: set[str] = set()
"""URLs at which this process has found the folder or bucket."""


class Gone(PipelineError):
    """A file that an entry names is not there, or damaged and now removed."""


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
        by_content = {sha256: folder / name for name, sha256 in files.items()}
        with self._reached(), ThreadPoolExecutor(CONNECTIONS) as threads:
            list(threads.map(lambda sha256: self._send(by_content[sha256], self._place(sha256)), by_content))

    def _send(self, source: Path, place: str) -> None:
        with suppress(FileNotFoundError):
            if self._files.info(place)["size"] == source.stat().st_size:  # else an upload was cut off
                return
        if self._is_local:
            with atomic_file(Path(place)) as temporary:
                shutil.copyfile(source, temporary)
        else:  # a bucket shows an object when it is complete
            self._files.put_file(str(source), place)

    def fetch(self, files: Mapping[str, str], folder: Path) -> None:
        """Copy files (relative path -> SHA-256) from there into a folder. Raises Gone where one is not there."""
        with self._reached(), ThreadPoolExecutor(CONNECTIONS) as threads:
            list(threads.map(lambda name: self._fetch(files[name], folder / name), files))

    def _fetch(self, sha256: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = self._place(sha256)
        try:
            self._files.get_file(place, str(target))
        except FileNotFoundError:
            raise Gone(f"{self.url}: {place} is not there any more: run again") from None
        if file_digest(target).hex() != sha256:
            self._files.rm_file(place)
            raise Gone(f"{self.url}: {place} was damaged, and is removed: run again")

    def find(self, name: str) -> Entry | None:
        """The entry with this name; None if there is none that can be read."""
        place = self._entry(name)
        with self._reached():
            try:
                text = self._files.cat_file(place)
            except FileNotFoundError:
                return None
        try:
            return parse(Entry, json.loads(text), place)
        except (ValueError, PipelineError) as error:
            log.warning(f"{self.url}: {place} is damaged, so what it names is made again ({error})")
            return None

    def enter(self, name: str, entry: Entry) -> None:
        """Write an entry whose files are there."""
        values = {"record": entry.record.model_dump(mode="json"), "metrics": entry.metrics}
        place, text = self._entry(name), json.dumps(values, indent=1, default=float)
        with self._reached():
            if self._is_local:
                with atomic_file(Path(place)) as temporary:
                    temporary.write_text(text)
            else:
                self._files.pipe_file(place, text.encode())

    def forget(self, entry: Entry) -> None:
        """Remove an entry whose files are not there."""
        with self._reached(), suppress(FileNotFoundError):
            self._files.rm_file(self._entry(name_of(entry.record.made)))

    def _place(self, sha256: str) -> str:
        return f"{self._path}/files/{sha256[:2]}/{sha256}"

    def _entry(self, name: str) -> str:
        return f"{self._path}/outs/{name[:2]}/{name}.json"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raises PipelineError if the folder or the bucket does not exist: it is not for this package to make it."""
        try:
            if self.url not in _found:
                place = self._path if self._is_local else self._path.split("/")[0]
                try:
                    self._files.info(place)
                except FileNotFoundError:
                    raise PipelineError(
                        f"machine.data_root: {self.url}: there is no {place}: make it, mount it, or correct the URL"
                    ) from None
                _found.add(self.url)
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

    `force`: compute it in any case, and replace what is there. Without a data root, compute it; also what reads the
    results of everything, such as the report, which names the machine and the revision that wrote it.
    """
    root = of(graph) if graph.stages[stage].axes else None
    if root is None:
        return compute(graph, stage, key, progress)
    refuse_missing(graph, stage, key)
    if not force and (metrics := take(root, graph, stage, key, progress)) is not None:
        return metrics
    metrics = compute(graph, stage, key, progress)
    with _only_warned(root, stage, key):
        offer(root, graph, stage, key, metrics, replace=force)
    return metrics


def take(root: DataRoot, graph: Graph, stage: str, key: Key, progress: Progress) -> dict[str, Any] | None:
    """Copy the out of a piece of work from there, unless the same is here. Returns its metrics; None if there is none.

    Raises PipelineError if the out contains files that the stage did not write: these are never replaced.
    """
    entry = root.find(name_of(made_from.work_digest(graph, stage, key)))
    if entry is None:
        return None
    home = graph.home(stage, key)
    here = records.find(home, stage, key)
    if here is None or here.files != entry.record.files or not is_made(graph, stage, key):
        title, count = f"{stage} {key}, from {root.url}", len(entry.record.files)
        progress(title, 0, count)
        try:
            replace_out(root, home, stage, key, replaceable(graph, stage, key), entry.record)
        except Gone as error:
            log.warning(f"{stage} {key}: made again: {error}")
            root.forget(entry)
            return None
        progress(title, count, count)
    _mark(root, graph, entry.record.made).touch()
    shutil.rmtree(resume_folder(graph, stage, key, entry.record.made).parent, ignore_errors=True)
    return entry.metrics


def offer(
    root: DataRoot, graph: Graph, stage: str, key: Key, metrics: Mapping[str, Any], replace: bool = False
) -> None:
    """Copy the out of a piece of work there, unless it was made from something else, or with others, than is here now.

    If there is one already, it is left, or replaced.
    """
    record = records.find(graph.home(stage, key), stage, key)
    if record is None or record.packages != packages() or record.made != made_from.work_digest(graph, stage, key):
        return  # it changed meanwhile, which the caller finds, too; or another command made it, such as `dvc pull`
    entry, name = Entry(record=record.model_copy(update={"replaced": {}}), metrics=dict(metrics)), name_of(record.made)
    there = root.find(name)
    if there is None or (replace and there.record.files != record.files):
        root.send(graph.root / graph.out(stage, key), record.files)
        root.enter(name, entry)
    _mark(root, graph, record.made).touch()


def offer_made(graph: Graph, stage: str, key: Key) -> None:
    """Copy an out there that was up to date already, if this machine has not yet done so. Failing to is no error."""
    root = of(graph) if graph.stages[stage].axes else None
    record = records.find(graph.home(stage, key), stage, key)
    if root is None or record is None or _mark(root, graph, record.made).exists():
        return
    with _only_warned(root, stage, key):
        offer(root, graph, stage, key, {})


def _mark(root: DataRoot, graph: Graph, made: str) -> Path:
    """The file that stands for an entry; another data root has other ones."""
    mark = graph.root / SENT / digest(root.url, made)
    mark.parent.mkdir(parents=True, exist_ok=True)
    return mark


@contextmanager
def _only_warned(root: DataRoot, stage: str, key: Key) -> Iterator[None]:
    """Hours of work are not given up because a bucket is full or does not answer: the next command tries again."""
    try:
        yield
    except (OSError, PipelineError) as error:
        log.warning(f"{stage} {key}: is made, but not left at {root.url}: {error}")


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
