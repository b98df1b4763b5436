"""An additional stage: the module that a user writes, besides its entry in the table."""

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

    factor: int = Field(default=1, ge=1, description="factor for the count")


def run(context: StageContext) -> dict[str, Any]:
    """Write `count.json`: the number of files."""
    count = len(list(context.inputs["trajectories"].glob("*.parquet"))) * context.params.factor
    write_json(context.out / "count.json", {"files": count})
    return {"files": count}


def counted(out: Path, params: ParamsFile, root: Path) -> dict[str, int]:
    """Check that there is at least one file."""
    count = read_json(out / "count.json")["files"]
    if not count:
        raise PipelineError(f"{out}: there are no files")
    return {"files": count}


def plots(out: Path) -> dict[str, Figure]:
    """Plot the count."""
    figure = Figure()
    figure.subplots().bar([0], [read_json(out / "count.json")["files"]])
    return {"files": figure}
