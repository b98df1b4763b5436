"""Reads what a run left, for the families, targets, seeds and methods that params.yaml asks for, and no others."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pd_pipeline.config import ParamsFile
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation import offline_results, results
from pd_pipeline.evaluation.offline_metrics import offline_metrics
from pd_pipeline.evaluation.offline_results import OfflineMetrics, OfflineResult
from pd_pipeline.evaluation.results import Given, MethodResult, Metrics
from pd_pipeline.evaluation.scores import method_metrics, tuned_of
from pd_pipeline.families.base import load_family
from pd_pipeline.reporting.canvas import Styles, method_styles
from pd_pipeline.reporting.rollouts import Episode, read_episodes
from pd_pipeline.stages import TRAINED
from pd_pipeline.storage import read_json
from pd_pipeline.trajectories.reading import read_metadata
from pd_pipeline.tuning.summary import load

Table = dict[str, np.ndarray]
"""Columns of a CSV by name; NaN where a row has no value."""


@dataclass(frozen=True)
class FamilyResults:
    """All that the page shows of one family."""

    name: str
    targets: tuple[int, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    scores: pl.DataFrame
    metrics: Metrics
    """Method -> its result over all seeds, computed as `evaluation` does it for one; empty without a simulator."""
    offline: OfflineMetrics
    """The same for a family without a simulator; empty for one with."""
    precision: tuple[str, ...]
    """What evaluation computed in; more than one where its seeds differ."""
    training: dict[str, dict[int, Table]]
    """Stage that trains a model -> seed -> losses."""
    logs: dict[str, dict[tuple[int, int], Table]]
    """Method -> (target, seed) -> what it logged, for methods that log."""
    fit: dict[int, dict[str, Any]]
    """Seed -> fit.json; empty where no method generates prompts."""
    data: dict[str, dict[str, Any]]
    """Quality -> summary of its trajectories."""
    goals: dict[int, dict[str, Any]]
    episodes: list[Episode]

    @property
    def scored(self) -> Mapping[str, MethodResult | OfflineResult]:
        """Method -> its result, whichever way it was scored."""
        return self.offline or self.metrics

    @property
    def asked(self) -> dict[str, dict[str, float | None]]:
        """Target -> data that methods were given -> the return that the policy was asked for, the mean over seeds.

        Where methods with the same data asked for different returns, they are named.
        """
        columns: dict[tuple[str, tuple[float | None, ...]], list[str]] = {}
        for method, result in self.metrics.items():
            values = tuple(result.tasks[task].target_return for task in self.targets)
            columns.setdefault((data_name(result.given), values), []).append(method)
        often = Counter(name for name, _ in columns)
        found: dict[str, dict[str, float | None]] = {str(task): {} for task in self.targets}
        for (name, values), methods in columns.items():
            for of_target, value in zip(found.values(), values, strict=True):
                of_target[name if often[name] == 1 else f"{name} ({', '.join(methods)})"] = value
        return found

    @property
    def styles(self) -> Styles:
        """The colour and marker of every method, the same in all plots of the page."""
        return method_styles(self.methods)

    def data_return(self, quality: str) -> float:
        """Mean return of a quality's trajectories on the target tasks."""
        return float(np.mean([self.data[quality]["tasks"][str(task)]["return_mean"] for task in self.targets]))

    def goal_position(self, task: int) -> np.ndarray | None:
        """Where the goal of a task is (2 or 3,), in the frame of the first observation channels; None if unknown."""
        position = self.goals.get(task, {}).get("position")  # a user's goal may hold anything under this name
        if not isinstance(position, list | tuple) or len(position) not in (2, 3):
            return None
        if any(len(position) > each.observations.shape[1] for each in self.episodes if len(each.observations)):
            return None  # then observations do not begin with a place to compare it with
        return np.asarray(position, float) if all(isinstance(part, int | float) for part in position) else None


def data_name(given: Given) -> str:
    """`5 expert`: how many trajectories of which quality a method was given, which, and whether of another task."""
    if given.few_shot == 0:
        return "no trajectory of the target"
    known = [str(value) for value in (given.few_shot, given.quality) if value is not None]
    other = [] if given.own_task else ["of another task"]
    prompts = [] if given.prompt_quality is None else [f"(prompts: {given.prompt_quality})"]
    rule = [] if given.choose is None else [f"(the {given.choose})"]
    return " ".join(known + rule + other + prompts) or "data unknown"


def read_table(path: Path) -> Table:
    """Read a CSV of numbers. Raises PipelineError where it is missing or holds something else."""
    try:
        frame = pl.read_csv(path, infer_schema_length=None)
        return {name: frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in frame.columns}
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file: run the stage that makes it") from None
    except pl.exceptions.PolarsError as error:
        raise PipelineError(f"{path}: not a table of numbers ({error}): run its stage again") from None


def phase(log: Table, which: int) -> Table:
    """The rows of one phase of the log of prompt_diffuser: 1 is adaptation, 2 guidance."""
    return {name: column[log["phase"] == which] for name, column in log.items()}


def gather(inputs: Mapping[str, Path], params: ParamsFile, name: str, root: Path, draws: int) -> FamilyResults:
    """Read the outs of family `name` below the directories `inputs` (stage -> directory); `draws` make an interval."""
    seeds, methods = params.run.seeds, params.run.methods
    family = load_family(name, params.block(name, "environment"), root)
    targets, offline = family.test_tasks, family.is_recorded
    keys = {seed: f"{name}-{seed}" for seed in seeds}
    scores = pl.concat([pl.read_parquet(inputs["evaluation"] / keys[seed] / "scores.parquet") for seed in seeds])
    scores = scores.filter(pl.col("method").is_in(methods), pl.col("task").is_in(targets))
    outs = {
        method: {(task, seed): inputs[f"tuned_{method}"] / keys[seed] / str(task) for seed in seeds for task in targets}
        for method in methods
    }
    tuned = {
        method: [tuned_of(load(directory), task) for (task, _), directory in each.items()]
        for method, each in outs.items()
    }
    logs = {
        method: {key: read_table(d / "log.csv") for key, d in each.items() if (d / "log.csv").exists()}
        for method, each in outs.items()
    }
    load_evaluation = offline_results.load_offline if offline else results.load
    evaluations = [load_evaluation(inputs["evaluation"] / key / "metrics.json") for key in keys.values()]
    trajectories = inputs["trajectories"] / name
    data = read_json(trajectories / "summary.json")
    return FamilyResults(
        name=name,
        targets=targets,
        seeds=seeds,
        methods=methods,
        scores=scores,
        metrics={} if offline else method_metrics(scores, tuned, seeds[0], draws),
        offline=offline_metrics(scores, tuned, seeds[0], draws) if offline else {},
        precision=tuple(sorted({each.precision for each in evaluations if each.precision})),
        training={
            stage: {seed: read_table(inputs[stage] / keys[seed] / "losses.csv") for seed in seeds}
            for stage in TRAINED
            if stage in inputs
        },
        logs={method: tables for method, tables in logs.items() if tables},
        fit={seed: read_json(inputs["prompt_fit"] / keys[seed] / "fit.json") for seed in seeds}
        if "prompt_fit" in inputs
        else {},
        data=data,
        goals=read_metadata(trajectories / f"{next(iter(data))}.parquet").goals,
        episodes=[
            episode
            for seed in (() if offline else seeds)
            for episode in read_episodes(inputs["evaluation"] / keys[seed])
            if episode.method in methods and episode.task in targets
        ],
    )
