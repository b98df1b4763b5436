"""Stage trajectories: collect trajectories, or take those of the user, and summarise them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pd_pipeline.stage import StageContext
from pd_pipeline.storage import write_json
from pd_pipeline.trajectories.collection import Shard, TrajectoriesParams, collect, collect_shards
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
            partial(context.spread, collect_some) if context.spread else None,
        )
    files = {quality: context.out / f"{quality}.parquet" for quality in family.recordings or context.params.episodes}
    summary = summarise(family, {quality: read(file, family=family) for quality, file in files.items()})
    write_json(context.out / "summary.json", summary)
    return {f"return_mean_{quality}": values["return_mean"] for quality, values in summary.items()} | {
        "row_count": sum(values["steps"] for values in summary.values())
    }


def collect_some(context: StageContext, shards: Sequence[Shard]) -> Iterator[int]:
    """Collect shards into the work folder; yields the steps of each as it is done."""
    policies = context.inputs["behavior_policies"]
    return collect_shards(
        context.family, context.environment, context.root, policies, context.params, context.work, shards
    )
