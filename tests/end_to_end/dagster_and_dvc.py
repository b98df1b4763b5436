"""What Dagster shows of a project, beside what DVC has recorded."""

from pathlib import Path

import dagster as dg
from ruamel.yaml import YAML

from assets.definitions import build
from pd_pipeline import graph
from pd_pipeline.graph import Graph
from pd_pipeline.rendering import address
from tests.dagster_state import stale_status
from tests.dvc_project import dvc


def work(project: Graph) -> dict[str, tuple[str, str]]:
    """Address -> (stage, key)."""
    return {address(stage, key): (stage, str(key)) for stage in project.stages for key in project.keys(stage)}


def recorded_data_versions(root: Path) -> dict[str, str]:
    stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    assert "digests" in stages, "not an asset"
    return {name: entry["outs"][0]["md5"] for name, entry in stages.items() if name != "digests"}


def shown_data_versions(instance: dg.DagsterInstance, project: Graph) -> dict[str, str]:
    found = {}
    for name, (stage, key) in work(project).items():
        chosen = dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[key] if key else None)
        (record,) = instance.fetch_materializations(chosen, limit=1).records
        assert record.asset_materialization is not None
        found[name] = (record.asset_materialization.tags or {})["dagster/data_version"]
    return found


def left_for_dvc(root: Path) -> set[str]:
    """The addresses that `dvc status` calls out of date."""
    status = dvc(root, "status")
    if status.strip() == "Data and pipelines are up to date.":
        return set()
    return {line.rstrip(":") for line in status.splitlines() if line and not line.startswith("\t")}


def not_fresh(root: Path, instance: dg.DagsterInstance) -> set[str]:
    """The addresses that Dagster does not show as fresh."""
    project = graph.load(root)
    states = stale_status(instance, build(root), project)
    return {name for name, one in work(project).items() if states[one] != "FRESH"}


def shown_otherwise(root: Path, instance: dg.DagsterInstance) -> set[str]:
    """The addresses that Dagster does not show in the version that DVC recorded."""
    shown, recorded = shown_data_versions(instance, graph.load(root)), recorded_data_versions(root)
    return {name for name in shown.keys() | recorded.keys() if shown.get(name) != recorded.get(name)}
