"""Adding a stage takes a module and an entry in the table: the CLI, DVC and Dagster then include it."""

import pkgutil
from pathlib import Path

import dagster as dg
import pytest

from assets.definitions import build
from pd_pipeline import graph, preflight, rendering, stages
from pd_pipeline.config import Parameters, RunParams
from pd_pipeline.errors import PipelineError
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.stages import DATA, FAMILY, Check, Stage
from pd_pipeline.storage import read_json
from pd_pipeline.tuning.methods import Method, built_in
from tests.dvc_project import SMALL_PARAMS, make_project

EXTRA_STAGE = Stage(
    "counts",
    "tests.extra_stage",
    "tests.extra_stage",
    (FAMILY,),
    ("trajectories",),
    DATA,
    checks=(Check("counted", "tests.extra_stage:counted", "There is at least one file.", blocking=True),),
    plots="tests.extra_stage:plots",
    folder="numbers",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    real = stages.stages

    def with_extra_stage(asked: RunParams, methods: dict[str, Method], everything: bool = False) -> dict[str, Stage]:
        found = real(asked, methods, everything)
        return {**found, EXTRA_STAGE.name: EXTRA_STAGE}

    monkeypatch.setattr(graph, "stages", with_extra_stage)
    monkeypatch.setattr(preflight, "stages", with_extra_stage)
    text = SMALL_PARAMS.replace("    prompts: {length: 3", "    counts: {factor: 2}\n    prompts: {length: 3")
    return make_project(tmp_path / "project", text)


def test_dvc_and_dagster_include_it(root: Path) -> None:
    project = graph.load(root)
    preflight.check(project)
    assert "  counts:\n    foreach:\n" in rendering.render(project)
    assert "- data/numbers/${item.family}:" in rendering.render(project)
    for stage in ("behavior_policies", "trajectories"):
        run_piece(project, stage, Key("other"), silent)
    with dg.DagsterInstance.ephemeral() as instance:
        assets = list(build(root).assets or [])
        result = dg.materialize(assets, selection=["counts"], partition_key="other", instance=instance)
    assert read_json(root / "data/numbers/other/count.json") == {"files": 2}
    (event,) = result.asset_materializations_for_node("counts")
    assert event.metadata["files"].value.startswith("![files](data:image/png")
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.blocking) == ("counted", True, True)


def test_its_parameters_are_validated_with_all_others(root: Path) -> None:
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("factor: 2", "factor: 0"))
    with pytest.raises(PipelineError, match=r"families\.point_robot\.counts\.factor: .*greater than or equal to 1"):
        preflight.check(graph.load(root))


def test_all_names_in_the_table_can_be_loaded() -> None:
    """The table names modules and functions as text, so reading it imports nothing heavy."""
    methods = dict(built_in())
    asked = RunParams(families=("x",), methods=("prompt_diffuser", "prompt_dt"))
    table = stages.stages(asked, methods)
    named = [f"{stage.module}:run" for stage in table.values()]
    named += [check.function for stage in table.values() for check in stage.checks]
    named += [stage.plots for stage in table.values() if stage.plots]
    assert len(named) > len(table) + 8
    for name in named:
        assert callable(pkgutil.resolve_name(name)), name
    for stage in table.values():
        assert issubclass(stage.params_class(), Parameters), stage.name
