"""What the UI shows beside a materialization."""

import base64
from pathlib import Path

import dagster as dg


def describe(out: Path) -> dict[str, dg.MetadataValue]:
    """Where the out lies, and how large it is."""
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {"path": dg.MetadataValue.path(out), "size_bytes": dg.MetadataValue.int(size)}


def plots(stage: str, out: Path) -> dict[str, dg.MetadataValue]:
    """The plots of an out, drawn into the page: nothing has to be served."""
    from pd_pipeline.reporting.plots import stage_plots

    return {title: dg.MetadataValue.md(_image(title, png)) for title, png in stage_plots(stage, out).items()}


def _image(title: str, png: bytes) -> str:
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
