"""What the methods left for the targets of a family and seed, or for one target, as policies that can act."""

from pathlib import Path
from typing import NamedTuple

from pd_pipeline.acting.actors import Actors
from pd_pipeline.evaluation.results import Tuned
from pd_pipeline.evaluation.scores import tuned_of
from pd_pipeline.stage import StageContext
from pd_pipeline.tuning import adaptation, summary
from pd_pipeline.tuning.protocol import Pretrained
from pd_pipeline.tuning.summary import Summary


class TunedPolicy(NamedTuple):
    """What one method left for one target: actors that follow one policy under its prompts."""

    method: str
    task: int
    actors: Actors
    summary: Summary
    tuned: Tuned


def targets(context: StageContext) -> tuple[int, ...]:
    """The targets that this key scores: one, or all of its family."""
    return context.family.test_tasks if context.key.task is None else (context.key.task,)


def of_target(context: StageContext, need: str, task: int) -> Path:
    """The out of an upstream stage for one of these targets."""
    return context.inputs[need] / str(task) if context.key.task is None else context.inputs[need]


def can_act(context: StageContext) -> bool:
    """Whether there is a simulator that knows these targets."""
    return context.family.simulates(targets(context))


def tuned_policies(context: StageContext, plm: Pretrained) -> list[TunedPolicy]:
    """One per method and target that this key reads."""
    names = [name for name in context.inputs if name.startswith("tuned_")]
    return [_load(context, name, task, plm) for name in names for task in targets(context)]


def _load(context: StageContext, name: str, task: int, plm: Pretrained) -> TunedPolicy:
    directory = of_target(context, name, task)
    actors = adaptation.load(context.modules[name], directory, plm).actors(plm)
    written = summary.load(directory)
    return TunedPolicy(name.removeprefix("tuned_"), task, actors, written, tuned_of(written, task))


def by_method(policies: list[TunedPolicy]) -> dict[str, list[Tuned]]:
    """Method -> what its outs record, one per target."""
    outs: dict[str, list[Tuned]] = {}
    for policy in policies:
        outs.setdefault(policy.method, []).append(policy.tuned)
    return outs
