"""DVC knows the work done by Dagster, Dagster shows the work done by DVC, and neither repeats it."""

import re
from itertools import pairwise
from pathlib import Path

import dagster as dg
from ruamel.yaml import YAML

from assets.definitions import build
from assets.external_results import report
from benchmarks.dagster_click import dagster_dev
from pd_pipeline import graph
from pd_pipeline.graph import Graph
from pd_pipeline.rendering import address
from tests.dagster_state import stale_status
from tests.dvc_project import SMALL_PARAMS, call, change, make_project


def work(project: Graph) -> dict[str, tuple[str, str]]:
    """Address -> (stage, key)."""
    return {address(stage, key): (stage, str(key)) for stage in project.stages for key in project.keys(stage)}


def reproduced(output: str) -> list[str]:
    """The addresses that `dvc repro` executed."""
    return re.findall(r"^Running stage '(.*)':", output, re.MULTILINE)


def recorded_data_versions(root: Path) -> dict[str, str]:
    stages = YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]
    assert "digests" in stages, "not an asset"
    return {name: entry["outs"][0]["md5"] for name, entry in stages.items() if name != "digests"}


def shown_data_versions(instance: dg.DagsterInstance, project: Graph) -> dict[str, str]:
    found = {}
    for name, (stage, key) in work(project).items():
        chosen = dg.AssetRecordsFilter(dg.AssetKey(stage), asset_partitions=[key] if key else None)
        (record,) = instance.fetch_materializations(chosen, limit=1).records
        assert record.asset_materialization is not None
        found[name] = (record.asset_materialization.tags or {})["dagster/data_version"]
    return found


def dagster_makes_everything(root: Path, instance: dg.DagsterInstance) -> None:
    project, assets = graph.load(root), list(build(root).assets or [])
    for stage in project.stages:
        for key in project.keys(stage):
            assert dg.materialize(assets, selection=[stage], partition_key=str(key) or None, instance=instance).success


def dvc_has_nothing_to_do(root: Path) -> None:
    assert call(root, "dvc", "status").strip() == "Data and pipelines are up to date."
    assert reproduced(call(root, "dvc", "repro")) == []


def dagster_shows_the_versions_of_dvc_as_fresh(root: Path, instance: dg.DagsterInstance) -> None:
    project = graph.load(root)
    assert report(instance, project) == []
    assert shown_data_versions(instance, project) == recorded_data_versions(root)
    assert set(stale_status(instance, build(root), project).values()) == {"FRESH"}


def a_new_dagster_instance_learns_everything(root: Path) -> None:
    project = graph.load(root)
    with dg.DagsterInstance.ephemeral() as fresh:
        assert len(report(fresh, project)) == len(work(project))
        dagster_shows_the_versions_of_dvc_as_fresh(root, fresh)


def dvc_calls_stale(root: Path) -> set[str]:
    status = call(root, "dvc", "status")
    return {line.rstrip(":") for line in status.splitlines() if line and not line.startswith("\t")}


def changing_a_parameter_makes_its_stage_stale(root: Path, instance: dg.DagsterInstance) -> None:
    change(root, "prompts: 4", "prompts: 3")
    project = graph.load(root)
    noise = {f"tuned_noise_prompt@point_robot-{task}-0" for task in (1, 3)}
    states = stale_status(instance, build(root), project)
    stale = noise | {"report"}  # the report shows every parameter
    assert {name for name, one in work(project).items() if states[one] != "FRESH"} == stale
    assert dvc_calls_stale(root) == {"digests"}
    call(root, "pd-pipeline", "graph", "--write")
    assert dvc_calls_stale(root) == stale
    assert set(reproduced(call(root, "dvc", "repro"))) == noise | {"evaluation@point_robot-0", "report"}


def dagster_learns_about_dvc_repro(root: Path, instance: dg.DagsterInstance) -> None:
    reported = report(instance, graph.load(root))
    assert "evaluation point_robot-0" in reported
    assert "plm point_robot-0" not in reported
    dagster_shows_the_versions_of_dvc_as_fresh(root, instance)


def the_nightly_job_updates_stale_work(root: Path, instance: dg.DagsterInstance) -> None:
    before = recorded_data_versions(root)
    assert materialized(root, instance) == set()
    assert recorded_data_versions(root) == before
    assert isinstance(tick(root, instance), dg.SkipReason)
    change(root, "prompts: 3", "prompts: 2")
    assert isinstance(tick(root, instance), dg.RunRequest)
    noise = {f"tuned_noise_prompt@point_robot-{task}-0" for task in (1, 3)}
    assert materialized(root, instance) == noise | {"evaluation@point_robot-0", "report"}
    after = recorded_data_versions(root)
    assert {name for name in after if after[name] != before[name]} == noise | {"evaluation@point_robot-0", "report"}


def materialized(root: Path, instance: dg.DagsterInstance) -> set[str]:
    """The addresses materialized by a run of the nightly job."""
    result = build(root).resolve_job_def("bring_up_to_date").execute_in_process(instance=instance)
    assert result.success
    made = [event for event in result.all_events if event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION]
    assert all(event.asset_key and event.step_key == f"make_{event.asset_key.to_user_string()}" for event in made)
    return {"@".join(filter(None, [str(event.step_key).removeprefix("make_"), event.partition])) for event in made}


def tick(root: Path, instance: dg.DagsterInstance) -> object:
    """Evaluate the schedule once."""
    schedule = build(root).get_schedule_def("retrain_nightly")
    return schedule(dg.build_schedule_context(instance=instance))


def test_dvc_and_dagster_agree(tmp_path: Path) -> None:
    root = make_project(tmp_path, SMALL_PARAMS.replace("[point_robot, other]", "[point_robot]"))
    with dg.DagsterInstance.ephemeral() as instance:
        dagster_makes_everything(root, instance)
        dvc_has_nothing_to_do(root)
        dagster_shows_the_versions_of_dvc_as_fresh(root, instance)
        a_new_dagster_instance_learns_everything(root)
        changing_a_parameter_makes_its_stage_stale(root, instance)
        dagster_learns_about_dvc_repro(root, instance)
        the_nightly_job_updates_stale_work(root, instance)
        dvc_has_nothing_to_do(root)
        dagster_shows_the_versions_of_dvc_as_fresh(root, instance)


def test_materialize_all_in_the_ui(tmp_path: Path) -> None:
    params = SMALL_PARAMS.replace("[point_robot, other]", "[point_robot]").replace(", noise_prompt]", "]")
    root = make_project(tmp_path, params)
    with dagster_dev(root) as server:
        click = server.materialize_all(patience=200)
    assert click.status == "COMPLETED_SUCCESS"
    made = [sorted(asset["path"][0] for asset in run["assetSelection"]) for run in click.runs]
    assert made == [
        ["behavior_policies", "prompts", "trajectories"],
        ["plm"],
        ["tuned_prompt_dt"],
        ["evaluation"],
        ["report"],
    ]
    waits = [after["creationTime"] - before["endTime"] for before, after in pairwise(click.runs)]
    assert sum(waits) < 10 * len(waits), f"waits between levels, 30 s with Dagster's default: {waits}"
    assert call(root, "dvc", "status").strip() == "Data and pipelines are up to date."
    with dg.DagsterInstance.local_temp(str(root / ".dagster")) as instance:
        dagster_shows_the_versions_of_dvc_as_fresh(root, instance)
