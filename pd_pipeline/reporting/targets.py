"""Reads what was found for targets with accepted data, and which policies are in use."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pd_pipeline.config import TUNED
from pd_pipeline.decisions import Current, Decision, current_if_any, decisions, folder_of, folders
from pd_pipeline.evaluation import offline_results
from pd_pipeline.evaluation.offline_metrics import offline_metrics
from pd_pipeline.evaluation.offline_results import OfflineResult
from pd_pipeline.evaluation.results import MethodResult, Tuned
from pd_pipeline.evaluation.scores import REFERENCE, START, method_metrics, tuned_of
from pd_pipeline.families.base import Family
from pd_pipeline.incoming import store
from pd_pipeline.incoming.store import Received
from pd_pipeline.reporting.formatting import decimals
from pd_pipeline.reporting.provenance import stage_parameters
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import read_json
from pd_pipeline.trajectories.target_data import ORIGIN
from pd_pipeline.tuning import summary
from pd_pipeline.tuning.methods import known
from pd_pipeline.tuning.summary import Summary

STAGE = "target_evaluation"
RULES = {"random": "drawn at random", "newest": "the newest", "best": "those with the highest return"}


@dataclass(frozen=True)
class TargetResults:
    """What the page shows of one target with accepted data."""

    name: str
    """Such as `reach-57`."""
    is_new: bool
    accepted: tuple[Received, ...]
    """The files, in the order of arrival."""
    metrics: Mapping[str, MethodResult] = field(default_factory=dict)
    """Method -> its result over all seeds; empty where no simulator knows the target."""
    offline: Mapping[str, OfflineResult] = field(default_factory=dict)
    """The same where none does."""
    used: Mapping[str, str] = field(default_factory=dict)
    """Method -> how many of the trajectories it was tuned on, and the rule by which they were chosen."""
    waits: tuple[str, ...] = ()
    """What is not there as yet, for want of trajectories."""

    @property
    def scored(self) -> Mapping[str, MethodResult | OfflineResult]:
        """Method -> its result, whichever way it was scored."""
        return self.offline or self.metrics

    @property
    def counts(self) -> dict[str, int]:
        """Quality -> number of accepted trajectories, without copies."""
        found: dict[str, int] = {}
        for file in self.accepted:
            found[file.quality] = found.get(file.quality, 0) + file.episodes - file.copies
        return found

    @property
    def digits(self) -> int:
        """Digits after the point that suit the scores."""
        return 4 if self.offline else decimals(result.mean.value for result in self.metrics.values())

    @property
    def bases(self) -> list[str]:
        """The methods that the others are compared with."""
        return [base for base in (START, REFERENCE) if base in self.scored]


def with_accepted_data(context: StageContext, family: Family, draws: int) -> Iterator[TargetResults]:
    """The targets of a family that have accepted data, in the order of their numbers; `draws` make an interval."""
    for task in store.targets(context.root, family.name):
        is_new = task not in family.test_tasks
        suffix = store.NEW if is_new else ""
        data = context.inputs["target_data"] / f"{family.name}{suffix}" / str(task)
        if not data.is_dir():
            continue  # accepted after this work began
        files = tuple(map(store.received, store.files(context.root, family.name, task)))
        found = TargetResults(f"{family.name}-{task}", is_new, files)
        lacking = _lacking(context, family.name, found.counts) if is_new else {}
        keys = [f"{family.name}-{seed}{suffix}" for seed in context.params_file.run.seeds]
        waiting = {method for names in lacking.values() for method in names}
        methods = [method for method in context.params_file.run.methods if method not in waiting]
        folder = {method: [context.inputs[f"{TUNED}{method}"] / key / str(task) for key in keys] for method in methods}
        outs = {method: [summary.load(out) for out in each] for method, each in folder.items()}
        scored = _scored(context, task, keys, outs, draws) if outs else {}
        waits = (*(f"{', '.join(names)}: {text}" for text, names in lacking.items()), *scored.pop("waits", ()))
        origin = read_json(data / ORIGIN)["accepted"]
        used = {method: _used(each, origin) for method, each in outs.items()}
        yield TargetResults(found.name, is_new, files, used=used, waits=waits, **scored)


def _lacking(context: StageContext, family: str, counts: Mapping[str, int]) -> dict[str, list[str]]:
    """What is lacking of a new target -> the methods that were not tuned for it because of that."""
    found: dict[str, list[str]] = {}
    run = context.params_file.run
    methods = known(run, context.root)
    for method in (name for name in run.methods if methods[run.method_of(name)].demonstrations):
        target = stage_parameters(context.params_file, family, f"{TUNED}{method}", context.modules)["target"]
        if lacking := store.lacking(target, counts):
            texts = (f"{have} of {needed} trajectories of quality {name}" for name, (have, needed) in lacking.items())
            found.setdefault(", ".join(texts), []).append(method)
    return found


def _scored(
    context: StageContext, task: int, keys: list[str], outs: Mapping[str, list[Summary]], draws: int
) -> dict[str, Any]:
    """`metrics` or `offline` of a target over all seeds, or what its scores wait for."""
    folders = [context.inputs[STAGE] / key / str(task) for key in keys]
    offline = offline_results.is_offline(folders[0] / "metrics.json")
    if offline:
        waiting = {offline_results.load_offline(out / "metrics.json").waits for out in folders} - {""}
        if waiting:
            return {"waits": tuple(f"scores: {text}" for text in sorted(waiting))}
    scores = pl.concat([pl.read_parquet(out / "scores.parquet") for out in folders])
    scores = scores.filter(pl.col("method").is_in(list(outs)))
    tuned: dict[str, list[Tuned]] = {method: [tuned_of(one, task) for one in each] for method, each in outs.items()}
    seed = context.params_file.run.seeds[0]
    if offline:
        return {"offline": offline_metrics(scores, tuned, seed, draws)}
    return {"metrics": method_metrics(scores, tuned, seed, draws)}


def _used(outs: list[Summary], origin: list[dict[str, Any]]) -> str:
    """`5 expert, the newest; 2 of them accepted`: what a method was tuned on, over the seeds."""
    first = outs[0]
    if not first.few_shot:
        return "no trajectory of the target"
    accepted = {
        episode
        for file in origin
        if file["quality"] == first.quality
        for episode in range(file["first_episode"], file["first_episode"] + file["episodes"])
    }
    counts = sorted({len(accepted & {*out.few_shot_episodes}) for out in outs})
    few = dict.fromkeys((counts[0], counts[-1]))
    of_them = "all" if counts == [first.few_shot] else " to ".join(str(count) for count in few)
    return f"{first.few_shot} {first.quality}, {RULES[first.choose]}; {of_them} of them accepted"


@dataclass(frozen=True)
class InUse:
    """Which policy of a target is in use, and what was decided on it."""

    name: str
    made: tuple[Decision, ...]
    """All decisions, the oldest first."""
    written: Current | None
    """What `current.json` says; None where it is not there, as after a kill: then the decisions know."""

    @property
    def last(self) -> Decision:
        """The last decision."""
        return self.made[-1]

    @property
    def current(self) -> Decision | None:
        """The decision by which the policy in use was put in use; None if there is none, or it was lost."""
        made = [decision for decision in self.made if decision.version is not None]
        if self.written is not None and self.written.version not in [decision.version for decision in made[-1:]]:
            return None
        return made[-1] if made else None

    @property
    def digits(self) -> int:
        """Digits after the point that suit the scores of the last decision."""
        scores = [score for score in (self.last.candidate, self.last.in_use) if score is not None]
        return 4 if self.last.measure == "action_loss" else decimals(scores)


def in_use(root: Path, families: tuple[str, ...]) -> list[InUse]:
    """Every target of some families on which something was decided, by family and task."""
    names = [folder.parent.name for folder in folders(root, families)]
    found = [InUse(name, tuple(decisions(root, name)), current_if_any(folder_of(root, name))) for name in names]
    return sorted(found, key=lambda one: (families.index(one.last.family), one.last.task))
