"""DVC knows the work done by Dagster, Dagster shows the work done by DVC, and neither repeats it."""

import re
from datetime import UTC, datetime
from itertools import groupby, pairwise
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


def made_by_dagster(root: Path, instance: dg.DagsterInstance) -> dict[str, bool]:
    """Address -> whether Dagster made it, for every piece of work."""
    project, assets = graph.load(root), list(build(root).assets or [])
    return {
        name: dg.materialize(assets, selection=[stage], partition_key=key or None, instance=instance).success
        for name, (stage, key) in work(project).items()
    }


def left_for_dvc(root: Path) -> set[str]:
    """The addresses that `dvc status` calls out of date."""
    status = call(root, "dvc", "status")
    if status.strip() == "Data and pipelines are up to date.":
        return set()
    return {line.rstrip(":") for line in status.splitlines() if line and not line.startswith("\t")}


def not_fresh(root: Path, instance: dg.DagsterInstance) -> set[str]:
    """The addresses that Dagster does not show as fresh."""
    project = graph.load(root)
    states = stale_status(instance, build(root), project)
    return {name for name, one in work(project).items() if states[one] != "FRESH"}


def shown_otherwise(root: Path, instance: dg.DagsterInstance) -> set[str]:
    """The addresses that Dagster does not show in the version that DVC recorded."""
    shown, recorded = shown_data_versions(instance, graph.load(root)), recorded_data_versions(root)
    return {name for name in shown.keys() | recorded.keys() if shown.get(name) != recorded.get(name)}


def materialized(root: Path, instance: dg.DagsterInstance) -> set[str]:
    """The addresses materialized by a run of the schedule's job."""
    result = build(root).resolve_job_def("bring_up_to_date").execute_in_process(instance=instance)
    assert result.success
    made = [event for event in result.all_events if event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION]
    assert all(event.asset_key and event.step_key == f"make_{event.asset_key.to_user_string()}" for event in made)
    return {"@".join(filter(None, [str(event.step_key).removeprefix("make_"), event.partition])) for event in made}


def tick(root: Path, instance: dg.DagsterInstance) -> int:
    """Evaluate the schedule once; returns how many runs it asks for."""
    definitions, moment = build(root), datetime(2030, 1, 1, tzinfo=UTC)
    with dg.build_schedule_context(instance, moment, repository_def=definitions.get_repository_def()) as context:
        return len(definitions.resolve_schedule_def("retrain").evaluate_tick(context).run_requests or [])


def test_dvc_and_dagster_agree(tmp_path: Path) -> None:
    root = make_project(tmp_path, SMALL_PARAMS.replace("[point_robot, other]", "[point_robot]"))
    project = graph.load(root)
    noise = {f"tuned_noise_prompt@point_robot-{task}-0" for task in (1, 3)}
    after_noise = noise | {"evaluation@point_robot-0", "report"}
    with dg.DagsterInstance.ephemeral() as instance:
        made = made_by_dagster(root, instance)
        assert len(made) == 12
        assert all(made.values())
        assert left_for_dvc(root) == set()
        assert reproduced(call(root, "dvc", "repro")) == []
        assert report(instance, project) == [], "Dagster knows what it made"
        assert shown_otherwise(root, instance) == set()
        assert not_fresh(root, instance) == set()

        with dg.DagsterInstance.ephemeral() as fresh:
            assert len(report(fresh, project)) == len(made), "a new instance learns everything from DVC"
            assert report(fresh, project) == []
            assert shown_otherwise(root, fresh) == set()
            assert not_fresh(root, fresh) == set()

        change(root, "prompts: 4", "prompts: 3")
        assert not_fresh(root, instance) == noise | {"report"}, "the report shows every parameter"
        assert left_for_dvc(root) == {"digests"}
        call(root, "pd-pipeline", "graph", "--write")
        assert left_for_dvc(root) == noise | {"report"}
        assert set(reproduced(call(root, "dvc", "repro"))) == after_noise

        learned = report(instance, graph.load(root))
        assert "evaluation point_robot-0" in learned
        assert "plm point_robot-0" not in learned
        assert shown_otherwise(root, instance) == set()
        assert not_fresh(root, instance) == set()

        before = recorded_data_versions(root)
        assert tick(root, instance) == 0
        assert materialized(root, instance) == set(), "the job of the schedule has nothing to do"
        assert recorded_data_versions(root) == before
        change(root, "prompts: 3", "prompts: 2")
        assert tick(root, instance) == 1
        assert materialized(root, instance) == after_noise
        after = recorded_data_versions(root)
        assert {name for name in after if after[name] != before[name]} == after_noise
        assert left_for_dvc(root) == set()
        assert reproduced(call(root, "dvc", "repro")) == []
        assert report(instance, graph.load(root)) == []
        assert shown_otherwise(root, instance) == set()
        assert not_fresh(root, instance) == set()


def test_materialize_all_in_the_ui(tmp_path: Path) -> None:
    params = SMALL_PARAMS.replace("[point_robot, other]", "[point_robot]").replace(", noise_prompt]", "]")
    root = make_project(tmp_path, params)
    with dagster_dev(root) as server:
        click = server.materialize_all(patience=200)
    assert click.status == "COMPLETED_SUCCESS"
    made = [sorted(asset["path"][0] for asset in run["assetSelection"]) for run in click.runs]
    assert made[0] == ["behavior_policies", "prompts", "trajectories"]
    assert sorted(made[1:3]) == [["plm"], ["target_data"]], "the same level, with keys of different axes"
    # a level is several runs if what it needs was there for some of its keys first
    assert [names for names, _ in groupby(made[3:])] == [["tuned_prompt_dt"], ["evaluation"], ["report"]]
    waits = [after["creationTime"] - before["endTime"] for before, after in pairwise(click.runs)]
    assert sum(waits) < 10 * len(waits), f"waits between levels, 30 s with Dagster's default: {waits}"
    assert left_for_dvc(root) == set()
    with dg.DagsterInstance.local_temp(str(root / ".dagster")) as instance:
        assert report(instance, graph.load(root)) == []
        assert shown_otherwise(root, instance) == set()
        assert not_fresh(root, instance) == set()
