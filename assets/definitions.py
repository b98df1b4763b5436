"""All Dagster definitions for one project folder."""

from pathlib import Path

import dagster as dg

from assets.alerts import failure_sensor
from assets.incoming import new_data_sensor, retune_job, take_job
from assets.jobs import bring_up_to_date_job
from assets.schedules import report_job, schedules
from assets.sensors import dvc_lock_sensor, report_sensor
from assets.stages import stage_asset
from assets.targets import target_assets
from pd_pipeline import graph
from pd_pipeline.stages import TARGET_EVALUATION


def build(root: Path) -> dg.Definitions:
    """The definitions for the project at `root`.

    A run is one process: with one process per step, importing PyTorch each time would take longer than most steps.
    """
    project = graph.load(root)
    everything, take = bring_up_to_date_job(project), take_job(project)
    retune, report = retune_job(), report_job(project)
    return dg.Definitions(
        assets=[
            *(stage_asset(project, stage) for stage in project.stages if stage != TARGET_EVALUATION),
            *target_assets(project),
        ],
        jobs=[everything, take, retune, report],
        schedules=schedules(project, everything, retune, report),
        sensors=[
            dvc_lock_sensor(root),
            new_data_sensor(root, take, retune),
            report_sensor(),
            failure_sensor(project),
        ],
        executor=dg.in_process_executor,
    )
