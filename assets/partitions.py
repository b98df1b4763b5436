"""Partitions and their dependencies, both taken from the graph. Partition keys are the keys that DVC uses.

Pieces of targets that only new data make known are no partitions of their stages, whose partitions are fixed when the
definitions are loaded: they belong to the dynamic partitions of `assets.targets`.
"""

import dagster as dg

from pd_pipeline.graph import Graph
from pd_pipeline.stages import TARGET_EVALUATION

TARGETS = dg.DynamicPartitionsDefinition(name="targets")
"""The targets with data of users, or with a policy in use."""
ACCEPTED, ADAPTATION, IN_USE = "accepted_data", "target_adaptation", "policy_in_use"
OF_TARGETS = (ACCEPTED, ADAPTATION, TARGET_EVALUATION, IN_USE)
"""The assets with these partitions, upstream first."""
OF_REPORT = (TARGET_EVALUATION, IN_USE)
"""Those that the report shows."""


def known_targets(instance: dg.DagsterInstance) -> list[str]:
    """The targets that are partitions already."""
    return sorted(instance.get_dynamic_partitions(str(TARGETS.name)))


def needs(project: Graph, stage: str) -> list[str]:
    """The stages that a stage reads and that are assets with partitions of the graph."""
    return [need for need in project.stages[stage].needs if need != TARGET_EVALUATION]


def partitions_of(project: Graph, stage: str) -> dg.StaticPartitionsDefinition | None:
    """The keys of a stage; None for a stage without axes.

    Keys with the same PLM are adjacent: a run covers a range of keys, and these are ready at the same time.
    """
    if not project.stages[stage].axes:
        return None
    keys = sorted(
        (key for key in project.keys(stage) if project.is_benchmark(stage, key)),
        key=lambda key: (project.params.run.families.index(str(key.family)), key.seed or 0),
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
            if name == need and project.is_benchmark(stage, key):
                readers.setdefault(str(other), set()).add(str(key))
    return dg.AssetDep(need, partition_mapping=dg.StaticPartitionMapping(readers))
