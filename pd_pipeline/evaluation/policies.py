"""What the methods left for the targets of a family and seed, or for one target, as policies that can act."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pd_pipeline.acting.actors import Actors
from pd_pipeline.config import TUNED
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


def targets(context: StageContext) -> tuple[int, ...]:
    """The targets that this key scores: one, or all of its family."""
    return context.family.test_tasks if context.key.task is None else (context.key.task,)


def of_target(context: StageContext, need: str, task: int) -> Path:
    """The out of an upstream stage for one of these targets."""
    return context.inputs[need] / str(task) if context.key.task is None else context.inputs[need]


def can_act(context: StageContext) -> bool:
    """Whether there is a simulator that knows these targets."""
    return context.family.simulates(targets(context))


def methods(context: StageContext) -> list[str]:
    """Methods and variants whose outs this key reads."""
    return [name.removeprefix(TUNED) for name in context.inputs if name.startswith(TUNED)]


def tuned_policies(context: StageContext, plm: Pretrained, tasks: Sequence[int]) -> list[TunedPolicy]:
    """One per method and target of `tasks`, method by method."""
    return [_load(context, method, task, plm) for method in methods(context) for task in tasks]


def _load(context: StageContext, method: str, task: int, plm: Pretrained) -> TunedPolicy:
    stage = TUNED + method
    directory = of_target(context, stage, task)
    actors = adaptation.load(context.modules[stage], directory, plm).actors(plm)
    return TunedPolicy(method, task, actors, summary.load(directory))


def recorded(context: StageContext) -> dict[str, list[Tuned]]:
    """Method -> what its outs record, one per target."""
    tasks = targets(context)
    return {
        method: [tuned_of(summary.load(of_target(context, TUNED + method, task)), task) for task in tasks]
        for method in methods(context)
    }
