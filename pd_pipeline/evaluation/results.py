"""The result of evaluation: a typed record per method, and its form in `metrics.json`, whose names are fixed.

Every estimate comes with its 95 % interval. In `metrics.json` the record of a method is one flat object, and what is
not known is null:

    return_mean, return_mean_low, return_mean_high       mean
    return_iqm, ci_low, ci_high                          iqm
    success_rate, success_low, success_high              success
    normalized, normalized_low, normalized_high          normalized
    difference_to_<method>: value, low, high, reference  difference_to_<method>
    share: value, low, high, start, ceiling              share
    above_half, above_half_low, above_half_high          above_half
    method, frozen, quality, few_shot, ...               given
    tuned_parameters, plm_passes, environment_episodes   costs
    episodes, tasks: {<task>: {return_mean, ...}}        the same

The results of a family without a simulator are in `offline_results`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.statistics import Estimate, Position
from pd_pipeline.storage import read_json, write_json

OWN, OTHER = "own", "other"
"""`shown` of a method that was given trajectories of the target itself, or of another task."""


@dataclass(frozen=True)
class Given:
    """What a method was given and what it is; None where that is not recorded, or differs between targets."""

    method: str
    """What a variant varies, else the method itself."""
    frozen: bool | None = None
    """Whether the PLM's weights are as they were."""
    quality: str | None = None
    few_shot: int | None = None
    shown: str | None = None
    candidates: int | None = None
    chain: int | None = None
    prompt_quality: str | None = None
    """Quality of the trajectories that prompts are cut from, if it is another."""
    choose: str | None = None
    """The rule by which few-shot trajectories were chosen, if they were not drawn at random."""

    @property
    def own_task(self) -> bool:
        """Whether it was given trajectories of the target: all were before other tasks' could be asked for."""
        return self.shown in (None, OWN)


@dataclass(frozen=True)
class Costs:
    """What tuning took: weights of one target; passes through the PLM and episodes of all targets and seeds."""

    tuned_parameters: int
    plm_passes: int
    environment_episodes: int


@dataclass(frozen=True)
class Tuned:
    """What one tuned out records of itself for evaluation."""

    given: Given
    costs: Costs


class Difference(NamedTuple):
    """How far the mean return (or action loss) of a method lies above that of `reference`, which had the same data."""

    value: float
    low: float
    high: float
    reference: str


class Share(NamedTuple):
    """Where a method lies from `start` (0) to `ceiling` (1), which had the same data."""

    value: float
    low: float | None
    high: float | None
    start: str
    ceiling: str


class TaskResult(NamedTuple):
    """Means over all episodes of one target task."""

    return_mean: float
    success_rate: float | None = None
    target_return: float | None = None
    """The return that the policy was asked for."""


@dataclass(frozen=True)
class MethodResult:
    """All that evaluation found of one method."""

    given: Given
    mean: Estimate
    """Of the return; so is `iqm`, the interquartile mean."""
    iqm: Estimate
    episodes: int
    costs: Costs
    tasks: Mapping[int, TaskResult]
    success: Estimate | None = None
    """None where the family knows no success."""
    normalized: Position | None = None
    """From noise_prompt (0) to full_finetune (1), whatever data these had."""
    difference_to_prompt_diffuser: Difference | None = None
    """None, as for the other methods and the share, where no such method had the same data."""
    difference_to_full_finetune: Difference | None = None
    difference_to_prompt_dt: Difference | None = None
    share: Share | None = None
    above_half: Estimate | None = None
    """How far its return lies above the middle between those that `share` is between; None in files of before."""


Metrics = Mapping[str, MethodResult]
"""Method -> what evaluation found of it."""


@dataclass(frozen=True)
class Evaluation:
    """The contents of `metrics.json`: of one family and seed, or pooled over the seeds."""

    methods: Metrics
    precision: str | None = None
    """What evaluation computed in; None where that is not recorded, or differs between seeds."""
    family: str | None = None
    seed: int | None = None
    """None where seeds are pooled."""


OFFLINE = "action loss on held-out trajectories"
"""What a family without a simulator is scored by."""


_FLAT = {
    "mean": ("return_mean", "return_mean_low", "return_mean_high"),
    "iqm": ("return_iqm", "ci_low", "ci_high"),
    "success": ("success_rate", "success_low", "success_high"),
    "normalized": ("normalized", "normalized_low", "normalized_high"),
    "above_half": ("above_half", "above_half_low", "above_half_high"),
}
"""Estimate -> the names of its value, low and high in the JSON."""

_TO = "difference_to_"
_NESTED = (f"{_TO}prompt_diffuser", f"{_TO}full_finetune", f"{_TO}prompt_dt", "share")
_ADAPTER = TypeAdapter(Evaluation)
DIFFERENCES = tuple(name for name in _NESTED if name.startswith(_TO))
AGAIN = ": run stage evaluation again"


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The contents of `metrics.json`; of pooled seeds without `family` and `seed`."""
    methods = {name: _flat(result) for name, result in evaluation.methods.items()}
    piece = {} if evaluation.seed is None else {"family": evaluation.family, "seed": evaluation.seed}
    return {"methods": methods, "precision": evaluation.precision, **piece}


def from_json(values: Mapping[str, Any], where: str) -> Evaluation:
    """What `to_json` was given; what files of an earlier time do not record is None.

    Raises PipelineError, which names `where`, for a figure that is missing or of another type.
    """
    methods = values.get("methods")
    if not isinstance(methods, dict) or not all(isinstance(method, dict) for method in methods.values()):
        raise PipelineError(f"{where}: holds no metrics of methods{AGAIN}")
    rest = {name: values.get(name) for name in ("precision", "family", "seed")}
    records = {name: _nested(name, method) for name, method in methods.items()}
    try:
        return _ADAPTER.validate_python({"methods": records, **rest})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in _names_in_json(first["loc"]))
        raise PipelineError(f"{where}: {place}: {first['msg']}{AGAIN}") from None


def save(path: Path, evaluation: Evaluation) -> None:
    """Write a `metrics.json`."""
    write_json(path, to_json(evaluation))


def load(path: Path) -> Evaluation:
    """Read a `metrics.json`. Raises PipelineError where it is missing or lacks what every evaluation finds."""
    values = read_json(path)
    if "offline" in values:
        raise PipelineError(f"{path}: scored offline, by the {OFFLINE}: it holds no returns")
    return from_json(values, str(path))


def _flat(result: MethodResult) -> dict[str, Any]:
    """The object of a method in the JSON."""
    values: dict[str, Any] = {**asdict(result.given), **asdict(result.costs), "episodes": result.episodes}
    for name in ("prompt_quality", "choose"):
        if values[name] is None:
            del values[name]
    for name, keys in _FLAT.items():
        values |= dict(zip(keys, getattr(result, name) or (None, None, None), strict=True))
    for name in _NESTED:
        found = getattr(result, name)
        values[name] = None if found is None else found._asdict()
    return values | {"tasks": {str(task): found._asdict() for task, found in result.tasks.items()}}


def _nested(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The flat object of a method as fields of MethodResult, not validated; without what the object lacks."""
    record: dict[str, Any] = {key: values[key] for key in ("episodes", "tasks", *_NESTED) if key in values}
    for part, kind in (("given", Given), ("costs", Costs)):
        record[part] = {key.name: values[key.name] for key in fields(kind) if key.name in values}
    record["given"] = {"method": name} | record["given"]
    for key in (key for key in _NESTED if key.startswith(_TO) and isinstance(record.get(key), dict)):
        record[key] = {"reference": key.removeprefix(_TO)} | record[key]  # of old, the plain method, and not named
    for part, keys in _FLAT.items():
        if values.get(keys[0]) is not None:
            record[part] = dict(zip(("value", "low", "high"), (values.get(key) for key in keys), strict=True))
    return record


def _names_in_json(place: Sequence[Any]) -> Sequence[Any]:
    """Where in the JSON the field of Evaluation at `place` is."""
    if len(place) < 3 or place[0] != "methods":
        return place
    part, *inner = place[2:]
    if part in _FLAT:
        inner = [dict(zip(("value", "low", "high"), _FLAT[part], strict=True))[inner[0] if inner else "value"]]
    elif part not in ("given", "costs"):
        inner = [part, *inner]
    return [*place[:2], *inner]
