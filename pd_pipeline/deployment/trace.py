"""`pd-pipeline lineage`: all that a promoted policy comes from, and whether the files are still the same."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from pd_pipeline import records
from pd_pipeline.config import Parameters
from pd_pipeline.decisions import CURRENT, Decision, decisions_in
from pd_pipeline.deployment.ancestry import Ancestry, Piece, Source, read_ancestry
from pd_pipeline.deployment.candidates import versions
from pd_pipeline.deployment.folder import FILE, Description, describe, locate
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.storage import file_digest, read_json

State = Literal["same", "changed", "made again", "not here", "unknown"]
STATES: dict[State, str] = {
    "same": "the same files",
    "changed": "changed since",
    "made again": "made again since",
    "not here": "not here",
    "unknown": "its files are not known",
}


class Check(Parameters):
    """The files, compared with the digests of then."""

    good: bool = Field(description="whether the policy's own files are the same; nothing else decides this")
    policy: dict[str, State] = Field(description="file of the policy folder -> state")
    pieces: dict[str, State] = Field(description="name of a piece -> state of its out in the working directory")
    sources: dict[str, State] = Field(description="raw file -> its state in the working directory")


class Trace(Parameters):
    """What `pd-pipeline lineage --json` prints."""

    folder: str = Field(description="the policy folder")
    version: int | None = Field(description="its number; null: not in a folder of versions")
    in_use: bool | None = Field(description="whether it is the one in use; null: not in a folder of versions")
    since: str | None = Field(description="UTC time since when it is in use; null: it is not")
    decision: Decision | None = Field(description="by which it was promoted; null: not known here")
    policy: Description = Field(description="policy.json")
    lineage: Ancestry = Field(description="lineage.json")
    check: Check | None = Field(default=None, description="with --check")


def trace(path_or_target: str, version: int | None = None) -> Trace:
    """What a policy comes from: that of a policy folder, or the one of a target that is in use, or another version.

    A target is one in data/promoted/ below the working directory, or a folder with versions. Raises PipelineError.
    """
    folder = _folder(path_or_target, version)
    description = describe(folder)
    number, home = _version(folder)
    now = read_json(home / CURRENT) if number is not None else {}
    promoted = [d for d in decisions_in(home) if d.outcome == "promoted" and d.version == number]
    in_use = None if number is None else now.get("version") == number
    return Trace(
        folder=folder.as_posix(),
        version=number,
        in_use=in_use,
        since=str(now["since"]) if in_use and "since" in now else None,
        decision=promoted[-1] if promoted and number is not None else None,
        policy=description,
        lineage=read_ancestry(folder, description),
    )


def _folder(path_or_target: str, version: int | None) -> Path:
    folder = locate(path_or_target)
    if version is None:
        return folder
    number, home = _version(folder)
    if number is None:
        raise PipelineError(f"--version {version}: {folder} is a policy folder and not a target with versions: omit it")
    known = versions(home)
    if version not in known:
        raise PipelineError(f"--version {version}: {home}: {suggestion(str(version), map(str, known))}")
    return home / f"{version:04d}"


def _version(folder: Path) -> tuple[int | None, Path]:
    """The number of a policy folder among the versions of a target, or None, and the folder above it."""
    named = folder if folder.name else folder.absolute()
    is_version = re.fullmatch(r"\d{4,}", named.name) and (named.parent / CURRENT).is_file()
    return (int(named.name) if is_version else None), named.parent


def checked(found: Trace, root: Path) -> Trace:
    """`found` with the result of hashing the policy's files, and what is upstream in the project at `root`."""
    folder, policy = Path(found.folder), {FILE: _description_state(found)}
    for name, digest in found.policy.files.items():
        policy[name] = _file_state(folder / name, digest)
    pieces = {piece.name: _piece_state(piece, root) for piece in found.lineage.pieces}
    sources = {
        source.file: _file_state(root / source.file, source.digest)
        for piece in found.lineage.pieces
        for source in piece.sources
        if source.file is not None
    }
    good = all(state == "same" for state in policy.values())
    return found.model_copy(update={"check": Check(good=good, policy=policy, pieces=pieces, sources=sources)})


def _description_state(found: Trace) -> State:
    """Nothing holds a digest of policy.json itself: it must agree with lineage.json and with the decision."""
    made_from = {f"{p.out}/{name}": digest for p in found.lineage.pieces for name, digest in p.files.items()}
    agrees = all(made_from.get(name) == digest for name, digest in found.policy.made_from.items())
    decided = found.decision is None or found.decision.made_from == found.policy.made_from
    return "same" if agrees and decided else "changed"


def _file_state(path: Path, digest: str | None) -> State:
    if not path.is_file():
        return "not here"
    if digest is None:
        return "unknown"
    return "same" if file_digest(path).hex() == digest else "changed"


def _piece_state(piece: Piece, root: Path) -> State:
    out = root / piece.out
    if not out.is_dir():
        return "not here"
    if not piece.files:
        return "unknown"
    files = records.listing(out)
    if files == piece.files:
        return "same"
    record = records.find(root, piece.stage, piece.key)
    return "made again" if record is not None and record.files == files else "changed"


def few_shot_of(source: Source, ancestry: Ancestry) -> tuple[int, ...]:
    """The few-shot episodes that are in an accepted file, by their numbers in `target_data`."""
    if source.first_episode is None or source.episodes is None:
        return ()
    numbers = range(source.first_episode, source.first_episode + source.episodes)
    return tuple(episode for episode in ancestry.tuned_on.get(source.quality, ()) if episode in numbers)
