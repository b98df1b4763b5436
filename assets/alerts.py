"""Alerts for runs that fail. Quarantined files and refused policies alert from where they are found."""

import dagster as dg

from pd_pipeline import graph
from pd_pipeline.alerts import alert
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph


def failure_sensor(project: Graph) -> dg.SensorDefinition:
    """Hands every failed run to the command or address that params.yaml names.

    A params.yaml that is broken by now may be why the run failed: then to the one that `project` was loaded with.
    """

    @dg.run_failure_sensor(
        name="failed_runs",
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Alerts the command or address that `automation.alert` of params.yaml names.",
    )
    def body(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        partition = run.tags.get("dagster/partition")
        steps = [event.step_key for event in context.get_step_failure_events() if event.step_key]
        subject = " ".join([*(steps or [run.job_name]), *([partition] if partition else [])])
        alert(_now(project), "failure", subject, context.failure_event.message or "the run failed")

    return body


def _now(project: Graph) -> Graph:
    try:
        return graph.load(project.root)
    except PipelineError:
        return project
