"""What must hold of a training's out."""

import csv
import math
from pathlib import Path

from pd_pipeline.config import ParamsFile
from pd_pipeline.errors import PipelineError


def losses_finite(out: Path, params: ParamsFile, root: Path) -> dict[str, float]:
    """The last losses of a training. Raises PipelineError where one of them all is infinite or not a number."""
    with (out / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name, value in row.items():
            if value and not math.isfinite(float(value)):
                raise PipelineError(f"{out / 'losses.csv'}: {name} is {value} at step {row['step']}")
    return {name: float(value) for name, value in rows[-1].items() if value} if rows else {}
