"""What the pages name is there: functions, files, commands, parameters, pages and headings."""

import pkgutil
import re
from pathlib import Path

import pytest

from pd_pipeline import reference
from pd_pipeline.cli import app
from tests.docs.pages import PAGES, ROOT, code_spans

PAPER = ROOT / "docs/paper.md"
FOLDERS = ("pd_pipeline", "assets", "benchmarks", "tests", "docs", "results", "published")
_FUNCTION = re.compile(r"pd_pipeline(?:\.\w+)*:[A-Za-z_][\w.]*")
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)")


def functions(page: Path) -> list[str]:
    return sorted(span for span in code_spans(page) if _FUNCTION.fullmatch(span))


def anchors(page: Path) -> set[str]:
    """Of the headings, as they are made from their text."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_functions_are_there(page: Path) -> None:
    for name in functions(page):
        assert callable(pkgutil.resolve_name(name)), name


def test_every_equation_has_its_function() -> None:
    text = PAPER.read_text()
    for section in (
        "Prompts and their condition",
        "The policy transformer",
        "Diffusion",
        "Guided tuning",
        "Evaluation",
    ):
        rows = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        assert rows is not None, section
        table = [row for row in rows[1].splitlines() if row.startswith("| ")][1:]
        assert table
        for row in table:
            assert _FUNCTION.search(row.rsplit("|", 2)[1]), row
    assert all(f"(eq. {number})" in text for number in range(4, 10))


@pytest.mark.parametrize(
    "renamed", ["pd_pipeline.models.diffusion:Diffusion.add_sound", "pd_pipeline.tuning.gradient_projection:unite"]
)
def test_a_renamed_function_would_be_found(renamed: str) -> None:
    assert _FUNCTION.fullmatch(renamed)
    with pytest.raises(AttributeError):
        pkgutil.resolve_name(renamed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_are_there(page: Path) -> None:
    for span in code_spans(page):
        if _PATH.fullmatch(span):
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_repository_lead_somewhere(page: Path) -> None:
    """As on a page that shows Markdown; the site's own links are checked when it is built."""
    for path, anchor in _LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_there(page: Path) -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"\bpd-pipeline ([a-z][a-z-]*)", page.read_text())) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_are_there(page: Path) -> None:
    listed = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert listed is not None
    asked = re.findall(r"(?:`|^ {4}|\$PWD )make ([a-z ]+)", page.read_text(), flags=re.MULTILINE)
    assert {target for targets in asked for target in targets.split()} <= set(listed[1].split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_parameters_are_there(page: Path) -> None:
    known = {block.name: [row.name for row in block.parameters] for block in reference.blocks()}
    for span in code_spans(page):
        block, _, name = span.partition(".")
        if block in known and re.fullmatch(r"[a-z_.]+", name) and name not in ("py", "parquet"):
            assert any(f"{row}.".startswith(f"{name}.") for row in known[block]), span
