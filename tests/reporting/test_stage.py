import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from pd_pipeline import config, graph
from pd_pipeline.evaluation.offline_results import OfflineResult
from pd_pipeline.evaluation.results import Costs, Given, MethodResult, load
from pd_pipeline.evaluation.statistics import Estimate, Position
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from pd_pipeline.reporting import provenance
from pd_pipeline.reporting.formatting import decimals, number, percent
from pd_pipeline.reporting.gather import gather
from pd_pipeline.reporting.stage import main_figures, templates
from pd_pipeline.reporting.verdict import Check, Verdict
from pd_pipeline.stage import Key
from pd_pipeline.storage import read_json, write_json
from tests.conftest import run_stages
from tests.evaluation.builders import FREE

ROOT = Path(__file__).parents[2]


class Links(HTMLParser):
    """Collects what a browser would load, and the tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]


def test_page_is_self_contained(page: str) -> None:
    parser = Links()
    parser.feed(page)
    assert parser.links
    assert all(link.startswith(("data:image/", "#")) for link in parser.links)
    assert not {"script", "link", "iframe"} & set(parser.tags)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]+)\)", page))
    assert "@import" not in page


def test_numbers_are_those_of_the_evaluation(page: str, reported_project: Path) -> None:
    metrics = read_json(reported_project / "data/evaluation/point_robot-0/metrics.json")["methods"]
    digits = decimals(values["return_mean"] for values in metrics.values())
    for method, values in metrics.items():
        row = re.search(rf'<tr data-method="{method}".*?</tr>', page, re.DOTALL)
        assert row
        text = row.group()
        for name in ("return_mean", "return_mean_low", "return_iqm", "ci_high"):
            assert number(values[name], digits) in text, (method, name)
        assert percent(values["success_rate"]) in text
        assert f"{values['few_shot']} {values['quality']}" in text
        assert f'data-value="{values["return_mean"]}"' in text
        share, cell = values["share"], re.findall(r"<td>(.*?)</td>", text, re.DOTALL)[-1]
        shown = share is not None and share["value"] >= -1 and method not in (share["start"], share["ceiling"])
        assert cell.startswith(number(share["value"], 2)) if shown else cell == "\N{EN DASH}", (method, cell)
        costs = [number(values[name], 0) for name in ("tuned_parameters", "plm_passes")]
        assert re.search(rf"<td>{method}</td>\s*<td>{costs[0]}</td><td>{costs[1]}</td>", page)


def test_equal_inputs_give_an_equal_page_whatever_the_clock(page: str, reported_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(reported_project, root)
    for record in (root / "data/records").rglob("*.json"):
        if record.parent.name != "report":
            write_json(record, read_json(record) | {"seconds": 12345.678})
    run_stages(root, "report")
    again = (root / "data/reports/index.html").read_text()
    assert again == page
    assert "12,345" not in again
    assert "seconds" not in re.sub(r"<details.*?</details>", "", again, flags=re.DOTALL), "but for parameters"


def test_the_page_follows_the_one_reading_of_the_parameters(page: str, reported_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(reported_project, root)
    project = graph.load(root)
    (root / "params.yaml").write_text("run: {families: [somebody, is, editing]}\nfamilies: {}\n")
    run_piece(project, "report", Key(), silent)
    assert (root / "data/reports/index.html").read_text() == page


def test_the_return_asked_for_and_the_data_are_shown_beside_the_methods(page: str, reported_project: Path) -> None:
    asked = re.search(r"<h4>The return asked for</h4>.*?</table>", page, re.DOTALL)
    assert asked
    summary = read_json(reported_project / "data/trajectories/point_robot/summary.json")
    digits = decimals(values["return_mean"] for values in summary.values())
    scores = pl.read_parquet(reported_project / "data/evaluation/point_robot-0/scores.parquet")
    for task in (1, 4):
        row = re.search(rf"<tr><td>task {task}</td>.*?</tr>", asked.group(), re.DOTALL)
        assert row
        assert number(scores.filter(pl.col("task") == task)["target_return"][0], digits) in row.group()
        assert number(summary["expert"]["tasks"][str(task)]["return_mean"], digits) in row.group()
    metrics = read_json(reported_project / "data/evaluation/point_robot-0/metrics.json")["methods"]
    digits = decimals(values["return_mean"] for values in metrics.values())
    on_targets = sum(summary["expert"]["tasks"][task]["return_mean"] for task in ("1", "4")) / 2
    row = re.search(r'<tr class="data"><td>expert data.*?</tr>', page, re.DOTALL)
    assert row
    assert number(on_targets, digits) in row.group()
    assert number(on_targets, digits) != number(summary["expert"]["return_mean"], digits)


def test_the_precision_is_shown(page: str) -> None:
    assert re.search(r"Evaluated in\s+float32\.", page)


def test_every_family_asked_for_and_no_other(page: str) -> None:
    assert re.findall(r'<section class="family" id="([^"]+)"', page) == ["point_robot"]
    assert "forgotten" not in page


def outcome(value: float, place: Position | None) -> MethodResult:
    found = Estimate(value, value, value)
    return MethodResult(Given("x"), mean=found, iqm=found, episodes=1, costs=FREE, tasks={}, normalized=place)


def test_overview_has_one_column_per_family() -> None:
    met, missed, unknown = (Check("bar", "found", state) for state in (True, False, None))
    families = [
        {
            "name": name,
            "digits": 1,
            "results": {"metrics": {"prompt_diffuser": outcome(value, place)}, "offline": {}},
            "verdict": Verdict("", [met, missed, unknown]),
        }
        for name, value, place in (("reach", 1845.04, Position(1.003)), ("cheetah_vel", -19.09, None))
    ]
    offline = OfflineResult(Given("prompt_diffuser"), Costs(0, 0, 0), Estimate(0.01234, 0.01, 0.02), 5, {})
    results = {"metrics": {}, "offline": {"prompt_diffuser": offline}}
    families.append({"name": "my_robot", "digits": 1, "results": results, "verdict": None})
    text = str(templates().get_template("parts.html").module.overview(families, ["prompt_diffuser"]))  # type: ignore[attr-defined]
    cells = re.findall(r"<td>(.*?)</td>", text.replace("\n", ""))
    assert re.findall(r'href="#(\w+)"', text) == ["reach", "cheetah_vel", "my_robot"]
    assert cells == [
        "prompt_diffuser",
        "1,845.0<small>1.003</small>",
        "\N{MINUS SIGN}19.1<small>\N{EN DASH}</small>",
        "0.0123<small>offline: action loss</small>",
        "bars met by prompt_diffuser",
        "1 of 2",
        "1 of 2",
        "\N{EN DASH}",
    ]


def test_page_says_what_made_it(page: str, reported_project: Path) -> None:
    assert "candidates" in page
    assert "git revision" in page
    assert re.search(r"evaluation episodes per method,\s+one per prompt, and as many for", page)
    assert provenance.digest(reported_project / "data/plm/point_robot-0") in page
    for chapter in ("Comparison", "Rollouts", "What mattered", "Tuning", "Generated prompts", "Pre-training", "Data"):
        assert f"<h3>{chapter}</h3>" in page


def test_every_figure_is_explained(page: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert len(figures) >= 12
    for figure in figures:
        caption = re.search(r'<p class="caption">(.*?)</p>', figure, re.DOTALL)
        assert caption
        assert len(caption.group(1)) > 40


def test_parameters_of_every_stage_are_known(reported_project: Path) -> None:
    project = graph.load(reported_project)
    parameters = provenance.effective_parameters(project.params, "point_robot", reported_project, project.modules)
    assert set(parameters) == {"environment", *project.stages} - {"report"}
    assert parameters["tuned_prompt_diffuser"]["adapt.steps"] == 12


@pytest.mark.parametrize(("family", "trained"), [("point_robot", False), ("reach", False), ("cheetah_vel", True)])
def test_how_a_policy_is_trained_is_shown_only_where_one_is(family: str, trained: bool) -> None:
    modules = graph.load(ROOT).modules
    parameters = provenance.effective_parameters(config.load(ROOT), family, ROOT, modules)
    assert any(name.startswith("learning.") for name in parameters["behavior_policies"]) is trained


def test_seeds_are_pooled(project: Path, reported_project: Path) -> None:
    shutil.rmtree(project / "data")
    shutil.copytree(reported_project / "data", project / "data")
    for directory in list((project / "data").glob("*/point_robot-0")):
        shutil.copytree(directory, directory.with_name("point_robot-1"))
    second = project / "data/evaluation/point_robot-1/scores.parquet"
    pl.read_parquet(second).with_columns(pl.lit(1, pl.Int64).alias("seed"), pl.col("return") + 2).write_parquet(second)
    text = (project / "params.yaml").read_text().replace("seeds: [0]", "seeds: [0, 1]")
    text = re.sub(r"^  methods: .*$", "  methods: [prompt_dt, noise_prompt]", text, count=1, flags=re.MULTILINE)
    (project / "params.yaml").write_text(text)
    inputs = {name: project / "data" / name for name in ("trajectories", "plm", "diffuser", "evaluation")}
    inputs |= {f"tuned_{method}": project / f"data/tuned_{method}" for method in ("prompt_dt", "noise_prompt")}
    results = gather(inputs, config.load(project), "point_robot", project, draws=50)
    alone = load(project / "data/evaluation/point_robot-0/metrics.json").methods["prompt_dt"]
    assert list(results.metrics) == ["prompt_dt", "noise_prompt"]
    pooled = results.metrics["prompt_dt"]
    assert pooled.episodes == 2 * alone.episodes
    assert abs(pooled.mean.value - alone.mean.value - 1) < 1e-6
    assert abs(pooled.mean.high - pooled.mean.value - 12.7062) < 1e-3, "Student's of two seeds 2 apart"
    assert {episode.method for episode in results.episodes} == {"prompt_dt", "noise_prompt"}


def test_the_figures_for_dvc_have_fixed_names_and_leave_out_what_is_unknown() -> None:
    found = replace(outcome(3.0, Position(0.5)), success=Estimate(0.75, 0.5, 1.0))
    assert main_figures(found) == {"return_mean": 3.0, "success_rate": 0.75, "normalized": 0.5}
    assert main_figures(outcome(3.0, None)) == {"return_mean": 3.0}


@pytest.mark.parametrize(
    ("states", "shown"), [((True,), ""), ((True, None), "undecided"), ((False, None), "missed"), ((None,), "undecided")]
)
def test_the_verdict_is_coloured_by_its_worst_bar(states: tuple[bool | None, ...], shown: str) -> None:
    verdict = Verdict("a sentence", [Check("bar", "found", state) for state in states])
    card = templates().get_template("parts.html").module.verdict_card(verdict)  # type: ignore[attr-defined]
    assert re.search(r'class="card verdict (\w*)"', card).group(1) == shown  # type: ignore[union-attr]
