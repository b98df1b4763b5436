"""The sensor that watches dvc.lock, and the one that lets the report follow new results."""

from hashlib import md5
from pathlib import Path

import dagster as dg

from assets.external_results import report
from pd_pipeline import graph
from pd_pipeline.errors import PipelineError
from pd_pipeline.lockfile import LOCK_FILE
from pd_pipeline.stages import REPORT


def dvc_lock_sensor(root: Path) -> dg.SensorDefinition:
    """Reports work done outside Dagster when dvc.lock changes. DVC itself does not depend on Dagster."""

    @dg.sensor(
        name="dvc_lock",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Reports work done by `dvc repro` and `pd-pipeline run` when {LOCK_FILE} changes.",
    )
    def body(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        file = root / LOCK_FILE
        if not file.is_file():
            return dg.SkipReason(f"no {LOCK_FILE} yet")
        content = md5(file.read_bytes()).hexdigest()
        if content == context.cursor:
            return dg.SkipReason(f"{LOCK_FILE} is unchanged")
        try:
            reported = report(context.instance, graph.load(root))
        except PipelineError as error:
            return dg.SkipReason(f"cannot compare with DVC: {error}")
        context.update_cursor(content)
        return dg.SkipReason(f"reported {', '.join(reported)}" if reported else "nothing new to report")

    return body


def report_sensor() -> dg.AutomationConditionSensorDefinition:
    """Lets the report follow its automation condition."""
    return dg.AutomationConditionSensorDefinition(
        "report_follows_results",
        target=dg.AssetSelection.assets(REPORT),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Writes the report again after new results of targets.",
    )
