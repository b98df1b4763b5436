"""Stage trajectories: collect trajectories, or take those of the user, and summarise them."""

from typing import Any

from pd_pipeline.stage import StageContext
from pd_pipeline.storage import write_json
from pd_pipeline.trajectories.collection import TrajectoriesParams, collect
from pd_pipeline.trajectories.quality import summarise
from pd_pipeline.trajectories.reading import read
from pd_pipeline.trajectories.recorded import take

Params = TrajectoriesParams


def run(context: StageContext) -> dict[str, Any]:
    """Write one Parquet file per quality and `summary.json`."""
    family = context.family
    if family.is_recorded:
        take(family, context.out, context.progress)
    else:
        collect(
            family,
            context.environment,
            context.root,
            context.inputs["behavior_policies"],
            context.params,
            context.out,
            context.work,
            context.progress,
            context.spread,
        )
    files = {quality: context.out / f"{quality}.parquet" for quality in family.recordings or context.params.episodes}
    summary = summarise(family, {quality: read(file, family=family) for quality, file in files.items()})
    write_json(context.out / "summary.json", summary)
    return {f"return_mean_{quality}": values["return_mean"] for quality, values in summary.items()} | {
        "row_count": sum(values["steps"] for values in summary.values())
    }
