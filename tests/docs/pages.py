"""The documentation as tests read it: pages, the files that they show, and the names that they mention."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FILE = re.compile(r'^```\w+ title="(?P<name>[^"]+)"\n(?P<text>.*?)^```', re.DOTALL | re.MULTILINE)


class Shown(NamedTuple):
    """A file that a page shows."""

    page: Path
    name: str
    number: int
    """Which file of this name on the page."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}-{self.name}-{self.number}"


def shown(page: Path) -> list[Shown]:
    """The files of a page, in its order."""
    found: list[Shown] = []
    for match in _FILE.finditer(page.read_text()):
        number = sum(file.name == match["name"] for file in found)
        found.append(Shown(page, match["name"], number, match["text"]))
    return found


def files(ending: str) -> list[Shown]:
    """All files of all pages whose name ends so."""
    return [file for page in PAGES for file in shown(page) if file.name.endswith(ending)]


def lay_out(page: Path, folder: Path) -> None:
    """Write the modules and studies of a page, as its reader does."""
    for file in shown(page):
        if file.name != "params.yaml":
            (folder / file.name).parent.mkdir(exist_ok=True)
            (folder / file.name).write_text(file.text)


def code_spans(page: Path) -> set[str]:
    """What a page has between single backticks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)))
