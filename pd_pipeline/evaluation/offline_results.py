"""The result of evaluation for a family without a simulator, and its form in `metrics.json`.

The file says under `offline` what the scores are, and holds no return. Beside what `results` describes it has:

    action_loss, action_loss_low, action_loss_high       action_loss
    action_loss_difference_to_<method>                   difference_to_<method>
    trajectories, tasks: {<task>: {action_loss, ...}}    the same
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.results import AGAIN, DIFFERENCES, OFFLINE, Costs, Difference, Given
from pd_pipeline.evaluation.statistics import Estimate
from pd_pipeline.storage import read_json, write_json

_LOSS = "action_loss"


class OfflineTask(NamedTuple):
    """The action loss on the held-out trajectories of one target task."""

    action_loss: float
    action_loss_low: float
    action_loss_high: float
    trajectories: int


@dataclass(frozen=True)
class OfflineResult:
    """All that evaluation found of one method without a simulator: how far its actions are from the recorded ones."""

    given: Given
    costs: Costs
    action_loss: Estimate
    """Mean over targets of the mean over held-out trajectories: lower is better."""
    trajectories: int
    """Held-out trajectories of all targets (and seeds)."""
    tasks: Mapping[int, OfflineTask]
    difference_to_prompt_diffuser: Difference | None = None
    """Of the action loss, paired by trajectory: below zero is better. None where no such method had the same data."""
    difference_to_full_finetune: Difference | None = None
    difference_to_prompt_dt: Difference | None = None


OfflineMetrics = Mapping[str, OfflineResult]
"""Method -> what evaluation found of it offline."""


@dataclass(frozen=True)
class OfflineEvaluation:
    """The contents of `metrics.json` of a family without a simulator."""

    methods: OfflineMetrics
    precision: str | None = None
    family: str | None = None
    seed: int | None = None
    """None where seeds are pooled."""
    waits: str = ""
    """Why there are no scores as yet: too few trajectories of a single target."""


_ADAPTER = TypeAdapter(OfflineEvaluation)


def is_offline(path: Path) -> bool:
    """Whether a `metrics.json` is of a family without a simulator. Raises PipelineError where it is missing."""
    return "offline" in read_json(path)


def save_offline(path: Path, evaluation: OfflineEvaluation) -> None:
    """Write the `metrics.json` of a family without a simulator."""
    methods = {name: _flat_offline(result) for name, result in evaluation.methods.items()}
    piece = {} if evaluation.seed is None else {"family": evaluation.family, "seed": evaluation.seed}
    waits = {"waits": evaluation.waits} if evaluation.waits else {}
    write_json(path, {"offline": OFFLINE, "methods": methods, "precision": evaluation.precision, **piece, **waits})


def _flat_offline(result: OfflineResult) -> dict[str, Any]:
    losses = dict(zip((_LOSS, f"{_LOSS}_low", f"{_LOSS}_high"), result.action_loss, strict=True))
    differences = {name: getattr(result, name) for name in DIFFERENCES}
    return {
        **asdict(result.given),
        **asdict(result.costs),
        **losses,
        **{f"{_LOSS}_{name}": None if found is None else found._asdict() for name, found in differences.items()},
        "trajectories": result.trajectories,
        "tasks": {str(task): found._asdict() for task, found in result.tasks.items()},
    }


def load_offline(path: Path) -> OfflineEvaluation:
    """Read what `save_offline` wrote. Raises PipelineError where it is missing or is something else."""
    values = read_json(path)
    methods = values.get("methods")
    if "offline" not in values or not isinstance(methods, dict):
        raise PipelineError(f"{path}: holds no offline scores{AGAIN}")
    records = {
        name: {
            "given": {key.name: method.get(key.name) for key in fields(Given)},
            "costs": {key.name: method.get(key.name) for key in fields(Costs)},
            "action_loss": [method.get(key) for key in (_LOSS, f"{_LOSS}_low", f"{_LOSS}_high")],
            **{key: method.get(f"{_LOSS}_{key}") for key in DIFFERENCES},
            **{key: method.get(key) for key in ("trajectories", "tasks")},
        }
        for name, method in methods.items()
    }
    rest = {name: values.get(name) for name in ("precision", "family", "seed")} | {"waits": values.get("waits", "")}
    try:
        return _ADAPTER.validate_python({"methods": records, **rest})
    except ValidationError as error:
        first = error.errors()[0]
        raise PipelineError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}{AGAIN}") from None
