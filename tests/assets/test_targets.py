"""New data of targets in Dagster: the drop zone, the partitions, the work of a target, and what is in use."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from assets import incoming
from assets.definitions import build
from assets.partitions import ACCEPTED, ADAPTATION, IN_USE, OF_TARGETS, TARGETS, known_targets
from pd_pipeline import graph, lineage, load_policy
from pd_pipeline.deployment import promotion
from pd_pipeline.evaluation.enough import TooFew
from pd_pipeline.progress import silent
from pd_pipeline.stages import TARGET_EVALUATION
from pd_pipeline.trajectories.reading import write
from tests import accepted
from tests.builders import columns, metadata
from tests.dvc_project import SMALL_PARAMS, change, make_project

NEW = "point_robot-57"
PARAMS = (
    SMALL_PARAMS.replace("families: [point_robot, other]", "families: [point_robot]")
    .replace("    tuned_prompt_dt", "    target: {few_shot: 2}\n    tuned_prompt_dt")
    .replace("machine:", "automation: {settle_seconds: 0}\nmachine:")  # for files without a .done marker
)


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


@pytest.fixture
def root(pre_trained: Path, tmp_path: Path) -> Path:
    """A project that is pre-trained."""
    return shutil.copytree(pre_trained, tmp_path / "project", symlinks=True)


@pytest.fixture(scope="module")
def pre_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("targets"), PARAMS)
    project = graph.load(root)
    for stage in ("behavior_policies", "trajectories", "prompts", "plm", "diffuser"):
        for key in project.keys(stage) if stage in project.stages else []:
            lineage.run(project, stage, key, silent)
    return root


def drop(root: Path, task: int = 57, seed: int = 1, episodes: int = 4) -> None:
    accepted.drop(root, task, seed, episodes, "point_robot")


def tick(root: Path, instance: dg.DagsterInstance, cursor: str | None) -> dg.SensorResult | dg.SkipReason:
    """Evaluate the sensor once, and add the partitions that it asks for, as the daemon does."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor, definitions=build(root))
    found = build(root).resolve_sensor_def("new_data")(context)
    assert isinstance(found, dg.SensorResult | dg.SkipReason)
    for request in getattr(found, "dynamic_partitions_requests", None) or []:
        instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
    return found


def requests(found: dg.SensorResult | dg.SkipReason) -> list[tuple[str | None, str | None]]:
    """The job and the partition of every run that was asked for."""
    asked = getattr(found, "run_requests", None) or []
    return [(request.job_name, request.partition_key) for request in asked]


def run(root: Path, instance: dg.DagsterInstance, job: str, partition: str | None = None) -> dg.ExecuteInProcessResult:
    found = build(root).resolve_job_def(job)
    return found.execute_in_process(instance=instance, partition_key=partition, raise_on_error=False)


def checks(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str | None], tuple[bool, str | None]]:
    """(check, partition) -> whether it passed, and what it says."""
    return {
        (found.check_name, found.partition): (found.passed, found.description)
        for found in result.get_asset_check_evaluations()
    }


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def test_a_dropped_file_becomes_a_partition_that_is_tuned_and_in_use(root: Path, instance: dg.DagsterInstance) -> None:
    quiet = tick(root, instance, None)
    assert isinstance(quiet, dg.SkipReason)
    drop(root)
    first = tick(root, instance, None)
    assert requests(first) == [("take_new_data", None)]
    assert requests(tick(root, instance, None)) == requests(first), "the same run key: Dagster asks once"

    taken = run(root, instance, "take_new_data")
    assert taken.success
    assert checks(taken) == {("files_accepted", NEW): (True, None)}

    second = tick(root, instance, None)
    assert isinstance(second, dg.SensorResult)
    assert requests(second) == [("retune_target", NEW)]
    assert known_targets(instance) == [NEW]
    assert isinstance(tick(root, instance, second.cursor), dg.SkipReason), "what was asked for is not asked again"

    done = run(root, instance, "retune_target", NEW)
    assert done.success
    assert {event.step_key for event in done.all_events if event.is_step_success} == set(OF_TARGETS)
    assert checks(done) == {
        ("files_unchanged", NEW): (True, None),
        ("files_accepted", NEW): (True, None),
        ("not_refused", NEW): (True, "it is the first one"),
    }
    assert metadata_of(done, ACCEPTED)["episodes"] == 4
    pieces = str(metadata_of(done, ADAPTATION)["pieces"])
    assert "| target_data point_robot-57 | in " in pieces
    assert "| tuned_prompt_dt point_robot-57-0 | in " in pieces
    assert "| not made yet |" in pieces
    assert metadata_of(done, IN_USE)["version"] == 1
    assert load_policy(root / "data/promoted" / NEW).description.task == 57
    assert lineage.up_to_date(graph.load(root), "tuned_prompt_dt", graph.load(root).key("tuned_prompt_dt", f"{NEW}-0"))

    again = run(root, instance, "retune_target", NEW)
    assert again.success
    assert "| up to date |" in str(metadata_of(again, ADAPTATION)["pieces"])
    versions = [
        [(event.tags or {})["dagster/data_version"] for event in result.asset_materializations_for_node(ADAPTATION)]
        for result in (done, again)
    ]
    assert versions[0] == versions[1]

    drop(root, seed=2)
    run(root, instance, "take_new_data")
    third = tick(root, instance, second.cursor)
    assert requests(third) == [("retune_target", NEW)]
    (request,) = getattr(third, "run_requests", [])
    assert request.tags["reason"] == "more data"


def test_a_bad_file_fails_the_check_of_its_target_and_good_ones_go_on(root: Path, instance: dg.DagsterInstance) -> None:
    drop(root)
    bad = root / "data/incoming/point_robot/58/bad.parquet"
    bad.parent.mkdir(parents=True)
    bad.write_text("nothing")
    taken = run(root, instance, "take_new_data")
    assert taken.success
    found = checks(taken)
    assert found["files_accepted", NEW] == (True, None)
    passed, said = found["files_accepted", "point_robot-58"]
    assert not passed
    assert "data/incoming/point_robot/58/bad.parquet: " in str(said)
    assert requests(tick(root, instance, None)) == [("retune_target", NEW)]


def test_a_file_that_is_put_back_from_quarantine_is_taken_again(root: Path, instance: dg.DagsterInstance) -> None:
    place = root / "data/incoming/point_robot/58/1.parquet"
    drop(root, task=58)
    moved = place.with_name("elsewhere.parquet")
    asked = []
    for _ in range(2):
        (request,) = getattr(tick(root, instance, None), "run_requests", [])
        asked.append(request.run_key)
        place.rename(moved)  # to quarantine and back, unchanged
        moved.rename(place)
    assert asked[0] != asked[1]


def test_a_run_that_failed_to_take_files_is_asked_for_again(
    root: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few times, and anew for other files."""

    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(incoming, "take", broken)
    drop(root)
    keys = []
    for _ in range(3):
        (request,) = getattr(tick(root, instance, None), "run_requests", [])
        assert requests(tick(root, instance, None)) == [("take_new_data", None)]
        keys.append(request.run_key)
        job = build(root).resolve_job_def("take_new_data")
        assert not job.execute_in_process(instance=instance, tags=request.tags, raise_on_error=False).success
    assert len(set(keys)) == 3
    quiet = tick(root, instance, None)
    assert isinstance(quiet, dg.SkipReason)
    assert "1.parquet: 3 runs of take_new_data failed: see why" in str(quiet.skip_message)
    drop(root, seed=2)
    assert requests(tick(root, instance, None)) == [("take_new_data", None)]


def test_so_is_the_work_of_a_target(root: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have failed with the machine."""
    drop(root)
    run(root, instance, "take_new_data")

    def broken(*_: object) -> None:
        raise dg.Failure("the machine was restarted", allow_retries=False)

    monkeypatch.setattr("assets.targets._accepted", broken)
    monkeypatch.setattr(incoming, "_version", lambda *_: "one")
    cursor, keys = None, []
    for _ in range(3):
        result = tick(root, instance, cursor)
        assert isinstance(result, dg.SensorResult)
        (request,) = result.run_requests or []
        cursor = result.cursor
        keys.append(request.run_key)
        job = build(root).resolve_job_def("retune_target")
        assert not job.execute_in_process(
            instance=instance, partition_key=NEW, tags=request.tags, raise_on_error=False
        ).success
    assert keys == [f"{NEW} one", f"{NEW} one 1", f"{NEW} one 2"]
    assert requests(tick(root, instance, cursor)) == []


def test_what_a_comparison_waits_for_is_no_failure(
    root: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy in use stays, and its event says what for."""
    drop(root)
    run(root, instance, "take_new_data")
    tick(root, instance, None)
    assert metadata_of(run(root, instance, "retune_target", NEW), IN_USE)["next_decision_waits_for"] == "nothing"

    def too_few(*_: object) -> None:
        raise TooFew(57, 1, "expert")

    monkeypatch.setattr(promotion, "paired_scores", too_few)
    change(root, "tuned_prompt_dt: {}", "tuned_prompt_dt: {prompts: 2}")
    found = run(root, instance, "retune_target", NEW)
    assert found.success
    assert metadata_of(found, IN_USE)["version"] == 1
    assert "1 of the 2 trajectories" in str(metadata_of(found, IN_USE)["next_decision_waits_for"])


def test_a_target_with_too_few_trajectories_waits(root: Path, instance: dg.DagsterInstance) -> None:
    drop(root, episodes=1)
    run(root, instance, "take_new_data")
    found = tick(root, instance, None)
    assert isinstance(found, dg.SensorResult)
    (request,) = found.run_requests or []
    assert request.asset_selection == [dg.AssetKey(ACCEPTED), dg.AssetKey(ADAPTATION)], "what can be made already"
    result = run(root, instance, "retune_target", NEW)
    assert not result.success
    assert metadata_of(result, ACCEPTED)["waits_for"] == "1 of 2 trajectories of quality expert"
    failure = result.failure_data_for_node(TARGET_EVALUATION)
    assert "waits for data: 1 of 2 trajectories of quality expert" in str(failure and failure.user_failure_data)
    drop(root, seed=2)
    run(root, instance, "take_new_data")
    (request,) = getattr(tick(root, instance, found.cursor), "run_requests", [])
    assert len(request.asset_selection) == len(OF_TARGETS)


def test_data_of_a_benchmark_target_also_appears_at_its_stages(root: Path, instance: dg.DagsterInstance) -> None:
    drop(root, task=3)
    run(root, instance, "take_new_data")
    tick(root, instance, None)
    result = run(root, instance, "retune_target", "point_robot-3")
    assert result.success
    found = {
        (event.asset_key.to_user_string(), event.partition)
        for event in (
            one.step_materialization_data.materialization for one in result.all_events if one.is_step_materialization
        )
    }
    assert {("target_data", "point_robot-3"), ("tuned_prompt_dt", "point_robot-3-0")} < found
    assert (TARGET_EVALUATION, "point_robot-3") in found


def test_a_changed_file_and_an_unknown_family_are_said(root: Path, instance: dg.DagsterInstance) -> None:
    drop(root)
    run(root, instance, "take_new_data")
    tick(root, instance, None)
    file = next((root / "data/ingested/point_robot/57").glob("*.parquet"))
    write(file, metadata(**accepted.ABOUT, goals={57: {"position": [0.5]}}), [columns(tasks=(57,), d_s=2, seed=9)])
    passed, said = checks(run(root, instance, "retune_target", NEW))["files_unchanged", NEW]
    assert (passed, said) == (False, f"changed since they were accepted: {file.name}")
    instance.add_dynamic_partitions(str(TARGETS.name), ["gone-5"])
    failure = run(root, instance, "retune_target", "gone-5").failure_data_for_node(ACCEPTED)
    assert "'gone' is not among run.families" in str(failure and failure.user_failure_data)


def test_the_sensor_says_what_is_wrong_with_params(root: Path, instance: dg.DagsterInstance) -> None:
    sensor = build(root).resolve_sensor_def("new_data")
    change(root, "settle_seconds: 0", "settle_seconds: never")
    found = sensor(dg.build_sensor_context(instance=instance))
    assert "automation.settle_seconds" in str(getattr(found, "skip_message", ""))
