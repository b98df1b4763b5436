"""Stages evaluation and target_evaluation: score what every method left.

`evaluation` does so for all target tasks of a family and seed, `target_evaluation` for one target with accepted data.
It is rolled out (see `episodes`); where no simulator knows the targets it is scored offline (see `offline`).

The targets are scored in parts. A part is a pure function of its targets: a cluster has parts scored on many machines,
and those that are done survive a kill in the work folder.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field

from pd_pipeline.compute import pick_device
from pd_pipeline.config import Parameters
from pd_pipeline.evaluation import episodes, offline
from pd_pipeline.evaluation.enough import TooFew
from pd_pipeline.evaluation.offline import OfflineParams
from pd_pipeline.evaluation.offline_metrics import offline_metrics
from pd_pipeline.evaluation.offline_results import OfflineEvaluation, save_offline
from pd_pipeline.evaluation.policies import can_act, methods, recorded, targets, tuned_policies
from pd_pipeline.evaluation.results import Evaluation, save
from pd_pipeline.evaluation.scores import method_metrics
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import atomic_directory, atomic_file, load_arrays, read_json, save_arrays, write_json
from pd_pipeline.tuning.protocol import Pretrained

SCORES, ROLLOUTS, FACTS = "scores.parquet", "rollouts.safetensors", "facts.json"


class Params(Parameters):
    """How scores are made."""

    episodes: int = Field(default=1, gt=0, le=10_000, description="of each actor; more where starts are random")
    workers: int | None = Field(
        default=None, ge=1, le=1024, description="processes for environments; None: one per core"
    )
    environments: int = Field(
        default=400,
        gt=0,
        le=100_000,
        description="held in memory at once; more run in rounds, equal up to rounding",
    )
    targets: int = Field(
        default=50,
        gt=0,
        le=100_000,
        description="targets of a part; parts are side by side on a cluster, equal up to rounding",
    )
    patience: float = Field(
        default=600.0, gt=0, le=86_400, description="seconds after which a step that has not come back is ended"
    )
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="bf16 is faster where hardware has it, and then gives other actions"
    )
    bootstrap: int = Field(default=2000, gt=0, le=1_000_000, description="draws of an interval")
    offline: OfflineParams = OfflineParams()


class Part(NamedTuple):
    """Some of the targets of a key: part `number` of `total`, from 1."""

    number: int
    total: int
    targets: tuple[int, ...]

    def folder(self, work: Path) -> Path:
        """Where its scores are kept until all parts are done."""
        return work / f"part-{self.number}"

    def title(self, context: StageContext) -> str:
        """What its progress is called."""
        return f"{context.stage} {context.key}" + (f", part {self.number} of {self.total}" if self.total > 1 else "")


def run(context: StageContext) -> dict[str, Any]:
    """Write `scores.parquet`, `metrics.json` and, where there is a simulator, `rollouts.safetensors`."""
    params: Params = context.params
    parts = plan(targets(context), params.targets)
    todo = [part for part in parts if not part.folder(context.work).is_dir()]
    key, precision = context.key.family, params.precision
    try:
        if context.spread is None:
            list(score(context, todo))
        else:
            list(context.spread(score, todo))
    except TooFew as error:
        if context.key.task is None:
            raise
        missing = OfflineEvaluation({}, precision, key, context.seed, waits=str(error))
        save_offline(context.out / "metrics.json", missing)
        return {}
    folders = [part.folder(context.work) for part in parts]
    context.facts.update(read_json(folders[-1] / FACTS))
    scores = _joined(context, folders)
    with atomic_file(context.out / SCORES) as temporary:
        scores.drop("row").write_parquet(temporary)
    outs = recorded(context)
    if not can_act(context):
        offline_results = offline_metrics(scores, outs, context.seed, params.bootstrap)
        save_offline(context.out / "metrics.json", OfflineEvaluation(offline_results, precision, key, context.seed))
        return {f"offline_action_loss_{method}": result.action_loss.value for method, result in offline_results.items()}
    _save_rollouts(context.out / ROLLOUTS, scores, folders)
    results = method_metrics(scores, outs, context.seed, params.bootstrap)
    save(context.out / "metrics.json", Evaluation(results, precision, key, context.seed))
    return {f"return_mean_{method}": result.mean.value for method, result in results.items()}


def plan(found: Sequence[int], size: int) -> list[Part]:
    """Targets in parts of `size`, the last of which may be smaller."""
    total = -(-len(found) // size)
    return [Part(i + 1, total, tuple(found[i * size : (i + 1) * size])) for i in range(total)]


def score(context: StageContext, parts: Sequence[Part]) -> Iterator[Part]:
    """Score parts into their folders in the work folder."""
    device = pick_device(context.device)
    plm = Pretrained.load(context.inputs["plm"], context.inputs.get("diffuser"), device)
    for part in parts:
        policies, title = tuned_policies(context, plm, part.targets), part.title(context)
        with atomic_directory(part.folder(context.work)) as folder:
            if can_act(context):
                scores, kept = episodes.score(context, policies, plm, title)
                save_arrays(folder / ROLLOUTS, kept)
            else:
                scores = offline.score(context, policies, plm, part.targets, title)
            scores.write_parquet(folder / SCORES)
            write_json(folder / FACTS, {"device": str(device), "precision": context.params.precision})
        yield part


def _joined(context: StageContext, folders: Sequence[Path]) -> pl.DataFrame:
    """The scores of all parts in the order of methods and targets; `row` numbers them as they are in the parts."""
    scores = pl.concat([pl.read_parquet(folder / SCORES) for folder in folders]).with_row_index("row")
    ranks = {name: number for number, name in enumerate(methods(context))}
    places = {task: number for number, task in enumerate(targets(context))}
    by = [pl.col("method").replace_strict(ranks), pl.col("task").replace_strict(places), pl.col("row")]
    return scores.sort([pl.col("episode"), *by] if "episode" in scores.columns else by)


def _save_rollouts(path: Path, scores: pl.DataFrame, folders: Sequence[Path]) -> None:
    """What the parts kept, in the order of the scores; `rows` are those of the scores that they belong to."""
    firsts = scores.with_row_index("index").filter(pl.col("prompt") == 0, pl.col("episode") == 0)
    order = np.argsort(np.argsort(firsts["row"].to_numpy()))
    kept = [load_arrays(folder / ROLLOUTS)[0] for folder in folders]
    arrays = {name: np.concatenate([one[name] for one in kept])[order] for name in ("observations", "actions")}
    save_arrays(path, arrays | {"rows": firsts["index"].to_numpy().astype(np.int64)})
