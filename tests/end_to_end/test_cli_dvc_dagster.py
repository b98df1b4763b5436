"""DVC knows the work done by Dagster, Dagster shows the work done by DVC, and neither repeats it."""

import re
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from assets.definitions import build
from assets.external_results import report
from pd_pipeline import graph
from tests.dvc_project import SMALL_PARAMS, call, change, make_project, write_graph
from tests.end_to_end.dagster_and_dvc import left_for_dvc, not_fresh, recorded_data_versions, shown_otherwise, work


def reproduced(output: str) -> list[str]:
    """The addresses that `dvc repro` executed."""
    return re.findall(r"^Running stage '(.*)':", output, re.MULTILINE)


def made_by_dagster(root: Path, instance: dg.DagsterInstance) -> dict[str, bool]:
    """Address -> whether Dagster made it, for every piece of work."""
    project, assets = graph.load(root), list(build(root).assets or [])
    return {
        name: dg.materialize(assets, selection=[stage], partition_key=key or None, instance=instance).success
        for name, (stage, key) in work(project).items()
    }


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
        write_graph(root)
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
