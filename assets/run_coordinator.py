"""The queue of runs, with a setting that Dagster lacks: how often its daemon looks at backfills."""

from collections.abc import Mapping
from typing import Any, Self

from dagster import Field, Float
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._serdes import ConfigurableClassData


class RunCoordinator(QueuedRunCoordinator):
    """Dagster's own queue of runs; backfills are looked at every `backfill_interval_seconds`.

    The button "Materialize all" is a backfill, in which each level of the graph waits until the daemon has looked at
    the one before. Dagster fixes the time between two looks to 30 s (`execute_backfill_iteration_loop` reads it from
    the module below when it begins), which makes minutes of waiting out of half a minute of work.
    """

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Dagster's settings of the queue, and ours."""
        return {**super().config_type(), "backfill_interval_seconds": Field(Float)}  # type: ignore[dict-item]

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """The queue with the settings of dagster.yaml: the daemon makes it before it begins to look at backfills."""
        from dagster._daemon import controller

        controller.DEFAULT_DAEMON_INTERVAL_SECONDS = config_value["backfill_interval_seconds"]
        return super().from_config_value(inst_data, config_value)
