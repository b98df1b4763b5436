"""All Dagster definitions for one project folder."""

from pathlib import Path

import dagster as dg

from assets.jobs import bring_up_to_date_job, nightly
from assets.sensors import dvc_lock_sensor
from assets.stages import stage_asset
from pd_pipeline import graph


def build(root: Path) -> dg.Definitions:
    """The definitions for the project at `root`.

    A run is one process: with one process per step, importing PyTorch each time would take longer than most steps.
    """
    project = graph.load(root)
    job = bring_up_to_date_job(project)
    return dg.Definitions(
        assets=[stage_asset(project, stage) for stage in project.stages],
        jobs=[job],
        schedules=[nightly(project, job)],
        sensors=[dvc_lock_sensor(root)],
        executor=dg.in_process_executor,
    )
