"""The sensor that watches dvc.lock."""

from hashlib import md5
from pathlib import Path

import dagster as dg

from assets.reporting_back import report
from pd_pipeline import graph
from pd_pipeline.errors import PipelineError
from pd_pipeline.lockfile import LOCK_FILE


def dvc_lock_sensor(root: Path) -> dg.SensorDefinition:
    """Reports what was made outside Dagster whenever dvc.lock changes; `dvc repro` needs nothing from Dagster."""

    @dg.sensor(
        name="dvc_lock",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Shows what `dvc repro` and `pd-pipeline run` made, as soon as {LOCK_FILE} changes.",
    )
    def body(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        file = root / LOCK_FILE
        if not file.is_file():
            return dg.SkipReason(f"no {LOCK_FILE} yet: nothing was made")
        content = md5(file.read_bytes()).hexdigest()
        if content == context.cursor:
            return dg.SkipReason(f"{LOCK_FILE} is unchanged")
        try:
            reported = report(context.instance, graph.load(root))
        except PipelineError as error:
            return dg.SkipReason(f"cannot compare with DVC: {error}")
        context.update_cursor(content)
        return dg.SkipReason(f"reported {', '.join(reported)}" if reported else "Dagster knew all of it")

    return body
