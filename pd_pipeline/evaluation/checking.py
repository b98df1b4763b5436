"""What must hold of an out of the stage evaluation."""

from pathlib import Path

from pd_pipeline.config import ParamsFile
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import read_json


def metrics_complete(out: Path, params: ParamsFile, root: Path) -> dict[str, int]:
    """The number of methods with metrics. Raises PipelineError where a method of params.yaml has none."""
    methods = read_json(out / "metrics.json")["methods"]
    if missing := [method for method in params.run.methods if method not in methods]:
        raise PipelineError(f"{out / 'metrics.json'}: no metrics of {', '.join(missing)}")
    return {"methods": len(methods)}
