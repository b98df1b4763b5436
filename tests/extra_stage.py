"""A stage of its own: what one writes to add one, beside its line in the table."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pydantic import Field

from pd_pipeline.config import Parameters, ParamsFile
from pd_pipeline.errors import PipelineError
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import read_json, write_json


class Params(Parameters):
    """How trajectories are counted."""

    factor: int = Field(default=1, ge=1, description="what the count is multiplied by")


def run(context: StageContext) -> dict[str, Any]:
    """Write `count.json`: the number of files."""
    count = len(list(context.inputs["trajectories"].glob("*.parquet"))) * context.params.factor
    write_json(context.out / "count.json", {"files": count})
    return {"files": count}


def counted(out: Path, params: ParamsFile, root: Path) -> dict[str, int]:
    """A check: there is something to count."""
    count = read_json(out / "count.json")["files"]
    if not count:
        raise PipelineError(f"{out}: nothing was counted")
    return {"files": count}


def plots(out: Path) -> dict[str, Figure]:
    """A figure."""
    figure = Figure()
    figure.subplots().bar([0], [read_json(out / "count.json")["files"]])
    return {"files": figure}
