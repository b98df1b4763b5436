"""The graph of stages: dvc.yaml is rendered from it, Dagster assets are built from it, and the CLI runs it.

A stage has axes; its keys combine the families, target tasks and seeds of params.yaml along these axes. A piece of work
reads the upstream keys that have the same value on every axis that both stages have: `plm@reach-0` is read by
`tuned_prompt_dt@reach-5-0`, and all `tuned_prompt_dt@reach-*-0` are read by `evaluation@reach-0`.
"""

import importlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pd_pipeline import config
from pd_pipeline.config import PARAMS_FILE, Parameters, ParamsFile
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.families.base import BY_NAME, Family, load_family
from pd_pipeline.families.registry import BUILT_IN
from pd_pipeline.incoming import store
from pd_pipeline.incoming.store import NEW
from pd_pipeline.parsing import parse
from pd_pipeline.sources import forget
from pd_pipeline.stage import Key
from pd_pipeline.stages import (
    ACROSS,
    EVALUATION,
    REPORT,
    SEED,
    TARGET_EVALUATION,
    TASK,
    Stage,
    stages,
    target_evaluation,
)
from pd_pipeline.tuning.methods import Method, known
from pd_pipeline.yaml_text import merged, values_of


@dataclass(frozen=True)
class Graph:
    """The stages with their keys for one project: one params.yaml."""

    root: Path
    text: str
    """The text of params.yaml. It is read once, so the work and its record use the same parameters."""
    values: Mapping[str, Any]
    """The same text parsed into plain values, without defaults."""
    params: ParamsFile
    stages: dict[str, Stage]
    methods: dict[str, Method]
    """All methods available to the project, by name."""
    tasks: dict[str, tuple[int, ...]]
    """Family -> its target tasks."""
    accepted: Mapping[str, Mapping[int, Mapping[str, int]]] = field(default_factory=dict)
    """Family -> task -> quality -> number of trajectories that users brought and that were accepted."""
    overrides: tuple[str, ...] = ()
    """Overrides of values in params.yaml, for this process (`--set`)."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Values that replace those of params.yaml before the overrides are applied: a study's `base`."""
    homes: Mapping[tuple[str, str | None, int | None], Path] = field(default_factory=dict)
    """(stage, family, seed) -> the folder with outs, records and resume folders, if that is not the root."""

    @cached_property
    def _keys(self) -> dict[str, list[Key]]:
        """Stage -> its keys, as far as they were asked for."""
        return {}

    @cached_property
    def _index(self) -> dict[tuple[str, tuple[str, ...]], dict[tuple[Any, ...], list[Key]]]:
        """(stage, axes) -> values on these axes -> the keys that have them."""
        return {}

    @property
    def modules(self) -> dict[str, str]:
        """Stage -> the module of its Params, for all stages that have a block in each family."""
        return {name: stage.params_module for name, stage in self.stages.items() if stage.axes and not stage.block}

    def keys(self, stage: str) -> list[Key]:
        """All keys of a stage, in the order family, task, seed. Raises PipelineError if the graph has no such stage."""
        if stage not in self.stages:
            raise PipelineError(f"unknown stage '{stage}': {suggestion(stage, self.stages)}")
        if stage not in self._keys:
            axes = self.stages[stage].axes
            self._keys[stage] = [
                Key(family, task, seed)
                for family in (self.params.run.families if axes else (None,))
                for task in (self.targets(stage, family) if family is not None and TASK in axes else (None,))
                for seed in (self.params.run.seeds if SEED in axes else (None,))
            ]
        return [*self._keys[stage]]

    def targets(self, stage: str, family: str) -> tuple[int, ...]:
        """The target tasks of a stage: those of the family, and the new ones with enough accepted trajectories."""
        accepted = sorted(self.accepted.get(family, ()))
        if self.stages[stage].accepted_only:
            tuned = [name for name in self.stages[stage].needs if name.startswith(config.TUNED)]
            return tuple(t for t in accepted if any(t in self.targets(name, family) for name in tuned))
        new = [task for task in accepted if task not in self.tasks[family]]
        return (*self.tasks[family], *(task for task in new if not self.lacking(stage, family, task)))

    def method(self, stage: str) -> Method:
        """The method of a tuning stage."""
        return self.methods[self.params.run.method_of(stage.removeprefix(config.TUNED))]

    def lacking(self, stage: str, family: str, task: int) -> dict[str, tuple[int, int]]:
        """Quality -> (accepted, needed) trajectories, for those that a tuning stage still lacks for a new target."""
        if not stage.startswith(config.TUNED) or not self.method(stage).demonstrations:
            return {}
        target = self.stage_params(stage, Key(family)).model_dump()[config.TARGET]
        return store.lacking(target, self.accepted[family][task])

    def is_new(self, key: Key) -> bool:
        """Whether the task of a key is a new target: one that only users' accepted files make known."""
        return key.task is not None and key.family in self.tasks and key.task not in self.tasks[key.family]

    def is_benchmark(self, stage: str, key: Key) -> bool:
        """Whether a piece of work is of the family as params.yaml defines it, not of targets with accepted data."""
        return not (self.stages[stage].accepted_only or self.is_new(key))

    def key(self, stage: str, text: str) -> Key:
        """Parse the key `text`. Raises PipelineError if the graph has no such stage or key."""
        keys = {str(key): key for key in self.keys(stage)}
        if text not in keys:
            known = ", ".join(keys) or "none"
            raise PipelineError(f"stage {stage} has no key '{text}': the keys in {PARAMS_FILE} are {known}")
        return keys[text]

    def upstream(self, stage: str, key: Key) -> list[tuple[str, Key]]:
        """The (stage, key) pairs that a piece of work reads. One of all targets of a family reads no new ones."""
        axes = self.stages[stage].axes
        return [
            (need, other)
            for need in self.stages[stage].needs
            for other in self._matching(need, key, tuple(axis for axis in self.stages[need].axes if axis in axes))
            if not (axes and TASK not in axes and self.is_new(other))
        ]

    def _matching(self, stage: str, key: Key, axes: tuple[str, ...]) -> list[Key]:
        """The keys of a stage that agree with `key` on `axes`, where it has a value."""
        axes = tuple(axis for axis in axes if getattr(key, axis) is not None)
        if (stage, axes) not in self._index:  # a search among all keys, for each of them, would be quadratic
            index = self._index[stage, axes] = defaultdict(list)
            for other in self.keys(stage):
                index[tuple(getattr(other, axis) for axis in axes)].append(other)
        return self._index[stage, axes].get(tuple(getattr(key, axis) for axis in axes), [])

    @property
    def is_overridden(self) -> bool:
        """Whether values of params.yaml are overridden."""
        return bool(self.overrides or self.base)

    def home(self, stage: str, key: Key) -> Path:
        """The folder with the out, the record and the resume folder of a piece of work: usually the root."""
        return self.homes.get((stage, key.family, key.seed), self.root)

    def out(self, stage: str, key: Key) -> Path:
        """The path of the out of a piece of work, relative to the root."""
        base = self.home(stage, key).relative_to(self.root) / "data" / (self.stages[stage].folder or stage)
        if TASK not in self.stages[stage].axes:
            return base / str(key)
        # evaluation reads the folder of all benchmark targets: new ones are elsewhere, so that they do not change it
        return base / f"{Key(key.family, None, key.seed)}{NEW if self.is_new(key) else ''}" / str(key.task)

    def inputs(self, stage: str, key: Key) -> dict[str, Path]:
        """Upstream stage -> what a piece of work reads of it: its out, or the directory with several outs.

        A method that lacks trajectories of a new target is left out.
        """
        if not self.stages[stage].axes:
            return {need: Path("data") / need for need in self.stages[stage].needs}
        found: dict[str, Path] = {}
        for need, other in self.upstream(stage, key):
            fan_in = TASK in self.stages[need].axes and TASK not in self.stages[stage].axes
            found.setdefault(need, self.out(need, other).parent if fan_in else self.out(need, other))
        return found

    def input(self, stage: str, key: Key, need: str) -> Path:
        """What a piece of work reads of one upstream stage."""
        return self.inputs(stage, key)[need]

    def family(self, name: str) -> Family:
        """The task family with this name and its parameters."""
        return load_family(name, self.params.block(name, "environment"), self.root)

    def stage_params(self, stage: str, key: Key) -> Parameters:
        """The validated parameters of a piece of work."""
        if (preset := self.stages[stage].preset) is not None:
            return preset
        block = self.stages[stage].block or stage
        where = f"{PARAMS_FILE}: {block}" if key.family is None else f"{PARAMS_FILE}: families.{key.family}.{block}"
        if key.family is not None and stage.startswith(config.TUNED):
            self.family_target(key.family)  # where it is wrong, it says so of its own block
        return parse(self.stages[stage].params_class(), self.params.block(key.family, block), where)

    def family_target(self, family: str) -> Parameters:
        """The validated `target` block of a family: the target data of all methods that do not say otherwise."""
        target: type[Parameters] = importlib.import_module("pd_pipeline.tuning.protocol").TargetParams
        return parse(
            target, self.params.block(family, config.TARGET), f"{PARAMS_FILE}: families.{family}.{config.TARGET}"
        )


def load(root: Path, overrides: tuple[str, ...] = (), base: Mapping[str, Any] | None = None) -> Graph:
    """Load the graph of the project at `root`. Raises PipelineError if params.yaml or an override is wrong.

    `base` replaces values of the file, block by block, before the overrides are applied.
    """
    root = root.resolve()
    forget()  # files may have been edited since a long-lived process last read them
    text = config.read_text(root)
    values = effective_values(root, text, overrides, base or {})
    params = config.validated(values)
    for name in params.blocks:
        if name not in ACROSS:
            raise PipelineError(f"{PARAMS_FILE}: {name}: no such block: {suggestion(name, (*config.PARTS, *ACROSS))}")
    _refuse_unknown(params)
    tasks = {}
    for name in params.run.families:
        if name not in {*params.families, *BUILT_IN}:
            raise PipelineError(
                f"{PARAMS_FILE}: run.families: unknown family '{name}': "
                f"{suggestion(name, (*params.families, *BUILT_IN))} (or add a block `families.{name}` to define your "
                f"own; built in: {', '.join(BUILT_IN)})"
            )
        tasks[name] = load_family(name, params.block(name, "environment"), root).test_tasks
    methods = known(params.run, root)
    accepted = {name: store.targets(root, name) for name in params.run.families}
    found = stages(params.run, methods)
    graph = Graph(root, text, values, params, found, methods, tasks, accepted, overrides, base or {})
    graph = _with_target_evaluation(graph)
    return _with_studies(graph) if params.run.studies else graph


def _refuse_unknown(params: ParamsFile) -> None:
    """Raise PipelineError for a block of a family that there is not: its parameters would be ignored."""
    for name in params.families:
        own = params.block(name, "environment")
        if name not in {*params.run.families, *BUILT_IN} and not any(own.get(way) for way in ("entry_point", *BY_NAME)):
            known = suggestion(name, (*params.run.families, *BUILT_IN))
            raise PipelineError(
                f"{PARAMS_FILE}: families.{name}: neither built in nor described by an `environment` block: {known}"
            )


def _with_target_evaluation(graph: Graph) -> Graph:
    """Add the evaluation of targets with accepted data, which the report reads, if there are such targets."""
    if not any(graph.accepted.values()):
        return graph
    found = {**graph.stages, TARGET_EVALUATION: target_evaluation(graph.stages[EVALUATION])}
    report = found.pop(REPORT)  # it comes last
    found[REPORT] = replace(report, needs=(*report.needs, TARGET_EVALUATION))
    with_it = replace(graph, stages=found)
    return with_it if with_it.keys(TARGET_EVALUATION) else graph


def _with_studies(graph: Graph) -> Graph:
    """Add the stages of the studies, which the report reads."""
    from pd_pipeline.studies.points import study_stage  # a study's points are graphs themselves

    found = {stage.name: stage for stage in (study_stage(graph, name) for name in graph.params.run.studies)}
    report = graph.stages[REPORT]
    before = {name: stage for name, stage in graph.stages.items() if name != REPORT}
    return replace(graph, stages={**before, **found, REPORT: replace(report, needs=(*report.needs, *found))})


def effective_values(root: Path, text: str, overrides: tuple[str, ...], base: Mapping[str, Any]) -> Any:
    """The values in the text of params.yaml, with `base` and the overrides applied."""
    return config.overridden(merged(values_of(text, root / PARAMS_FILE), base), overrides, ACROSS)


def current(graph: Graph) -> Graph:
    """The graph for the current params.yaml: `graph` itself if the file has not changed."""
    return graph if config.read_text(graph.root) == graph.text else load(graph.root, graph.overrides, graph.base)
