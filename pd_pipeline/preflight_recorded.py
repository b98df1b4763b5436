"""Checks of a family without a simulator before any work: what its stages need against what its files hold."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pd_pipeline.config import PARAMS_FILE, TARGET, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.enough import LEAST_HELD_OUT
from pd_pipeline.families.base import Family
from pd_pipeline.families.recorded import RecordedFamily
from pd_pipeline.graph import Graph
from pd_pipeline.stages import OPTIONAL, TUNED

COLLECTING = ("behavior_policies", "trajectories")


def check_recorded(graph: Graph, family: Family, blocks: Mapping[str, Parameters]) -> None:
    """Raise PipelineError where a stage needs a simulator, or trajectories that the files do not hold."""
    assert isinstance(family, RecordedFamily)
    where = f"{PARAMS_FILE}: families.{family.name}"
    for method in graph.params.run.methods:
        if graph.method(f"{TUNED}{method}").online:
            raise PipelineError(
                f"{PARAMS_FILE}: run.methods: {method} runs episodes in a simulator, and family '{family.name}' has "
                "none: run one of the two without the other"
            )
    for stage in COLLECTING:
        if graph.params.block(family.name, stage):
            raise PipelineError(f"{where}.{stage}: nothing is collected for recorded trajectories: remove this block")
    folder = family.folder.resolve()
    for stage in (name for name, found in graph.stages.items() if found.axes):
        written = (graph.root / graph.out(stage, graph.keys(stage)[0])).resolve().parent
        if folder == written or written in folder.parents:
            raise PipelineError(
                f"{where}.environment.data: {family.folder} is where stage {stage} writes: move your files to another "
                f"folder, such as data/imported/{family.name}"
            )
    _check_qualities(where, family, blocks)
    _check_training(where, family, blocks)
    _check_targets(graph, where, family, blocks)


def _check_qualities(where: str, family: RecordedFamily, blocks: Mapping[str, Any]) -> None:
    for stage, quality in _qualities(blocks):
        if quality not in family.qualities:
            known = ", ".join(family.qualities)
            raise PipelineError(f"{where}.{stage}: quality '{quality}' is in no file of {family.folder}: found {known}")


def _qualities(blocks: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """(stage, quality) of all trajectories that are read."""
    for stage, params in blocks.items():
        of_block = getattr(params, "target", None) or getattr(params, "offline", None) or params
        named = (getattr(of_block, name, None) for name in ("quality", "prompt_quality"))
        for quality in (*named, *getattr(params, "qualities", ())):
            if quality is not None:
                yield stage, quality


def _check_training(where: str, family: RecordedFamily, blocks: Mapping[str, Any]) -> None:
    """Each training task needs a long enough episode to train on, and another that is held out."""
    from pd_pipeline.prompts.stage import held_out_episodes

    length = blocks["prompts"].length
    if length > family.horizon:
        raise PipelineError(f"{where}.prompts.length: {length} steps, but an episode has at most {family.horizon}")
    read = [(quality, blocks["prompts"].held_out) for quality in blocks["prompts"].qualities]
    for trained in ("plm", "hyper_network"):
        if trained in blocks:
            read += [(quality, blocks[trained].held_out) for quality in blocks[trained].qualities]
    for quality, share in read:
        for task in family.train_tasks:
            lengths = family.episode_lengths[quality].get(task, np.empty(0))
            held_out = held_out_episodes(np.zeros(len(lengths)), share)
            if not ((lengths[held_out] >= length).any() and (lengths[~held_out] >= length).any()):
                raise PipelineError(
                    f"{family.folder}: task {task} has {len(lengths)} trajectories of quality '{quality}', of which "
                    f"{int((lengths >= length).sum())} have the {length} steps of a prompt: to be trained on it needs "
                    f"two, one of them held out (the last {share:.0%}): import more, or leave the task out of "
                    f"families.{family.name}.environment.train_tasks"
                )
    for trained in OPTIONAL:
        for needed in getattr(blocks.get(trained), "qualities", ()):
            if needed not in blocks["prompts"].qualities:
                raise PipelineError(f"{where}.{trained}.qualities: '{needed}' is not among prompts.qualities")


def _check_targets(graph: Graph, where: str, family: RecordedFamily, blocks: Mapping[str, Any]) -> None:
    """Each target needs its few-shot trajectories and, to be scored, others."""
    offline = blocks["evaluation"].offline
    chosen: dict[str, int] = {}  # rule -> trajectories of the scored quality that methods get by it
    for stage in (name for name in blocks if name.startswith(TUNED)):
        target = blocks[stage].target
        own = TARGET in ((graph.params.families.get(family.name) or {}).get(stage) or {})
        place = f"{where}.{stage}.{TARGET}" if own else f"{where}.{TARGET}"
        method = graph.method(stage)
        if "prompts" in method.needs and target.quality not in blocks["prompts"].qualities:
            raise PipelineError(f"{place}.quality: '{target.quality}' is not among prompts.qualities")
        for quality in dict.fromkeys((target.quality, target.prompt_quality or target.quality)):
            scored = quality == offline.quality
            if target.few_shot is None and scored:
                raise PipelineError(f"{place}.few_shot: null leaves no trajectories to be scored on: give a number")
            needed = (target.few_shot or 1) + (LEAST_HELD_OUT if scored else 0)
            for task in family.test_tasks:
                if (held := _count(family, quality, task)) < needed:
                    raise PipelineError(
                        f"{place}.few_shot: {target.few_shot or 'all'} trajectories of quality '{quality}'"
                        f"{' and two others to be scored on' * scored}, but {family.folder} holds {held} of task "
                        f"{task}: import more, or use fewer"
                    )
            if scored:  # of one rule, fewer are among more
                chosen[target.choose] = max(chosen.get(target.choose, 0), target.few_shot)
    for task in family.test_tasks:
        if len(chosen) > 1 and _count(family, offline.quality, task) < sum(chosen.values()) + LEAST_HELD_OUT:
            rules = " and ".join(f"{count} '{rule}'" for rule, count in chosen.items())
            raise PipelineError(
                f"{where}: methods get different trajectories of quality '{offline.quality}' ({rules}), and two others "
                f"are needed to be scored on, but {family.folder} holds {_count(family, offline.quality, task)} of "
                f"task {task}: import more, use fewer, or choose them by one rule (target.choose)"
            )
    for task in family.test_tasks:
        if _count(family, offline.quality, task) < LEAST_HELD_OUT:
            raise PipelineError(
                f"{where}.evaluation.offline.quality: task {task} has no two trajectories of quality "
                f"'{offline.quality}': import more"
            )


def _count(family: RecordedFamily, quality: str, task: int) -> int:
    """How many trajectories of a quality a task has; other blocks say whether there is the quality at all."""
    return len(family.episode_lengths.get(quality, {}).get(task, ()))
