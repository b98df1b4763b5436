"""No figure of README.md or docs/ that results/ do not give, and no metrics that their scores do not give."""

from pathlib import Path

import polars as pl
import pytest

from pd_pipeline.evaluation import results
from pd_pipeline.evaluation.scores import CEILING, REFERENCE, START
from pd_pipeline.reporting import claims
from pd_pipeline.reporting.publish import metrics_of, read_scores
from pd_pipeline.reporting.verdict import judge
from pd_pipeline.storage import read_json, write_json

PUBLISHED = sorted(file.parent for file in (claims.ROOT / "results").rglob("metrics.json"))


def test_documents_are_what_the_results_give() -> None:
    assert claims.stale() == [], "run `python -m pd_pipeline.reporting.claims --write`"


@pytest.mark.parametrize("path", claims.prose(), ids=lambda path: path.name)
def test_no_figure_is_typed(path: Path) -> None:
    assert list(claims.typed_figures(claims.prose()[path])) == []


@pytest.mark.parametrize(
    "line",
    [
        "It earns 945.3 there.",
        "It solves 95 % of them.",
        "The PLM is three times as small.",
        "It earns twice as much.",
        "| prompt_diffuser | 1,472 |",
        "- **cheetah**: \N{MINUS SIGN}20.7",
        "It earns {{ 1472 | n(0) }}.",
        "It earns {{ results.best or 0.5 }}.",
        'It earns {{ "1,472" }}.',
        "{% set best = 1472 %}",
        "Success on 3 of 5 families.",
    ],
)
def test_a_typed_figure_is_found(line: str) -> None:
    assert len(list(claims.typed_figures(f"# Title\n\n{line}\n"))) >= 1


@pytest.mark.parametrize(
    "line",
    [
        "Hu et al., [arXiv 2411.01168](https://arxiv.org/abs/2411.01168)",
        "{{ results.metrics.prompt_diffuser.mean.value | n(1) }} (95 % interval), seeds 0 to 2",
        "`evaluation: {episodes: 5}` and `{trained: {digest: 3df3b54}}`",
        "    make run 5",
        "two commands, three doors",
    ],
)
def test_names_code_and_expressions_are_no_figures(line: str) -> None:
    assert list(claims.typed_figures(f"# Title\n\n{line}\n")) == []


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: str(folder.relative_to(claims.ROOT)))
def test_metrics_are_what_the_scores_give(folder: Path, tmp_path: Path) -> None:
    for name, evaluation in metrics_of(folder).items():
        results.save(tmp_path / name, evaluation)
        again, kept = (file.read_bytes() for file in (tmp_path / name, folder / name))
        assert again == kept, f"{folder / name}: run publish.recompute"
    assert {file.name for file in folder.glob("metrics*.json")} == {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: str(folder.relative_to(claims.ROOT)))
def test_drawn_prompts_in_the_place_of_prompt_diffuser_fail_wherever_the_rule_decides(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = read_scores(folder)
    drawn = scores.filter(pl.col("method") == START).with_columns(pl.lit(REFERENCE).alias("method"))
    swapped = pl.concat([scores.filter(pl.col("method") != REFERENCE), drawn])
    monkeypatch.setattr("pd_pipeline.reporting.publish.read_scores", lambda _: swapped)
    for evaluation in metrics_of(folder).values():
        gain = evaluation.methods[CEILING].difference_to_prompt_dt
        assert gain is not None
        assert judge(evaluation.methods).checks[0].met is (False if gain.low > 0 else None)


def test_the_data_is_of_the_same_tasks_as_the_methods() -> None:
    folder = claims.ROOT / "results/published/cheetah_vel"
    data, tasks = read_json(folder / "data.json"), ("2", "7", "15", "23", "26")
    for quality in ("expert", "medium"):
        expected = sum(data[quality]["tasks"][task]["return_mean"] for task in tasks) / len(tasks)
        found = claims.Results(folder).data_return(quality)
        assert found == pytest.approx(expected)
        assert found != pytest.approx(data[quality]["return_mean"], rel=0.1), "that of all tasks is another"


def test_a_document_that_results_no_longer_give_is_stale(tmp_path: Path) -> None:
    for name in ("README.md", "docs", "results", "published/params.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "docs").mkdir()
    for file in (claims.ROOT / "docs").glob("*.md*"):
        (tmp_path / "docs" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "README.md").write_bytes((claims.ROOT / "README.md").read_bytes())
    (tmp_path / "published/params.yaml").write_bytes((claims.ROOT / "published/params.yaml").read_bytes())
    for file in (file for kind in ("json", "csv") for file in (claims.ROOT / "results").rglob(f"*.{kind}")):
        copy = tmp_path / file.relative_to(claims.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    assert claims.stale(tmp_path) == []
    metrics = tmp_path / "results/published/pick_place/metrics.json"
    changed = read_json(metrics)
    changed["methods"][REFERENCE]["return_mean"] += 10
    write_json(metrics, changed)
    assert [path.name for path in claims.stale(tmp_path)] == ["results.md", "README.md"]
