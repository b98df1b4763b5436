"""Partition keys are the keys of the graph, which DVC uses too; what a key reads follows from the graph."""

import dagster as dg

from pd_pipeline.graph import Graph


def partitions_of(project: Graph, stage: str) -> dg.StaticPartitionsDefinition | None:
    """The keys of a stage; None for a stage that has no axes.

    Those of one PLM stand together: a run covers a range of keys, and these can be made as soon as the PLM is.
    """
    if not project.stages[stage].axes:
        return None
    keys = sorted(
        project.keys(stage), key=lambda key: (project.params.run.families.index(str(key.family)), key.seed or 0)
    )
    return dg.StaticPartitionsDefinition([str(key) for key in keys])


def dependency(project: Graph, stage: str, need: str) -> dg.AssetDep:
    """What `stage` reads of the stage `need`: which keys of it for which of its own."""
    if not project.stages[need].axes:
        return dg.AssetDep(need)
    if not project.stages[stage].axes:
        return dg.AssetDep(need, partition_mapping=dg.AllPartitionMapping())
    if project.stages[stage].axes == project.stages[need].axes:  # Dagster makes both in one run
        return dg.AssetDep(need, partition_mapping=dg.IdentityPartitionMapping())
    readers: dict[str, set[str]] = {}
    for key in project.keys(stage):
        for name, other in project.upstream(stage, key):
            if name == need:
                readers.setdefault(str(other), set()).add(str(key))
    return dg.AssetDep(need, partition_mapping=dg.StaticPartitionMapping(readers))
