"""The command `pd-pipeline compare`: what it reads, and its tables and figure."""

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from pd_pipeline.cli import app
from pd_pipeline.reporting.comparison import on_one_scale, profiles, rows, table
from pd_pipeline.reporting.layout import Layout
from pd_pipeline.reporting.score_tables import of_files

METHODS = {"noise_prompt": 0.0, "full_finetune": 10.0, "prompt_dt": 8.0, "good_one": 9.5}


def scores(folder: Path, seeds: int = 3, points: int = 0, family: bool = False) -> Path:
    rng = np.random.default_rng(len(str(folder)))
    found = [
        {"method": m, "task": t, "seed": s, "prompt": i, "return": mean + 5 * t + rng.normal()}
        | ({"point": p} if points else {})
        | ({"family": "named"} if family else {})
        for p in range(max(points, 1))
        for m, mean in METHODS.items()
        for s in range(seeds)
        for t in (3, 4)
        for i in range(4)
    ]
    folder.mkdir(parents=True)
    pl.DataFrame(found).write_csv(folder / "scores.csv")
    return folder / "scores.csv"


def compare(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    return result.exit_code, result.output


def test_files_are_compared_family_by_family_and_over_all(tmp_path: Path) -> None:
    files = scores(tmp_path / "a"), scores(tmp_path / "other")
    code, text = compare(*files)
    assert code == 0, text
    lines = [line.split()[:2] for line in text.splitlines()]
    assert lines[0] == ["family", "method"]
    assert {family for family, _ in lines[1:]} == {"a", "other", "all"}
    assert [family for family, _ in lines[1:]].count("all") == 4
    assert "reference" in text
    code, text = compare(files[0])
    assert {line.split()[0] for line in text.splitlines()[1:]} == {"a"}, "nothing to sum up"


def test_csv_has_the_numbers_in_full(tmp_path: Path) -> None:
    file = scores(tmp_path / "a")
    code, text = compare(file, "--format", "csv", "--to", "good_one")
    assert code == 0
    found = {row["method"]: row for row in csv.DictReader(io.StringIO(text))}
    expected = {row.method: row for row in rows(on_one_scale(of_files([file])), "good_one")}
    assert found.keys() == expected.keys() == METHODS.keys()
    for method, row in expected.items():
        assert float(found[method]["iqm"]) == row.iqm.value
        assert found[method]["verdict"] == row.verdict
        assert (found[method]["p"] == "") == (method == "good_one")


def test_tables_for_papers(tmp_path: Path) -> None:
    found = rows(on_one_scale(of_files([scores(tmp_path / "a")])), "prompt_dt")
    latex = table(found, Layout.LATEX).splitlines()
    assert latex[0].startswith(r"\begin{tabular}{ll")
    assert latex[-1] == r"\end{tabular}"
    body = [line for line in latex if line.endswith(r"\\")]
    assert len(body) == 5
    assert {line.count(" & ") for line in body} == {9}
    assert any(r"good\_one" in line for line in body)
    assert "\N{MINUS SIGN}" not in "".join(latex)
    markdown = table(found, Layout.MARKDOWN).splitlines()
    assert {line.count("|") for line in markdown} == {11}
    assert len(markdown) == 6


def test_one_point_of_a_study(tmp_path: Path) -> None:
    file = scores(tmp_path / "study", points=2, family=True)
    assert compare(file)[0] == 1
    code, text = compare(file, "--point", 1)
    assert code == 0
    assert text.splitlines()[1].startswith("named")
    assert compare(file, "--point", 2)[0] == 1
    assert (
        "no point 2: choose one from 0 to 1" in CliRunner().invoke(app, ["compare", str(file), "--point", "2"]).output
    )


def test_the_figure_shows_every_method(tmp_path: Path) -> None:
    file = scores(tmp_path / "a")
    assert compare(file, "--figure", tmp_path / "profiles.png")[0] == 0
    assert (tmp_path / "profiles.png").read_bytes().startswith(b"\x89PNG")
    axes = profiles(on_one_scale(of_files([file]))["a"]).axes[0]
    assert [line.get_label() for line in axes.lines] == list(METHODS)
    for line in axes.lines:
        assert (np.diff(line.get_ydata()) <= 0).all()


def test_seeds_of_an_evaluation_are_one_family(tmp_path: Path) -> None:
    whole = pl.read_csv(scores(tmp_path / "whole"))
    files = []
    for seed in (0, 1, 2):
        (tmp_path / f"reach-{seed}").mkdir()
        files.append(tmp_path / f"reach-{seed}/scores.parquet")
        whole.filter(pl.col("seed") == seed).write_parquet(files[-1])
    found = of_files(files)
    assert list(found) == ["reach"]
    assert found["reach"].sort(pl.all()).equals(whole.select(found["reach"].columns).sort(pl.all()))


def test_scores_of_two_experiments_are_not_mixed(tmp_path: Path) -> None:
    code, text = compare(scores(tmp_path / "one/reach"), scores(tmp_path / "other/reach"))
    assert code == 1
    assert "other/reach/scores.csv: has scores of reach, full_finetune, seed 0, task 3, as" in text.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "1"], "--point is of a study"),
        (["a/scores.csv", "--point", "1"], "a/scores.csv: these are no scores of a study: leave out --point"),
        (["missing.csv"], "missing.csv: no such file"),
        (["bad.csv"], "bad.csv: no table of scores: it has no column 'task'"),
        (
            ["a/scores.csv", "--to", "prompt_td"],
            "a: no scores of 'prompt_td', which is --to: name another method there: did you mean",
        ),
        (["a/scores.csv", "--floor", "x"], "a: no scores of 'x'"),
        (["a/scores.csv", "--floor", "full_finetune", "--ceiling", "prompt_dt"], "not above full_finetune on target"),
    ],
)
def test_what_cannot_be_compared(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scores(tmp_path / "a")
    (tmp_path / "bad.csv").write_text("method,return\nx,1\n")
    code, text = compare(*arguments)
    assert code == 1
    assert message in text


def test_the_project_itself(tuned_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    shutil.copytree(tuned_project, project)
    monkeypatch.chdir(project)
    code, text = compare("--to", "prompt_dt")
    assert code == 0, text
    assert {line.split()[0] for line in text.splitlines()[1:]} == {"point_robot"}
    (project / "data/evaluation/point_robot-0/scores.parquet").unlink()
    code, text = compare()
    assert code == 1
    assert "is not made, or out of date: run `pd-pipeline run all` first" in text
