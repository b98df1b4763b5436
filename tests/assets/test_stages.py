"""Asset bodies: metadata of materializations, blocking checks, and retries."""

import shutil
from errno import ENOSPC
from pathlib import Path

import dagster as dg
import pytest

from assets.checks import check_results, scores_kept
from assets.definitions import build
from assets.external_results import report
from assets.sensors import dvc_lock_sensor
from pd_pipeline import graph, lineage
from pd_pipeline.families.base import ExpertBars
from pd_pipeline.families.point_robot import PointRobot
from pd_pipeline.graph import Graph
from pd_pipeline.progress import Progress, silent
from pd_pipeline.stage import Key
from pd_pipeline.storage import write_json
from pd_pipeline.studies import execution
from tests.dagster_state import stale_status
from tests.dvc_project import change, make_project

KEY = Key("point_robot")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


def materialize(
    root: Path, instance: dg.DagsterInstance, stage: str, key: str = "point_robot"
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        list(build(root).assets or []),
        selection=[stage],
        partition_key=key or None,
        instance=instance,
        raise_on_error=False,
    )


def backfill(root: Path, instance: dg.DagsterInstance, *stages: str) -> dg.ExecuteInProcessResult:
    """One run over both families, as in a backfill."""
    return dg.materialize(
        list(build(root).assets or []),
        selection=list(stages),
        tags={
            "dagster/asset_partition_range_start": "point_robot",
            "dagster/asset_partition_range_end": "other",
        },
        instance=instance,
        raise_on_error=False,
    )


def data_versions(result: dg.ExecuteInProcessResult, stage: str) -> dict[str | None, str]:
    """Partition -> data version, for the materializations of a run."""
    events = result.asset_materializations_for_node(stage)
    assert len({event.partition for event in events}) == len(events), "one event per partition"
    return {event.partition: (event.tags or {})["dagster/data_version"] for event in events}


def test_a_materialization_has_metadata_and_checks(root: Path, instance: dg.DagsterInstance) -> None:
    assert materialize(root, instance, "behavior_policies").success
    result = materialize(root, instance, "trajectories")
    (event,) = result.asset_materializations_for_node("trajectories")
    assert event.metadata["dagster/row_count"].value == 108
    assert event.metadata["duration_seconds"].value > 0
    assert event.metadata["path"].value == str(root / "data/trajectories/point_robot")
    data_version = lineage.up_to_date(graph.load(root), "trajectories", KEY)
    assert event.tags is not None
    assert event.tags["dagster/data_version"] == data_version
    checks = {check.check_name: (check.passed, check.blocking) for check in result.get_asset_check_evaluations()}
    assert checks == {"valid": (True, True), "expert_quality": (True, False)}


def test_work_that_is_up_to_date_is_skipped_and_keeps_its_metadata(root: Path, instance: dg.DagsterInstance) -> None:
    first = materialize(root, instance, "behavior_policies").asset_materializations_for_node("behavior_policies")[0]
    stamp = (root / "data/behavior_policies/point_robot").stat().st_mtime_ns
    again = materialize(root, instance, "behavior_policies").asset_materializations_for_node("behavior_policies")[0]
    assert (root / "data/behavior_policies/point_robot").stat().st_mtime_ns == stamp
    assert again.metadata["levels"] == first.metadata["levels"]
    assert again.tags is not None
    assert first.tags is not None
    assert again.tags["dagster/data_version"] == first.tags["dagster/data_version"]


def test_errors_that_the_user_must_fix_are_not_retried(root: Path, instance: dg.DagsterInstance) -> None:
    result = materialize(root, instance, "trajectories")  # its input is missing
    assert not result.success
    failure = result.failure_data_for_node("trajectories")
    assert failure is not None
    assert "run `pd-pipeline run behavior_policies --key point_robot` first" in str(failure.user_failure_data)
    assert [event for event in result.all_events if event.is_step_restarted or event.is_step_up_for_retry] == []


def test_a_run_over_several_partitions_has_one_event_per_partition(root: Path, instance: dg.DagsterInstance) -> None:
    change(root, "  other:\n    <<: *tiny", "  other:\n    <<: *tiny\n    prompts: {length: 4}")
    result = backfill(root, instance, "behavior_policies", "trajectories", "prompts")
    assert result.success
    project = graph.load(root)
    for stage in ("behavior_policies", "trajectories", "prompts"):
        recorded = {family: lineage.up_to_date(project, stage, Key(family)) for family in ("point_robot", "other")}
        assert data_versions(result, stage) == recorded
    assert len(set(data_versions(result, "prompts").values())) == 2
    rows = {event.partition: event.metadata for event in result.asset_materializations_for_node("trajectories")}
    assert rows["point_robot"]["path"] != rows["other"]["path"]
    checks = [check for check in result.get_asset_check_evaluations() if check.check_name == "valid"]
    assert {(check.partition, check.passed) for check in checks} == {("point_robot", True), ("other", True)}
    latest = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("trajectories"), asset_partitions=["other"]), limit=1
    ).records[0]
    (of_other,) = [check for check in checks if check.partition == "other"]
    assert of_other.target_materialization_data is not None
    assert of_other.target_materialization_data.storage_id == latest.storage_id
    states = stale_status(instance, build(root), project)
    assert {states["prompts", "point_robot"], states["prompts", "other"]} == {"FRESH"}
    assert report(instance, project) == []


def test_a_failing_partition_does_not_stop_the_others(root: Path, instance: dg.DagsterInstance) -> None:
    for stage in ("behavior_policies", "trajectories"):
        lineage.run(graph.load(root), stage, Key("other"), silent)
    lineage.run(graph.load(root), "behavior_policies", KEY, silent)
    result = backfill(root, instance, "prompts")  # the trajectories of point_robot are missing
    assert not result.success
    assert list(data_versions(result, "prompts")) == ["other"]
    failure = result.failure_data_for_node("prompts")
    assert failure is not None
    assert "1 of 2 failed: prompts point_robot: " in str(failure.user_failure_data)
    assert [event for event in result.all_events if event.is_step_up_for_retry] == []


def test_a_transient_error_is_retried_once(
    root: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = execution.run, list[str]()

    def full_once(project: Graph, stage: str, key: Key, progress: Progress, **options: bool) -> lineage.Outcome:
        calls.append(str(key))
        if calls == ["point_robot"]:
            raise OSError(ENOSPC, "No space left on device")
        return real(project, stage, key, progress, **options)

    monkeypatch.setattr("assets.work.execution.run", full_once)
    result = backfill(root, instance, "behavior_policies")
    assert result.success
    assert calls == ["point_robot", "other", "point_robot", "other"]
    assert len([event for event in result.all_events if event.is_step_up_for_retry]) == 1
    assert stale_status(instance, build(root), graph.load(root))["behavior_policies", "other"] == "FRESH"


def test_a_damaged_out_stops_downstream_stages(root: Path, instance: dg.DagsterInstance) -> None:
    definitions = build(root)
    lineage.run(graph.load(root), "behavior_policies", KEY, silent)
    with pytest.MonkeyPatch.context() as patch:
        refused = dg.AssetCheckResult(passed=False, check_name="valid", description="damaged")
        patch.setattr("assets.stages.check_results", lambda *_: [refused])
        result = dg.materialize(
            list(definitions.assets or []),
            selection=["trajectories", "prompts"],
            partition_key="point_robot",
            instance=instance,
            raise_on_error=False,
        )
    assert not result.success
    assert {event.step_key for event in result.all_events if event.is_step_start} == {"trajectories"}


@pytest.mark.parametrize(
    ("now", "passed"),
    [
        ({"return_mean_a": 99.0, "return_mean_b": -10.1}, True),  # within the margin of 2 %
        ({"return_mean_a": 97.0, "return_mean_b": -5.0}, False),
        ({"return_mean_a": 120.0, "return_mean_b": -10.3}, False),
        ({"return_mean_new": 1.0}, None),
    ],
)
def test_a_score_that_fell_is_a_warning(now: dict[str, object], passed: bool | None) -> None:
    found = scores_kept({"return_mean_a": 100.0, "return_mean_b": -10.0, "duration_seconds": 9.0}, now, 0.02)
    assert (None if found is None else found.passed) == passed
    if found is not None:
        assert found.severity == dg.AssetCheckSeverity.WARN
        assert found.metadata["scores_compared"].value == 2


def test_a_loss_that_rose_is_a_warning() -> None:
    found = scores_kept({"offline_action_loss_a": 0.1}, {"offline_action_loss_a": 0.2}, 0.02)
    assert found is not None
    assert (found.passed, found.description) == (False, "offline_action_loss_a: 0.2, 0.1 before")


def test_an_evaluation_is_compared_with_the_one_before(root: Path, instance: dg.DagsterInstance) -> None:
    project = graph.load(root)
    for stage in ("behavior_policies", "trajectories", "target_data", "prompts", "plm", "tuned_prompt_dt"):
        for key in (key for key in project.keys(stage) if key.family == "point_robot"):
            lineage.run(project, stage, key, silent)
    for key in (key for key in project.keys("tuned_noise_prompt") if key.family == "point_robot"):
        lineage.run(project, "tuned_noise_prompt", key, silent)
    first = materialize(root, instance, "evaluation", "point_robot-0").get_asset_check_evaluations()
    assert [check.check_name for check in first] == ["metrics_complete"]
    change(root, "bootstrap: 50", "bootstrap: 51")
    again = materialize(root, instance, "evaluation", "point_robot-0").get_asset_check_evaluations()
    assert {check.check_name: check.passed for check in again} == {"metrics_complete": True, "scores_kept": True}


def test_checks_describe_problems(root: Path, tmp_path: Path) -> None:
    project = graph.load(root)
    out = tmp_path / "point_robot"
    out.mkdir()
    (out / "broken.parquet").write_text("nothing")
    (out / "losses.csv").write_text("step,loss\n10,0.5\n20,nan\n")
    write_json(out / "metrics.json", {"methods": {"prompt_dt": {}}})
    found = {stage: check_results(project, stage, out)[0] for stage in ("trajectories", "plm", "evaluation")}
    assert not any(result.passed for result in found.values())
    assert "broken.parquet" in str(found["trajectories"].description)
    assert "loss is nan at step 20" in str(found["plm"].description)
    assert "noise_prompt" in str(found["evaluation"].description)
    assert check_results(project, "prompts", out) == []


def test_checks_pass_on_valid_outs(root: Path, trained_project: Path, tmp_path: Path) -> None:
    project = graph.load(root)
    write_json(tmp_path / "metrics.json", {"methods": {"prompt_dt": {}, "noise_prompt": {}}})
    assert check_results(project, "evaluation", tmp_path)[0].passed
    trained = graph.load(trained_project)
    assert check_results(trained, "trajectories", trained_project / "data/trajectories/point_robot")[0].passed
    assert not check_results(project, "trajectories", trained_project / "data/trajectories/point_robot")[0].passed, (
        "data of another horizon"
    )
    assert check_results(project, "plm", trained_project / "data/plm/point_robot-0")[0].passed


def test_expert_data_below_its_bar_fails_its_check(
    root: Path, trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "point_robot"
    shutil.copytree(trained_project / "data/trajectories/point_robot", out)
    good = check_results(graph.load(root), "trajectories", out)[1]
    assert (good.check_name, good.passed) == ("expert_quality", True)
    assert {"return_mean", "early_ends", "coverage"} <= good.metadata.keys()
    monkeypatch.setattr(PointRobot, "expert_bars", ExpertBars(return_mean=1e6))
    bad = check_results(graph.load(root), "trajectories", out)[1]
    assert not bad.passed
    assert "is below 1,000,000" in str(bad.description)


def test_the_sensor_reports_work_done_outside_dagster_once(root: Path, instance: dg.DagsterInstance) -> None:
    sensor = dvc_lock_sensor(root)
    context = dg.build_sensor_context(instance=instance)
    assert "no dvc.lock yet" in str(sensor(context).skip_message)  # type: ignore[union-attr]
    lineage.run(graph.load(root), "behavior_policies", KEY, silent)
    assert "reported behavior_policies point_robot" in str(sensor(context).skip_message)  # type: ignore[union-attr]
    assert "unchanged" in str(sensor(context).skip_message)  # type: ignore[union-attr]
    assert report(instance, graph.load(root)) == []
    states = stale_status(instance, build(root), graph.load(root))
    assert states.pop(("behavior_policies", "point_robot")) == "FRESH"
    assert set(states.values()) == {"MISSING"}


def test_new_input_makes_downstream_stale_until_it_is_rerun(root: Path, instance: dg.DagsterInstance) -> None:
    for stage in ("behavior_policies", "trajectories"):
        lineage.run(graph.load(root), stage, KEY, silent)
    report(instance, graph.load(root))
    change(root, "behavior_policies: {}", "behavior_policies: {levels: {expert: {gain: 2.0, noise: 0.3}}}")
    project = graph.load(root)
    lineage.run(project, "behavior_policies", KEY, silent)
    assert report(instance, project) == ["behavior_policies point_robot"]
    states = stale_status(instance, build(root), project)
    assert states["trajectories", "point_robot"] == "STALE"
    lineage.run(project, "trajectories", KEY, silent)
    assert report(instance, project) == ["trajectories point_robot"]
    assert stale_status(instance, build(root), project)["trajectories", "point_robot"] == "FRESH"
