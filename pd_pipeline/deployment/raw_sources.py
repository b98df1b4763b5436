"""Where the raw trajectories of an out come from: collected here, imported, or accepted for a target."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pd_pipeline import made_from
from pd_pipeline.code_names import relative
from pd_pipeline.deployment.ancestry import Source
from pd_pipeline.graph import Graph
from pd_pipeline.incoming import store
from pd_pipeline.stage import Key
from pd_pipeline.storage import file_digest, read_json
from pd_pipeline.trajectories.reading import read_metadata
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.target_data import ORIGIN

POLICIES = "behavior_policies"


def sources(graph: Graph, stage: str, key: Key) -> tuple[Source, ...]:
    """The raw trajectories of an out that is here; none for a stage that reads only outs of others."""
    out = graph.root / graph.out(stage, key)
    if stage == "target_data":
        return tuple(_accepted(graph, out, key))
    if stage != "trajectories":
        return ()
    found: list[Source] = []
    for file in sorted(out.glob("*.parquet")):
        metadata = read_metadata(file)
        found += _recorded(graph, key, metadata) if metadata.origin else [_collected(graph, key, file, metadata)]
    return tuple(found)


def _collected(graph: Graph, key: Key, file: Path, metadata: TrajectoryMetadata) -> Source:
    policies = graph.root / graph.input("trajectories", key, POLICIES) / "policies.json"
    behaviors = read_json(policies) if policies.is_file() else {}
    return Source(
        kind="collected",
        quality=metadata.quality,
        file=relative(file, graph.root),
        digest=file_digest(file).hex(),
        seed=metadata.seed,
        behavior=behaviors.get(metadata.quality),
        versions=metadata.versions,
    )


def _recorded(graph: Graph, key: Key, metadata: TrajectoryMetadata) -> Iterator[Source]:
    """The user's files that a file of stage trajectories was made from; it names their origins."""
    left = list(metadata.origin)
    for file in made_from.recordings(graph, "trajectories", key):
        about = read_metadata(file)
        digest = file_digest(file).hex()
        origin = about.origin or tuple(one for one in left if one.digest == digest and not one.versions)[:1]
        if about.quality != metadata.quality or not origin or any(one not in left for one in origin):
            continue  # new since
        for one in origin:
            left.remove(one)
        yield Source(
            kind="imported" if about.origin else "file",
            quality=metadata.quality,
            file=relative(file, graph.root),
            digest=digest,
            time=_written(file),
            origin=about.origin,
        )
    for one in left:  # of files that are not here any more; an import notes the versions of what read its source
        yield Source(
            kind="imported" if one.versions else "file",
            quality=metadata.quality,
            file=None,
            digest=None,
            origin=(one,),
        )


def _accepted(graph: Graph, out: Path, key: Key) -> Iterator[Source]:
    assert key.family is not None
    assert key.task is not None
    folder = store.folder(graph.root, key.family, key.task)
    entries: list[dict[str, Any]] = read_json(out / ORIGIN)["accepted"] if (out / ORIGIN).is_file() else []
    for entry in entries:
        file = folder / entry["file"]
        yield Source(
            kind="accepted",
            quality=entry["quality"],
            file=relative(file, graph.root),
            digest=entry["digest"],
            time=entry["received"],
            origin=read_metadata(file).origin if file.is_file() and file_digest(file).hex() == entry["digest"] else (),
            dropped=entry["source"],
            first_episode=entry["first_episode"],
            episodes=entry["episodes"],
        )


def _written(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
