"""A figure of the report takes its function and its place in `sections`: the page shows it without anything else."""

import ast
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from pd_pipeline import graph
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from pd_pipeline.reporting import curves, paths, plots, sections
from pd_pipeline.reporting.canvas import new_figure, styled
from pd_pipeline.stage import Key

PLACES = [
    name
    for name, value in vars(sections).items()
    if getattr(value, "__annotations__", {}).get("return") == sections.Drawn
]
"""The functions of `sections` with the figures of a chapter."""


@styled
def constant(value: float) -> Figure:
    """A new figure's function."""
    figure, (axes,) = new_figure(2.0)
    axes.axhline(value)
    return figure


def test_a_figure_takes_a_function_and_a_place(
    reported_project: Path, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more in every chapter."""

    def with_one_more(place: str) -> Callable[..., Any]:
        before = getattr(sections, place)
        return lambda *given: [*before(*given), (f"New in {place}", f"How to read that in {place}.", constant(1.0))]

    assert len(PLACES) == 7
    for place in PLACES:
        monkeypatch.setattr(sections, place, with_one_more(place))
    root = tmp_path / "project"
    shutil.copytree(reported_project, root)
    run_piece(graph.load(root), "report", Key(), silent)
    figures = figures_of((root / "data/reports/index.html").read_text())
    assert len(figures) == len(figures_of(page)) + len(PLACES)
    for place in PLACES:
        (shown,) = [figure for figure in figures if f"New in {place}" in figure]
        assert f"How to read that in {place}." in shown
        assert "<svg" in shown


def figures_of(page: str) -> list[str]:
    return re.findall(r"<figure.*?</figure>", page, re.DOTALL)


def test_every_function_of_a_figure_has_one_place() -> None:
    called = [
        f"{node.func.value.id}.{node.func.attr}"
        for node in ast.walk(ast.parse(Path(sections.__file__).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    ]
    drawing = [
        f"{module.__name__.rpartition('.')[2]}.{node.name}"
        for module in (plots, curves, paths)
        for node in ast.parse(Path(module.__file__ or "").read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id == "styled" for d in node.decorator_list)
    ]
    assert len(drawing) > 12
    assert {name: called.count(name) for name in drawing} == dict.fromkeys(drawing, 1)
