"""The schedules ask for what is out of date, and run when params.yaml says."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.schedule_definition import ScheduleExecutionData

from assets.definitions import build
from assets.partitions import OF_TARGETS, known_targets
from pd_pipeline import graph, lineage
from pd_pipeline.errors import PipelineError
from pd_pipeline.incoming.ingest import take
from pd_pipeline.progress import silent
from pd_pipeline.stages import REPORT
from tests.assets.test_targets import NEW, PARAMS, drop
from tests.conftest import shared_project
from tests.dvc_project import change, make_project

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def instance(tmp_path: Path) -> dg.DagsterInstance:
    (tmp_path / "dagster").mkdir()
    return dg.DagsterInstance.local_temp(str(tmp_path / "dagster"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", PARAMS)


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A private copy of a project with every out made."""

    def make_all(root: Path) -> None:
        make_project(root, PARAMS)
        make(root, *graph.load(root).stages)

    return shutil.copytree(shared_project(tmp_path_factory, "scheduled", make_all), tmp_path / "whole", symlinks=True)


def make(root: Path, *stages: str) -> None:
    project = graph.load(root)
    for stage in stages:
        for key in project.keys(stage):
            lineage.run(project, stage, key, silent)


def tick(root: Path, name: str, instance: dg.DagsterInstance) -> list[dg.RunRequest] | str:
    """What a schedule asks for, or why it asks for nothing."""
    found = evaluated(build(root), name, instance)
    return list(found.run_requests or []) or str(found.skip_message)


def evaluated(definitions: dg.Definitions, name: str, instance: dg.DagsterInstance) -> ScheduleExecutionData:
    moment, repository = datetime(2030, 1, 1, tzinfo=UTC), definitions.get_repository_def()
    with dg.build_schedule_context(instance, moment, repository_def=repository) as context:
        return definitions.resolve_schedule_def(name).evaluate_tick(context)


def test_all_are_off_until_params_say_when(root: Path) -> None:
    schedules = {one.name: one for one in build(root).get_repository_def().schedule_defs}
    assert {name: one.default_status.value for name, one in schedules.items()} == dict.fromkeys(
        ("retune", "retrain", "report"), "STOPPED"
    )
    change(root, "settle_seconds: 0", "settle_seconds: 0, time_zone: Europe/Berlin, retune: '30 4 * * 1'")
    (retune,) = [one for one in build(root).get_repository_def().schedule_defs if one.name == "retune"]
    found = (retune.cron_schedule, retune.execution_timezone, retune.default_status.value)
    assert found == ("30 4 * * 1", "Europe/Berlin", "RUNNING")


def test_a_time_that_there_is_not_is_refused(root: Path) -> None:
    change(root, "settle_seconds: 0", "settle_seconds: 0, retune: '0 2 30 2 *'")
    with pytest.raises(PipelineError, match=r"automation\.retune: '0 2 30 2 \*' is no time"):
        build(root)


def test_retraining_is_asked_for_only_if_something_is_out_of_date(
    root: Path, whole: Path, instance: dg.DagsterInstance
) -> None:
    pieces = sum(len(graph.load(root).keys(stage)) for stage in graph.load(root).stages)
    (request,) = tick(root, "retrain", instance)
    assert isinstance(request, dg.RunRequest)
    assert request.tags["reason"] == f"{pieces} out of date"
    assert tick(whole, "retrain", instance) == "everything is up to date"
    change(whole, "bootstrap: 50", "bootstrap: 51")
    assert len(tick(whole, "retrain", instance)) == 1


def test_the_report_is_preceded_by_the_results_that_are_out_of_date(whole: Path, instance: dg.DagsterInstance) -> None:
    root = whole
    (request,) = tick(root, "report", instance)
    assert isinstance(request, dg.RunRequest)
    assert request.asset_selection == [dg.AssetKey(REPORT)]
    change(root, "bootstrap: 50", "bootstrap: 51")
    (request,) = tick(root, "report", instance)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "point_robot-0"
    assert dg.AssetKey("evaluation") in (request.asset_selection or [])
    assert request.tags["reason"] == "its parameters changed"


def test_targets_are_tuned_again_when_their_data_or_models_changed(whole: Path, instance: dg.DagsterInstance) -> None:
    root = whole
    assert tick(root, "retune", instance) == "everything is up to date"
    drop(root)
    take(graph.load(root))
    (request,) = tick(root, "retune", instance)
    assert isinstance(request, dg.RunRequest)
    assert (request.partition_key, request.tags["reason"]) == (
        NEW,
        f"target_data {NEW}: not made yet",
    )
    assert request.asset_selection == [dg.AssetKey(name) for name in OF_TARGETS]
    assert known_targets(instance) == [NEW]
    result = build(root).resolve_job_def("retune_target").execute_in_process(instance=instance, partition_key=NEW)
    assert result.success
    assert tick(root, "retune", instance) == "everything is up to date"
    change(root, "plm: {steps: 4", "plm: {steps: 5")
    make(root, "plm")
    (request,) = tick(root, "retune", instance)
    assert isinstance(request, dg.RunRequest)
    assert request.tags["reason"] == f"tuned_prompt_dt {NEW}-0: data/plm/point_robot-0 changed"


def test_several_requests_of_a_tick_have_keys(whole: Path, instance: dg.DagsterInstance) -> None:
    """Dagster refuses them otherwise."""
    root = whole
    change(root, "seeds: [0]", "seeds: [0, 1]")
    make(root, *graph.load(root).stages)
    change(root, "bootstrap: 50", "bootstrap: 51")
    results = tick(root, "report", instance)
    assert {request.run_key for request in results} == {"point_robot-0", "point_robot-1"}  # type: ignore[union-attr]
    drop(root)
    drop(root, task=58)
    take(graph.load(root))
    targets = tick(root, "retune", instance)
    assert {request.run_key for request in targets} == {NEW, "point_robot-58"}  # type: ignore[union-attr]


def test_retraining_does_what_data_of_a_new_target_ask_for(whole: Path, instance: dg.DagsterInstance) -> None:
    """Also by definitions that were loaded before there were any."""
    root = whole
    before = build(root)
    drop(root)
    take(graph.load(root))
    job = before.resolve_job_def("bring_up_to_date")
    assert job.execute_in_process(instance=instance).success
    assert tick(root, "retrain", instance) == "everything is up to date"


def test_without_new_targets_there_is_nothing_to_evaluate_for_them(whole: Path, instance: dg.DagsterInstance) -> None:
    change(whole, "bootstrap: 50", "bootstrap: 51")
    result = build(whole).resolve_job_def("bring_up_to_date").execute_in_process(instance=instance)
    assert result.success
    assert "make_target_evaluation" in {event.step_key for event in result.all_events if event.is_step_success}


def test_wrong_params_are_said(root: Path, instance: dg.DagsterInstance) -> None:
    definitions = build(root)
    change(root, "settle_seconds: 0", "settle_seconds: never")
    assert "automation.settle_seconds" in str(evaluated(definitions, "retune", instance).skip_message)
