"""Metadata that the UI shows for a materialization."""

import base64
from pathlib import Path
from typing import Any

import dagster as dg

from pd_pipeline.stages import PAGE, Stage


def describe(out: Path) -> dict[str, dg.MetadataValue]:
    """Path and size of the out, and its page if it is the report."""
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    found: dict[str, dg.MetadataValue] = {"path": dg.MetadataValue.path(out), "size_bytes": dg.MetadataValue.int(size)}
    if (page := out / PAGE).is_file():
        found["open this"] = dg.MetadataValue.path(page)
    return found


def plots(stage: Stage, out: Path) -> dict[str, dg.MetadataValue]:
    """The plots of an out, embedded as data URLs, so that no file server is needed."""
    if stage.plots is None:
        return {}
    from pd_pipeline.reporting.stage_plots import drawn

    return {title: dg.MetadataValue.md(_image(title, png)) for title, png in drawn(stage.plots, out).items()}


def _image(title: str, png: bytes) -> str:
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"


def table(rows: list[dict[str, Any]]) -> dg.MetadataValue:
    """Rows with the same columns as a table."""
    return dg.MetadataValue.md(_markdown(rows))


def _markdown(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "none"
    lines = [rows[0].keys(), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
