"""What Dagster is told equals the graph, which dvc.yaml equals too."""

from pathlib import Path

import dagster as dg
import pytest

from assets.definitions import build
from assets.project import root as project_root
from pd_pipeline import graph, lineage
from pd_pipeline.graph import Graph
from tests.dvc_project import SMALL_PARAMS, change, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    root = make_project(
        tmp_path_factory.mktemp("definitions"), SMALL_PARAMS.replace("seeds: [0]", "seeds: [0, 1]")
    )
    return graph.load(root)


@pytest.fixture(scope="module")
def definitions(project: Graph) -> dg.Definitions:
    return build(project.root)


def asset(definitions: dg.Definitions, stage: str) -> dg.AssetsDefinition:
    return definitions.resolve_assets_def(stage)


def test_partition_keys_are_the_keys_of_the_graph(project: Graph, definitions: dg.Definitions) -> None:
    for stage in project.stages:
        partitions = asset(definitions, stage).partitions_def
        keys = partitions.get_partition_keys() if partitions else [""]
        assert list(keys) == [str(key) for key in project.keys(stage)]


def test_every_key_reads_what_it_reads_in_the_graph(project: Graph, definitions: dg.Definitions) -> None:
    assets = definitions.resolve_asset_graph()
    for stage in project.stages:
        assert {key.to_user_string() for key in assets.get(dg.AssetKey(stage)).parent_keys} == set(
            project.stages[stage].needs
        )
        for key in project.keys(stage):
            read = {
                (parent.asset_key.to_user_string(), parent.partition_key)
                for parent in _parents(assets, stage, str(key) or None)
            }
            assert read == {(need, str(other)) for need, other in project.upstream(stage, key)}


def _parents(assets: object, stage: str, partition: str | None) -> set:
    from dagster._core.definitions.asset_key import AssetKey  # noqa: F401
    from dagster._core.definitions.events import AssetKeyPartitionKey
    from dagster._core.instance import DagsterInstance
    from dagster._core.loader import LoadingContextForTest
    from dagster._utils.caching_instance_queryer import CachingInstanceQueryer

    with DagsterInstance.ephemeral() as instance:
        queryer = CachingInstanceQueryer(instance, assets, LoadingContextForTest(instance))  # type: ignore[arg-type]
        result = queryer.get_parent_asset_partitions_updated_after_child  # noqa: F841
        return assets.get_parents_partitions(  # type: ignore[attr-defined]
            AssetKeyPartitionKey(dg.AssetKey(stage), partition)
        ).parent_partitions
