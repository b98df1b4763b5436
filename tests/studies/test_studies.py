"""Studies on a tiny project: shared work is done once, a stopped study resumes, and the CLI, DVC and Dagster agree."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from assets.definitions import build
from pd_pipeline import graph, lineage, records, rendering
from pd_pipeline.clean import clean
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.results import from_json
from pd_pipeline.graph import Graph
from pd_pipeline.progress import silent
from pd_pipeline.reporting import study as shown
from pd_pipeline.reporting.publish import publish, seconds_per_target
from pd_pipeline.stage import Key
from pd_pipeline.storage import read_json, write_json
from pd_pipeline.studies import execution
from pd_pipeline.studies.points import is_shared, point_graphs
from tests.conftest import shared_project
from tests.dvc_project import SMALL_PARAMS, call, change, dvc, invoke, make_project, write_graph
from tests.trajectories.test_target_data import bring

PARAMS = (
    SMALL_PARAMS.replace("families: [point_robot, other]", "families: [point_robot]")
    .replace("  other:\n    <<: *tiny\n", "")
    .replace("run: {", "run: {studies: [few_shot], ")
)
STUDY = """\
title: How many trajectories are enough?
note: Nobody knows.
base: {run: {methods: [prompt_dt]}}
grid: {target.few_shot: [1, 2, 5]}
"""
STAGE = "study_few_shot"
MORE_DATA = "methods: [prompt_dt]}, families: {point_robot: {trajectories: {episodes: {expert: {test: 7}}}}}"


def with_study(folder: Path) -> Path:
    root = make_project(folder, PARAMS)
    (root / "studies").mkdir()
    (root / "studies/few_shot.yaml").write_text(STUDY)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return with_study(tmp_path / "project")


@pytest.fixture
def done(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A private copy of a project in which the study has run."""
    shared = shared_project(tmp_path_factory, "study", lambda root: (study(with_study(root)), None)[1])
    return shutil.copytree(shared, tmp_path / "project", symlinks=True)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stage and key of every piece of work that is actually done."""
    done: list[str] = []
    real = lineage.run_piece

    def count(project: Graph, stage: str, key: Key, *rest: Any) -> dict[str, Any]:
        done.append(f"{stage} {key}".strip())
        return real(project, stage, key, *rest)

    monkeypatch.setattr(lineage, "run_piece", count)
    return done


def study(root: Path) -> Path:
    """Run the study; returns its out."""
    execution.run(graph.load(root), STAGE, Key(), silent)
    return root / "data" / STAGE


def test_points_read_the_projects_own_outs_if_the_grid_changes_nothing(root: Path) -> None:
    project = graph.load(root)
    first, second, _ = point_graphs(project, "few_shot")
    key = Key("point_robot", None, 0)
    assert is_shared(first, "plm", key)
    assert first.out("plm", key) == project.out("plm", key)
    outs = [each.out("evaluation", key) for each in (project, first, second)]
    assert len(set(outs)) == 3
    tuned = Key("point_robot", 1, 0)
    assert not is_shared(first, "tuned_prompt_dt", tuned)
    assert first.input("evaluation", key, "tuned_prompt_dt") == first.out("tuned_prompt_dt", tuned).parent
    assert project.stages[STAGE].needs == ("behavior_policies", "trajectories", "target_data", "prompts", "plm")
    assert STAGE in project.stages["report"].needs


def test_work_for_seeds_that_only_the_study_has_is_not_shared(root: Path) -> None:
    (root / "studies/few_shot.yaml").write_text(STUDY + "seeds: [0, 7]\n")
    project = graph.load(root)
    point = point_graphs(project, "few_shot")[0]
    assert is_shared(point, "plm", Key("point_robot", None, 0))
    assert not is_shared(point, "plm", Key("point_robot", None, 7))


def test_work_that_points_share_is_done_once(root: Path, counted: list[str]) -> None:
    out = study(root)
    assert len(set(counted)) < len(counted), "different points have the same keys"
    assert counted.count("plm point_robot-0") == counted.count("trajectories point_robot") == 1
    assert counted.count("tuned_prompt_dt point_robot-1-0") == counted.count("evaluation point_robot-0") == 3
    assert not [name for name in counted if "noise_prompt" in name], "base selects the methods"
    content = read_json(out / "study.json")
    assert (content["title"], content["note"], content["names"]) == (
        "How many trajectories are enough?",
        "Nobody knows.",
        ["target.few_shot"],
    )
    assert [point["values"] for point in content["points"]] == [{"target.few_shot": n} for n in (1, 2, 5)]
    scores = pl.read_parquet(out / "scores.parquet")
    assert scores.group_by("point", maintain_order=True).len()["len"].to_list() == [16, 16, 16]
    for number, point in enumerate(content["points"]):
        family = point["families"]["point_robot"]
        result = from_json({"methods": family["methods"]}, "study.json").methods["prompt_dt"]
        assert result.given.few_shot == (1, 2, 5)[number]
        mean = scores.filter(pl.col("point") == number)["return"].mean()
        assert result.mean.value == pytest.approx(mean)
        gap = family["to_first"]["prompt_dt"]["value"]
        assert gap == pytest.approx(mean - scores.filter(pl.col("point") == 0)["return"].mean())
    before = list(counted)
    assert execution.run(graph.load(root), STAGE, Key(), silent).skipped
    assert counted == before


def test_a_stopped_study_resumes_where_it_stopped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = lineage.run_piece, []

    def stop(project: Graph, stage: str, key: Key, *rest: Any) -> dict[str, Any]:
        if stage == "evaluation" and len(done) > 8:
            raise KeyboardInterrupt
        done.append((stage, key))
        return real(project, stage, key, *rest)

    monkeypatch.setattr(lineage, "run_piece", stop)
    with pytest.raises(KeyboardInterrupt):
        study(root)
    before = list(done)
    assert [stage for stage, _ in before].count("evaluation") == 1, "stopped at the second point"
    monkeypatch.setattr(lineage, "run_piece", lambda *given: (done.append(given[1:3]), real(*given))[1])
    study(root)
    after = done[len(before) :]
    assert [stage for stage, _ in after].count("evaluation") == 2
    assert not [stage for stage, _ in after if stage in ("trajectories", "target_data", "prompts", "plm")]


def test_after_an_edit_only_new_points_are_done(done: Path, counted: list[str]) -> None:
    root = done
    path = root / "studies/few_shot.yaml"
    path.write_text(STUDY.replace("[1, 2, 5]", "[1, 2, 3]"))
    assert lineage.up_to_date(graph.load(root), STAGE, Key()) is None
    study(root)
    assert sorted(counted) == [
        "evaluation point_robot-0",
        STAGE,
        "tuned_prompt_dt point_robot-1-0",
        "tuned_prompt_dt point_robot-3-0",
    ]


def test_accepted_data_of_a_target_asks_for_the_study_again(root: Path, counted: list[str]) -> None:
    """Also where its points have data of their own, so that no out of the project tells."""
    more = STUDY.replace("methods: [prompt_dt]}", MORE_DATA).replace("[1, 2, 5]", "[2]")
    (root / "studies/few_shot.yaml").write_text(more)
    change(root, "horizon: 6", "horizon: 12")
    study(root)
    assert not is_shared(point_graphs(graph.load(root), "few_shot")[0], "target_data", Key("point_robot", 1))
    before = rendering.digests(graph.load(root), STAGE, Key())
    study(root)
    counted.clear()
    bring(root, 1, seed=1)
    now = rendering.digests(graph.load(root), STAGE, Key())
    assert {name for name in now if now[name] != before.get(name)} == {"recordings"}
    study(root)
    assert "target_data point_robot-1" in counted
    assert STAGE in counted, counted
    assert "target_data point_robot-3" not in counted, "it has no new data"


def test_dvc_repro_runs_it_and_the_report_shows_it(root: Path) -> None:
    change(root, "[prompt_dt, noise_prompt]", "[prompt_dt]")
    write_graph(root)
    project = graph.load(root)
    for stage in project.stages:  # DVC makes what the others lead to
        for key in project.keys(stage) if stage not in (STAGE, "report") else []:
            lineage.run(project, stage, key, silent)
    call(root, "dvc", "repro", "--quiet")
    assert "up to date" in dvc(root, "status")
    page = (root / "data/reports/index.html").read_text()
    assert "How many trajectories are enough?" in page
    assert "few_shot 5" in page
    assert "study_few_shot: up to date" in call(root, "pd-pipeline", "run", STAGE)
    files = {file.name for file in publish(root, "few_shot", root / "results")}
    assert files == {
        "study.json",
        "scores.csv",
        "point_robot.png",
        "few_shot.yaml",
        "params.yaml",
        "dvc.lock",
        "provenance.json",
    }
    folder = root / "results/studies/few_shot"
    assert (folder / "few_shot.yaml").read_text() == STUDY
    assert (folder / "dvc.lock").read_text().count("  study_few_shot:\n") == 1
    (root / "studies/few_shot.yaml").write_text(STUDY.replace("5]", "3]"))
    assert "digests" in dvc(root, "status")


def test_a_published_study_says_at_which_revision_each_stage_was_made(done: Path) -> None:
    root, project = done, graph.load(done)
    at = point_graphs(project, "few_shot")[1]
    for stage, key, revision in (
        ("plm", Key("point_robot", None, 0), "older"),
        ("tuned_prompt_dt", Key("point_robot", 1, 0), "newer"),
    ):
        file = records.path(at.home(stage, key), stage, key)
        write_json(file, read_json(file) | {"revision": revision})
    write_graph(root)
    publish(root, "few_shot", root / "results")
    made_at = read_json(root / "results/studies/few_shot/provenance.json")["made_at"]
    assert made_at["plm"] == ["older"]
    assert "newer" in made_at["tuned_prompt_dt"]
    assert len(made_at["tuned_prompt_dt"]) == 2, "the other pieces were made at another one, or it is unknown"
    assert set(made_at) == set(at.stages) - {"report"}


def test_a_published_study_has_the_seconds_that_tuning_took(done: Path) -> None:
    root = done
    at = point_graphs(graph.load(root), "few_shot")[1]
    stage, task = "tuned_prompt_dt", at.tasks["point_robot"][0]
    pieces = [key for key in at.keys(stage) if at.is_benchmark(stage, key)]
    assert len(pieces) > 1
    for number, key in enumerate(pieces):
        file = records.path(at.home(stage, key), stage, key)
        write_json(file, read_json(file) | {"seconds": 3.0 * number})
    write_graph(root)
    publish(root, "few_shot", root / "results")
    seconds = read_json(root / "results/studies/few_shot/provenance.json")["seconds_per_target"]
    assert seconds[1]["point_robot"]["prompt_dt"] == 1.5 * (len(pieces) - 1), "the median"
    records.path(at.home(stage, Key("point_robot", task, 0)), stage, Key("point_robot", task, 0)).unlink()
    assert seconds_per_target(at) == {}, "a record is missing"


def test_dagster_has_an_asset_for_it(done: Path) -> None:
    definitions = build(done)
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(list(definitions.assets or []), selection=[STAGE], instance=instance)
    assert result.success
    (event,) = result.asset_materializations_for_node(STAGE)
    assert "How many trajectories are enough? point_robot" in event.metadata, "its curve"
    parents = definitions.resolve_asset_graph().get(dg.AssetKey(STAGE)).parent_keys
    assert parents == {
        dg.AssetKey(name) for name in ("behavior_policies", "trajectories", "target_data", "prompts", "plm")
    }
    assert dg.AssetKey(STAGE) in definitions.resolve_asset_graph().get(dg.AssetKey("report")).parent_keys


def test_the_command_needs_no_entry_in_run_studies(root: Path) -> None:
    (root / "params.yaml").write_text(PARAMS.replace("studies: [few_shot], ", ""))
    assert "few_shot: How many" in invoke(root, "study")
    text = call(root, "pd-pipeline", "study", "few_shot")
    lines = [line.split() for line in text.splitlines() if line.startswith("few_shot ")]
    assert [line[:3] for line in lines] == [["few_shot", n, "prompt_dt"] for n in "125"]
    assert "study" not in rendering.render(graph.load(root))
    assert "plm point_robot-0: up to date" in invoke(root, "run", "plm"), "made by the study, and recorded"
    files = {file.name for file in publish(root, "few_shot", root / "results")}
    assert {"study.json", "few_shot.yaml", "dvc.lock"} <= files
    recorded = (root / "results/studies/few_shot/dvc.lock").read_text()
    assert "  plm@point_robot-0:\n" in recorded, "the project's own work that its points read"
    (root / "studies/few_shot.yaml").write_text(STUDY.replace("5]", "3]"))
    with pytest.raises(PipelineError, match=r"study few_shot is not made, or out of date: run"):
        publish(root, "few_shot", root / "results")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target.few_shot: [1, 2, 5]", "plm.stepz: [1]", r"plm\.stepz: no such parameter: did you mean 'steps'"),
        (
            "target.few_shot: [1, 2, 5]",
            "pml.steps: [1]",
            r"families\.point_robot\.pml: no such block: did you mean 'plm'",
        ),
        (
            "[1, 2, 5]",
            "[1, 99]",
            r"few_shot: 99 trajectories of quality 'expert', but trajectories\.episodes\.expert\.test collects 6",
        ),
        ("[prompt_dt]", "[prompt_td]", r"run\.methods: 'prompt_td' is not a method"),
    ],
)
def test_an_invalid_point_is_reported_before_any_work(
    root: Path, old: str, new: str, message: str, counted: list[str]
) -> None:
    (root / "studies/few_shot.yaml").write_text(STUDY.replace(old, new))
    with pytest.raises(PipelineError, match=rf"^studies/few_shot\.yaml, point [a-z_]+ \w+: .*{message}"):
        study(root)
    assert counted == []


@pytest.mark.parametrize(
    "grid",
    [
        "families.reach.plm.steps: [1, 2]",
        "tuned_noise_prompt.prompts: [3, 5]",
        "report.rollouts: [true, false]",
        "plm.steps: [3, 3]",
    ],
)
def test_points_that_nothing_tells_apart_are_refused(root: Path, grid: str) -> None:
    (root / "studies/few_shot.yaml").write_text(STUDY.replace("target.few_shot: [1, 2, 5]", grid))
    with pytest.raises(PipelineError, match=r"studies/few_shot\.yaml: points .* and .* are the same: nothing that"):
        study(root)


def test_a_family_in_base_that_is_none_is_refused(root: Path) -> None:
    text = STUDY.replace("[prompt_dt]}}", "[prompt_dt]}, families: {point_robt: {plm: {steps: 3}}}}")
    (root / "studies/few_shot.yaml").write_text(text)
    with pytest.raises(PipelineError, match=r"base\.families\.point_robt: unknown family: did you mean 'point_robot'"):
        study(root)


def test_clean_removes_the_points_and_keeps_the_users_files(done: Path) -> None:
    root = done
    homes = sorted((root / "data/points").iterdir())
    mine = homes[0] / "data/notes.txt"
    mine.write_text("mine")
    messages = list(clean(root))
    assert [path for path in (root / "data/points").rglob("*") if path.is_file()] == [mine]
    assert any(str(mine) in line for line in messages)
    shutil.rmtree(root / "data/points")
    assert not (root / "data" / STAGE).exists()


def results(names: tuple[str, ...], values: list[dict[str, Any]], out: Path) -> shown.StudyResults:
    (found,) = shown.load(out)
    points = tuple(
        shown.PointResults(str(v), v, p.metrics, p.to_first, p.fit) for v, p in zip(values, found.points, strict=True)
    )
    return shown.StudyResults(found.title, found.note, names, found.family, found.seeds, points)


def test_figures_are_curves_for_numbers_and_intervals_otherwise(done: Path) -> None:
    out = done / "data" / STAGE
    (found,) = shown.load(out)
    axes = shown.figure(found).axes[0]
    assert axes.get_xlabel() == "target.few_shot"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "5"]
    wide = results(("a",), [{"a": 1}, {"a": 10}, {"a": 100}], out)
    assert shown.figure(wide).axes[0].get_xscale() == "log"
    for values in ([{"a": "x"}, {"a": "y"}, {"a": "z"}], [{"a": True}, {"a": False}, {"a": True}]):
        plain = shown.figure(results(("a",), values, out)).axes[0]
        assert [label.get_text() for label in plain.get_yticklabels()] == [str(v) for v in values]
    rows = shown.rows(found)
    assert [row.to_first is None for row in rows] == [True, False, False]


def test_what_searches_found_is_kept_drawn_and_published(root: Path) -> None:
    (root / "studies/few_shot.yaml").write_text(
        "title: Is it found?\n"
        "base:\n"
        "  run: {methods: [prompt_search, prompt_diffuser_online, prompt_dt]}\n"
        "  families: {point_robot: {tuned_prompt_search: {episodes: 6, first: 2, population: 2, elites: 2, prompts: 2,"
        " confirm: 0},"
        " tuned_prompt_diffuser_online: {adapt: {steps: 3}, steps: 9, arms: 3, prompts: 2,"
        " bandit: {episodes: 4, first: 3}},"
        " diffuser: {steps: 2, warmup: 1, denoiser: {width: 8, blocks: 1}}}}\n"
        "grid: {tuned_prompt_search.space: [prompt, segments]}\n"
    )
    out = study(root)
    found = pl.read_parquet(out / "searches.parquet")
    assert found.group_by("point", "method", "family", maintain_order=True).len().rows() == [
        (0, "prompt_search", "point_robot", 6),
        (0, "prompt_diffuser_online", "point_robot", 4),
        (1, "prompt_search", "point_robot", 6),
        (1, "prompt_diffuser_online", "point_robot", 4),
    ], "two targets, three and two rounds; gradient steps are no episodes"
    assert {*found.filter(pl.col("method") == "prompt_diffuser_online")["step"]} == {3, 4}
    assert found.filter(pl.col("point") == 0, pl.col("task") == 1)["step"].to_list() == [2, 4, 6, 3, 4]
    pictures = [each["title"] for each in shown.section(out)[0]["figures"]]
    assert pictures == [
        "Return at the points",
        "Return against episodes, space prompt",
        "Return against episodes, space segments",
    ]
    write_graph(root)
    files = {file.name for file in publish(root, "few_shot", root / "results")}
    assert {"searches.csv", "point_robot-episodes-0.png", "point_robot-episodes-1.png"} <= files
    published = shown.load(root / "results/studies/few_shot")[0]
    assert published.points[1].searches is not None
    assert published.points[1].searches.equals(shown.load(out)[0].points[1].searches)
