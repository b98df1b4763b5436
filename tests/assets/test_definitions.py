"""The Dagster definitions match the graph, as dvc.yaml does."""

import inspect
import shutil
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context

from assets.definitions import build
from assets.partitions import OF_REPORT, OF_TARGETS
from assets.project import root as project_root
from pd_pipeline import graph
from pd_pipeline.graph import Graph
from pd_pipeline.stages import REPORT
from tests.dvc_project import SMALL_PARAMS, change, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    root = make_project(tmp_path_factory.mktemp("definitions"), SMALL_PARAMS.replace("seeds: [0]", "seeds: [0, 1]"))
    return graph.load(root)


@pytest.fixture(scope="module")
def definitions(project: Graph) -> dg.Definitions:
    return build(project.root)


def asset(definitions: dg.Definitions, stage: str) -> dg.AssetsDefinition:
    return definitions.resolve_assets_def(stage)


def test_partition_keys_are_the_keys_of_the_graph(project: Graph, definitions: dg.Definitions) -> None:
    for stage in project.stages:
        partitions = asset(definitions, stage).partitions_def
        keys = partitions.get_partition_keys() if partitions else [""]
        assert sorted(keys) == sorted(str(key) for key in project.keys(stage))


def test_keys_that_read_the_same_plm_are_a_range(project: Graph, definitions: dg.Definitions) -> None:
    partitions = asset(definitions, "tuned_prompt_dt").partitions_def
    assert partitions is not None
    ready = [str(key) for key in project.keys("tuned_prompt_dt") if (key.family, key.seed) == ("other", 1)]
    assert len(ready) == 2
    assert len(partitions.subset_with_partition_keys(ready).get_partition_key_ranges(partitions)) == 1


def test_every_key_has_the_same_parents_as_in_the_graph(project: Graph, definitions: dg.Definitions) -> None:
    assets = definitions.resolve_asset_graph()
    instance = dg.DagsterInstance.ephemeral()  # knows no target with new data
    for stage in project.stages:
        parents = {key.to_user_string() for key in assets.get(dg.AssetKey(stage)).parent_keys}
        assert parents == {*project.stages[stage].needs, *(OF_REPORT if stage == REPORT else ())}
        for key in project.keys(stage):
            with partition_loading_context(dynamic_partitions_store=instance):
                found = assets.get_parents_partitions(dg.AssetKey(stage), str(key) or None)
            read = {(one.asset_key.to_user_string(), one.partition_key) for one in found.parent_partitions}
            assert read == {(need, str(other)) for need, other in project.upstream(stage, key)}


def test_a_selection_given_as_text_works(project: Graph, definitions: dg.Definitions) -> None:
    # the antlr4 version required by dvc's hydra breaks every selection by text
    assets = definitions.resolve_asset_graph()
    names = {key.to_user_string() for key in dg.AssetSelection.from_string("*").resolve(assets)}
    assert names == {*project.stages, *OF_TARGETS}
    read = dg.AssetSelection.from_string('+key:"plm"').resolve(assets)
    assert {key.to_user_string() for key in read} == {"behavior_policies", "trajectories", "prompts", "plm"}


def test_code_version_depends_only_on_the_parameters_of_the_stage(project: Graph, tmp_path: Path) -> None:
    root = make_project(tmp_path, (project.root / "params.yaml").read_text())
    before = {stage: asset(build(root), stage).code_versions_by_key for stage in ("plm", "prompts")}
    change(root, "width: 8", "width: 16")  # the first match is that of plm
    after = {stage: asset(build(root), stage).code_versions_by_key for stage in ("plm", "prompts")}
    assert after["prompts"] == before["prompts"]
    assert after["plm"] != before["plm"]


def test_training_uses_the_gpu_pool_and_collection_does_not(definitions: dg.Definitions) -> None:
    pools = {stage: asset(definitions, stage).op.pool for stage in ("trajectories", "plm", "tuned_prompt_dt")}
    assert pools == {"trajectories": None, "plm": "gpu", "tuned_prompt_dt": "gpu"}


def test_the_daemon_checks_backfills_at_the_configured_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagster._daemon import backfill, controller

    monkeypatch.setattr(controller, "DEFAULT_DAEMON_INTERVAL_SECONDS", 30)
    shutil.copy(Path(__file__).parents[2] / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_coordinator.get_run_queue_config() is not None  # the daemon creates it before its threads
    assert controller.DEFAULT_DAEMON_INTERVAL_SECONDS == 2.0
    assert "DEFAULT_DAEMON_INTERVAL_SECONDS - " in inspect.getsource(backfill.execute_backfill_iteration_loop)


def test_the_code_location_of_the_workspace_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module, reload

    monkeypatch.delenv("PD_PIPELINE_ROOT", raising=False)
    loaded = reload(import_module("assets.location"))
    assert isinstance(loaded.defs, dg.Definitions)
    dg.Definitions.validate_loadable(loaded.defs)


def test_the_root_is_the_variable_or_the_working_directory_or_the_repository(
    project: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PD_PIPELINE_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert (project_root() / "pyproject.toml").is_file()
    monkeypatch.chdir(project.root)
    assert project_root() == project.root
    monkeypatch.setenv("PD_PIPELINE_ROOT", str(tmp_path))
    assert project_root() == tmp_path


def test_owners_kinds_and_freshness(tmp_path: Path) -> None:
    automation = "automation: {owners: ['team:robots', a@example.org], report_max_age_hours: 48}\n"
    definitions = build(make_project(tmp_path, SMALL_PARAMS + automation))
    specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
    assert {tuple(spec.owners) for spec in specs.values()} == {("team:robots", "a@example.org")}
    assert all(spec.code_version for spec in specs.values())
    kinds = {name: specs[name].kinds for name in ("trajectories", "plm", "report", "policy_in_use")}
    assert kinds == {
        "trajectories": {"parquet", "dvc"},
        "plm": {"pytorch", "dvc"},
        "report": {"python", "dvc"},
        "policy_in_use": {"pytorch"},
    }
    fresh = {name: spec.freshness_policy for name, spec in specs.items() if spec.freshness_policy is not None}
    assert fresh == {"report": dg.FreshnessPolicy.time_window(timedelta(hours=48))}
    assert {name for name, spec in specs.items() if spec.automation_condition is not None} == {"report"}
    retried = [definition.op.retry_policy for definition in definitions.assets or []]  # type: ignore[union-attr]
    assert all(policy is not None and policy.max_retries == 1 for policy in retried)
