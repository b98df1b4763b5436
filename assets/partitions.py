"""Partitions and their dependencies, both taken from the graph. Partition keys are the keys that DVC uses."""

import dagster as dg

from pd_pipeline.graph import Graph


def partitions_of(project: Graph, stage: str) -> dg.StaticPartitionsDefinition | None:
    """The keys of a stage; None for a stage without axes.

    Keys with the same PLM are adjacent: a run covers a range of keys, and these are ready at the same time.
    """
    if not project.stages[stage].axes:
        return None
    keys = sorted(
        project.keys(stage), key=lambda key: (project.params.run.families.index(str(key.family)), key.seed or 0)
    )
    return dg.StaticPartitionsDefinition([str(key) for key in keys])


def dependency(project: Graph, stage: str, need: str) -> dg.AssetDep:
    """The dependency of `stage` on the stage `need`, with a mapping between their keys."""
    if not project.stages[need].axes:
        return dg.AssetDep(need)
    if not project.stages[stage].axes:
        return dg.AssetDep(need, partition_mapping=dg.AllPartitionMapping())
    if project.stages[stage].axes == project.stages[need].axes:  # lets Dagster materialize both in one run
        return dg.AssetDep(need, partition_mapping=dg.IdentityPartitionMapping())
    readers: dict[str, set[str]] = {}
    for key in project.keys(stage):
        for name, other in project.upstream(stage, key):
            if name == need:
                readers.setdefault(str(other), set()).add(str(key))
    return dg.AssetDep(need, partition_mapping=dg.StaticPartitionMapping(readers))
