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
_LOADED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: Any) -> Files:
    """Put the pictures of results/ into the site, at the place that they have in the repository."""
    for path in sorted((ROOT / "results").rglob("comparison.png")):
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
    """Refuse a page that loads a script, a style, a font or a picture from elsewhere: the site works offline."""
    for path in sorted(Path(config["site_dir"]).rglob("*.html")):
        if found := _LOADED.search(path.read_text()):
            raise PluginError(f"{path}: loads from the network: {found.group()}")
