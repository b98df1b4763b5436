"""The versions in an event: of the out, its code and its inputs. The UI derives staleness from them."""

from functools import cache
from hashlib import sha256

import dagster as dg

from assets.partitions import OF_REPORT, known_targets, needs
from pd_pipeline import guard
from pd_pipeline.graph import Graph
from pd_pipeline.stage import Key
from pd_pipeline.stages import REPORT

DATA_VERSION, CODE_VERSION = "dagster/data_version", "dagster/code_version"
INPUT_DATA_VERSION, INPUT_EVENT_POINTER = "dagster/input_data_version", "dagster/input_event_pointer"
GIVEN = "dagster/data_version_is_user_provided"


def latest(instance: dg.DagsterInstance, asset: str, partition: str) -> dg.EventLogRecord | None:
    """The last materialization of an asset; of one partition, unless `partition` is empty."""
    chosen = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition] if partition else None)
    return next(iter(instance.fetch_materializations(chosen, limit=1).records), None)


def latest_data_version(instance: dg.DagsterInstance, asset: str, partition: str) -> str:
    """The data version of the last materialization; empty if there is none."""
    record = latest(instance, asset, partition)
    found = record.asset_materialization if record else None
    return (found.tags or {}).get(DATA_VERSION, "") if found else ""


class Versions:
    """The versions of a project's work in a Dagster instance, cached."""

    def __init__(self, instance: dg.DagsterInstance, project: Graph):
        self._instance, self._project = instance, project
        self._data_version = cache(lambda stage, key: latest_data_version(instance, stage, str(key)))
        self._code_version = cache(lambda stage: guard.version(project, stage))

    def tags(self, stage: str, key: Key, data_version: str) -> dict[str, str]:
        """The tags for the event of a piece of work, with the latest known versions of its inputs."""
        read = needs(self._project, stage)
        return (
            {DATA_VERSION: data_version, CODE_VERSION: self._code_version(stage), GIVEN: "true"}
            | {f"{INPUT_DATA_VERSION}/{need}": self._input_version(stage, key, need) for need in read}
            | {f"{INPUT_EVENT_POINTER}/{need}": self._pointer(need) for need in read}
            | (self._of_targets() if stage == REPORT else {})
        )

    def known(self, stage: str, key: Key, tags: dict[str, str]) -> bool:
        """Whether the last event of a piece has the same tags, ignoring which events of its inputs it refers to."""
        record = latest(self._instance, stage, str(key))
        found = record.asset_materialization if record else None
        before = found.tags or {} if found else {}
        return all(before.get(name) == value for name, value in tags.items() if INPUT_EVENT_POINTER not in name)

    def _input_version(self, stage: str, key: Key, need: str) -> str:
        """One version for all partitions of an input, in the form that Dagster compares."""
        read = sorted((str(other), other) for name, other in self._project.upstream(stage, key) if name == need)
        return sha256("".join(self._data_version(need, other) for _, other in read).encode()).hexdigest()

    def _of_targets(self) -> dict[str, str]:
        """The tags for what the report shows of targets with new data: all partitions that were ever made."""
        tags = {}
        for name in OF_REPORT:
            found = [latest_data_version(self._instance, name, target) for target in known_targets(self._instance)]
            tags[f"{INPUT_DATA_VERSION}/{name}"] = sha256("".join(found).encode()).hexdigest()
            tags[f"{INPUT_EVENT_POINTER}/{name}"] = self._pointer(name)
        return tags

    def _pointer(self, stage: str) -> str:
        """The storage id of the last event of a stage in any partition, as Dagster stores it for an input."""
        records = self._instance.fetch_materializations(dg.AssetKey(stage), limit=1).records
        return str(records[0].storage_id) if records else "NULL"
