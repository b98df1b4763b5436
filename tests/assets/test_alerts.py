"""Runs that fail reach the command that params.yaml names."""

import json
from pathlib import Path

import dagster as dg

from assets.alerts import failure_sensor
from pd_pipeline import graph
from tests.dvc_project import SMALL_PARAMS, make_project

ALERT = "automation: {alert: {command: cat > alert.json}}\n"


@dg.op
def stops() -> None:
    raise ValueError("out of paper")


@dg.job(tags={"dagster/partition": "point_robot-5"})
def broken() -> None:
    stops()


def told(root: Path, sensor: dg.SensorDefinition) -> dict[str, str]:
    """Have a job fail, and return what the command was handed."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = broken.execute_in_process(instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            sensor.name,
            dagster_event=result.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=result.dagster_run,
        )
        sensor(context.for_run_failure())
    found: dict[str, str] = json.loads((root / "alert.json").read_text())
    return found


def test_a_failed_run_is_told_with_its_step_and_partition(tmp_path: Path) -> None:
    root = make_project(tmp_path, SMALL_PARAMS + ALERT)
    found = told(root, failure_sensor(graph.load(root)))
    assert (found["event"], found["subject"], found["project"]) == ("failure", "stops point_robot-5", str(root))
    assert "stops" in found["message"]


def test_it_is_told_though_params_are_broken_by_now(tmp_path: Path) -> None:
    root = make_project(tmp_path, SMALL_PARAMS + ALERT)
    sensor = failure_sensor(graph.load(root))
    (root / "params.yaml").write_text("run: [")
    assert told(root, sensor)["subject"] == "stops point_robot-5"


def test_the_command_is_that_of_params_now(tmp_path: Path) -> None:
    root = make_project(tmp_path, SMALL_PARAMS)
    sensor = failure_sensor(graph.load(root))
    (root / "params.yaml").write_text(SMALL_PARAMS + ALERT)
    assert told(root, sensor)["subject"] == "stops point_robot-5"
