"""Reports work done by `dvc repro` and `pd-pipeline run` to Dagster, so that its UI shows it as fresh."""

import dagster as dg

from assets.metadata import describe
from assets.versions import Versions
from pd_pipeline import lineage
from pd_pipeline.graph import Graph


def report(instance: dg.DagsterInstance, project: Graph) -> list[str]:
    """Report all up-to-date work that Dagster does not know yet. Returns the names of the reported pieces.

    Upstream first, since an event refers to the latest events of its inputs.
    """
    versions, reported = Versions(instance, project), []
    for (stage, key), data_version in lineage.data_versions(project).items():
        if not project.is_benchmark(stage, key):
            continue  # the sensor of new data reports these
        tags = versions.tags(stage, key, data_version)
        if not versions.known(stage, key, tags):
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    stage,
                    partition=str(key) or None,
                    tags=tags,
                    metadata=describe(project.root / project.out(stage, key)),
                    description="done outside Dagster",
                )
            )
            reported.append(f"{stage} {key}".strip())
    return reported
