"""What `mkdocs build` does beside Markdown: pictures of results/, the parameter reference, no page needs the network.

The reference is made with each build instead of being kept in a file: it can't be out of date, and a change of a
parameter is a change in one place.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from pd_pipeline import reference

ROOT = Path(__file__).parents[1]
REFERENCE = "<!-- the parameter reference -->"
SHOWN = ("comparison.png", "*-episodes*.png", "*-cost.png")  # those that a page shows
_PICTURE = re.compile(r"<img\b[^>]*?\bsrc=\"([^\"]+)\"")
_LOADED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: Any) -> Files:
    """Put the pictures of results/ into the site, at the place that they have in the repository."""
    pictures = (path for name in SHOWN for path in (ROOT / "results").rglob(name))
    for path in sorted(pictures):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the reference, and let pictures of results/ be those of the site."""
    if page.file.src_uri == "parameters.md":
        if REFERENCE not in markdown:
            raise PluginError(f"docs/parameters.md: lacks {REFERENCE}: write it where the reference belongs")
        markdown = markdown.replace(REFERENCE, reference.markdown())
    return markdown.replace("](../results/", "](results/")


def on_post_build(config: Any) -> None:
    """Refuse a page with a missing picture, or that loads something from elsewhere: the site works offline."""
    for path in sorted(Path(config["site_dir"]).rglob("*.html")):
        text = path.read_text()
        if found := _LOADED.search(text):
            raise PluginError(f"{path}: loads from the network: {found.group()}")
        for source in _PICTURE.findall(text):
            if not source.startswith("data:") and not (path.parent / source).is_file():
                raise PluginError(f"{path}: shows {source}, which is not in the site")
