"""Which trajectories of its target a policy was tuned on, also after the target has got more of them.

Episodes are numbered anew when a family gets more data of the target, the accepted ones after its own.
"""

from collections.abc import Collection, Mapping

from pd_pipeline.decisions import Decision
from pd_pipeline.graph import Graph
from pd_pipeline.stage import Key
from pd_pipeline.trajectories.copies import episode_digest
from pd_pipeline.trajectories.episodes import episodes


def digests_used(graph: Graph, key: Key, used: Mapping[str, Collection[int]]) -> dict[str, tuple[str, ...]]:
    """Quality -> SHA-256 of the episodes with these numbers, sorted. `used`: quality -> numbers now."""
    return {
        quality: tuple(sorted(digest for number, digest in _known(graph, key, quality).items() if number in numbers))
        for quality, numbers in used.items()
    }


def numbers_used(graph: Graph, key: Key, decision: Decision) -> dict[str, set[int]]:
    """Quality -> the numbers now of the episodes that the policy of a decision was tuned on.

    A decision of an earlier version knows their numbers of then alone.
    """
    if not decision.used_digests:
        return {quality: {*numbers} for quality, numbers in decision.used_episodes.items()}
    return {
        quality: {number for number, digest in _known(graph, key, quality).items() if digest in digests}
        for quality, digests in decision.used_digests.items()
    }


def _known(graph: Graph, key: Key, quality: str) -> dict[int, str]:
    """Number -> SHA-256 of the target's episodes of a quality."""
    assert key.family is not None
    path = graph.root / graph.out("target_data", Key(key.family, key.task)) / f"{quality}.parquet"
    if not path.is_file():
        return {}
    return {episode.number: episode_digest(episode.steps).hex() for episode in episodes(path)}
