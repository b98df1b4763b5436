"""The state of assets as Dagster's UI shows it."""

from dagster import AssetKey, DagsterInstance, Definitions
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from pd_pipeline.graph import Graph


def stale_status(instance: DagsterInstance, definitions: Definitions, project: Graph) -> dict[tuple[str, str], str]:
    """(stage, key) -> FRESH, STALE or MISSING."""
    assets = definitions.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, assets, LoadingContextForTest(instance))
    found: dict[tuple[str, str], StaleStatus] = {
        (stage, str(key)): resolver.get_status(AssetKey(stage), str(key) or None)
        for stage in project.stages
        for key in project.keys(stage)
    }
    return {work: status.value for work, status in found.items()}
