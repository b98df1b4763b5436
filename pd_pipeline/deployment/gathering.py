"""Gathers all that a tuned policy comes from, as it was made and not as the project would make it now.

What is known of an out is in its record, written on the machine that made it, and in dvc.lock, which also knows outs
that were pulled. Either says by digest what the out was made from. Where that is not the upstream out that is here now,
because that one was made again, the way back ends: nothing else is known of the one that was replaced.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from pd_pipeline import lineage, records, rendering
from pd_pipeline.deployment.ancestry import Ancestry, Piece
from pd_pipeline.deployment.raw_sources import sources
from pd_pipeline.graph import Graph
from pd_pipeline.lineage import LockEntry
from pd_pipeline.lockfile import LOCK_FILE
from pd_pipeline.records import Record
from pd_pipeline.rendering import address
from pd_pipeline.reporting.provenance import flat
from pd_pipeline.revision import first_commit_with, git_revision
from pd_pipeline.stage import Key
from pd_pipeline.tuning.summary import Summary

Work = tuple[str, Key]


class _Wanted(NamedTuple):
    """The out that something was made from; None is not known."""

    digest: str | None = None
    md5: str | None = None


class _Known(NamedTuple):
    """What is known of an out."""

    files: dict[str, str]
    """Of the out here, or else of the record; empty if there is neither."""
    is_here: bool
    record: Record | None
    """If it describes the out."""
    entry: LockEntry | None
    """In dvc.lock, if it describes the out."""

    @property
    def digest(self) -> str | None:
        return records.digest_of(self.files) if self.files else None


def gather(graph: Graph, stage: str, key: Key, given: Summary) -> Ancestry:
    """All that the tuned out of `stage` and `key`, with its summary, comes from. Raises PipelineError."""
    everything = list(_closure(graph, (stage, key)))
    entries = lineage.lock_entries(graph, everything)
    known = {work: _known(graph, work, entries.get(work)) for work in everything}
    pieces: dict[Work, Piece] = {}
    todo = [(stage, key)]
    while todo:
        work = todo.pop(0)
        if work in pieces:
            continue
        needs, replaced = _needs(graph, work, known)
        pieces[work] = _piece(graph, work, known[work], needs, replaced)
        todo += needs
    tuned_on = {given.quality: {*given.few_shot_episodes}}
    tuned_on.setdefault(given.prompt_quality, set()).update(given.prompt_episodes)
    return Ancestry(
        revision=git_revision(graph.root),
        tuned_on={quality: tuple(sorted(episodes)) for quality, episodes in tuned_on.items()},
        pieces=tuple(pieces.values()),
    )


def _closure(graph: Graph, work: Work) -> Iterator[Work]:
    """A piece of work and all that is upstream of it, each once."""
    seen, todo = set(), [work]
    while todo:
        if (one := todo.pop(0)) not in seen:
            seen.add(one)
            todo += graph.upstream(*one)
            yield one


def _known(graph: Graph, work: Work, entry: LockEntry | None) -> _Known:
    out, record = graph.root / graph.out(*work), records.find(graph.home(*work), *work)
    files = records.listing(out) if out.is_dir() else {}
    if record is not None and (record.code is None or (files and record.files != files)):
        record = None
    known = files or (record.files if record is not None else {})
    return _Known(known, bool(files), record, entry)


def _needs(graph: Graph, work: Work, known: Mapping[Work, _Known]) -> tuple[list[Work], dict[str, str | None]]:
    """What a piece was made from: the pieces that are still here, and address -> digest of an out that is not."""
    found, replaced = [], {}
    for need, other in graph.upstream(*work):
        wanted = _wanted(graph, work, need, known[work])
        if wanted is None:
            continue
        if _is(known[need, other], wanted):
            found.append((need, other))
        else:
            replaced[address(need, other)] = wanted.digest
    return found, replaced


def _wanted(graph: Graph, work: Work, need: str, known: _Known) -> _Wanted | None:
    """Which out of stage `need` a piece was made from; None if nothing says so."""
    digest = known.record.inputs.get(need) if known.record is not None else None
    md5 = known.entry.inputs.get(graph.input(*work, need).as_posix()) if known.entry is not None else None
    return None if digest is None and md5 is None else _Wanted(digest, md5)


def _is(known: _Known, wanted: _Wanted) -> bool:
    """Whether an out is the one that something was made from."""
    if wanted.digest is not None and known.files:
        return known.digest == wanted.digest
    return known.entry is not None and known.entry.md5 == wanted.md5


def _piece(graph: Graph, work: Work, known: _Known, needs: list[Work], replaced: dict[str, str | None]) -> Piece:
    stage, key = work
    record, entry = known.record, known.entry
    parameters = environment = None
    if record is not None:
        parameters, environment = record.parameters, record.environment
    elif entry is not None and entry.digests == rendering.digests(graph, stage, key):  # those of params.yaml then
        parameters = graph.stage_params(stage, key).model_dump(mode="json")
        environment = graph.family(str(key.family)).params.model_dump(mode="json")
    committed = None
    if record is None and entry is not None:
        committed = first_commit_with(graph.root, LOCK_FILE, entry.md5)
    return Piece(
        name=address(stage, key),
        stage=stage,
        key=str(key),
        out=graph.out(stage, key).as_posix(),
        digest=known.digest,
        files=known.files,
        md5=entry.md5 if entry is not None and (known.is_here or record is None) else None,
        code=record.code if record is not None else entry.digests.get("code") if entry is not None else None,
        version=record.version if record is not None else None,
        revision=record.revision if record is not None else None,
        committed=committed,
        parameters=parameters,
        changed=_differing(graph.stages[stage].params_class(), parameters),
        environment=environment,
        environment_changed=_differing(type(graph.family(str(key.family)).params), environment),
        device=record.device if record is not None else None,
        precision=record.precision if record is not None else None,
        needs=tuple(address(*need) for need in needs),
        replaced=replaced,
        sources=sources(graph, stage, key) if known.is_here else (),
    )


def _differing(model: type[BaseModel], values: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values that are not the defaults of a parameter block, as flat `a.b` names."""
    usual = flat(_defaults(model))
    return {name: value for name, value in flat(values or {}).items() if name not in usual or usual[name] != value}


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a block, without what has none, as JSON would hold them."""
    fields = {name: field for name, field in model.model_fields.items() if not field.is_required()}
    made = model.model_construct(
        **{name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    )
    return {name: value for name, value in made.model_dump(mode="json", warnings=False).items() if name in fields}
