"""The run queue, with a setting that Dagster lacks: how often its daemon checks backfills."""

from collections.abc import Mapping
from typing import Any, Self

from dagster import Field, Float
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator
from dagster._serdes import ConfigurableClassData


class RunCoordinator(QueuedRunCoordinator):
    """Dagster's run queue; the daemon checks backfills every `backfill_interval_seconds`.

    "Materialize all" starts a backfill, in which each level of the graph waits until the daemon has checked the level
    before. Dagster fixes this interval to 30 s (`execute_backfill_iteration_loop` reads it from the module below when
    it starts), so half a minute of work takes several minutes.
    """

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Dagster's settings for the queue, plus `backfill_interval_seconds`."""
        return {**super().config_type(), "backfill_interval_seconds": Field(Float)}  # type: ignore[dict-item]

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """Create the queue from dagster.yaml. The daemon does this before it starts to check backfills."""
        from dagster._daemon import controller

        controller.DEFAULT_DAEMON_INTERVAL_SECONDS = config_value["backfill_interval_seconds"]
        return super().from_config_value(inst_data, config_value)
