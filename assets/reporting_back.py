"""What `dvc repro` and `pd-pipeline run` made, reported to Dagster, so that its UI shows it as fresh."""

from hashlib import sha256

import dagster as dg

from assets.metadata import describe
from pd_pipeline import lineage
from pd_pipeline.graph import Graph
from pd_pipeline.stage import Key

DATA_VERSION, CODE_VERSION = "dagster/data_version", "dagster/code_version"
INPUT_DATA_VERSION, INPUT_EVENT_POINTER = "dagster/input_data_version", "dagster/input_event_pointer"


def report(instance: dg.DagsterInstance, project: Graph) -> list[str]:
    """Report every piece of work that is up to date and that Dagster does not know as such; returns their names.

    Upstream first, since an event names the events of its inputs: Dagster compares with what came after these.
    """
    made = lineage.standing(project)
    known: dict[tuple[str, Key], str] = {}
    reported = []
    for stage in project.stages:
        code_version = lineage.version(project, stage)
        pointers = {need: _pointer(instance, need) for need in project.stages[stage].needs}
        for key in project.keys(stage):
            before = _latest_tags(instance, stage, key)
            known[stage, key] = before.get(DATA_VERSION, "")
            if (stage, key) not in made:
                continue
            tags = {DATA_VERSION: made[stage, key], CODE_VERSION: code_version}
            tags |= {f"{INPUT_DATA_VERSION}/{n}": _input_version(project, stage, key, n, known) for n in pointers}
            known[stage, key] = made[stage, key]
            if any(before.get(name) != value for name, value in tags.items()):
                tags["dagster/data_version_is_user_provided"] = "true"
                tags |= {f"{INPUT_EVENT_POINTER}/{need}": pointer for need, pointer in pointers.items()}
                _report(instance, project, stage, key, tags)
                reported.append(f"{stage} {key}".strip())
    return reported


def _report(instance: dg.DagsterInstance, project: Graph, stage: str, key: Key, tags: dict[str, str]) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            stage,
            partition=str(key) or None,
            tags=tags,
            metadata=describe(project.root / project.out(stage, key)),
            description="made outside Dagster",
        )
    )


def _latest_tags(instance: dg.DagsterInstance, stage: str, key: Key) -> dict[str, str]:
    chosen = dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[str(key)] if str(key) else None)
    records = instance.fetch_materializations(chosen, limit=1).records
    found = records[0].asset_materialization if records else None
    return dict(found.tags or {}) if found else {}


def _pointer(instance: dg.DagsterInstance, stage: str) -> str:
    """The storage id of a stage's last event, of whatever partition, as Dagster notes it for the inputs of a step."""
    records = instance.fetch_materializations(dg.AssetKey(stage), limit=1).records
    return str(records[0].storage_id) if records else "NULL"


def _input_version(project: Graph, stage: str, key: Key, need: str, known: dict[tuple[str, Key], str]) -> str:
    """One version for all partitions of an input, as Dagster computes it for its own steps."""
    partitions = sorted(
        (str(other), known[name, other]) for name, other in project.upstream(stage, key) if name == need
    )
    return sha256("".join(version for _, version in partitions).encode()).hexdigest()
