"""Small scores, what tuned outs record, and the stages' contexts, for tests."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from pd_pipeline import graph
from pd_pipeline.config import Parameters
from pd_pipeline.evaluation.results import Costs, Given, Tuned
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key, StageContext

FREE = Costs(tuned_parameters=0, plm_passes=0, environment_episodes=0)
SEED = 5
"""Of the stages in `stage_context`; what they read was made with another."""


def scores_of(methods: dict[str, list[list[float]]], seed: int = 0) -> pl.DataFrame:
    """Method -> returns by task; those above 5 are successes."""
    rows = [
        {"method": method, "task": task, "seed": seed, "prompt": prompt, "return": value, "success": value > 5}
        for method, tasks in methods.items()
        for task, values in enumerate(tasks)
        for prompt, value in enumerate(values)
    ]
    return pl.DataFrame(rows)


def tuned(method: str, costs: Costs = FREE, **given: Any) -> list[Tuned]:
    """What the outs of a method for two targets record."""
    described = Given(method, frozen=method != "full_finetune", quality="expert", few_shot=5, shown="own")
    return [Tuned(replace(described, **given), costs)] * 2


def stage_context(
    root: Path, out: Path, module: ModuleType, params: Parameters, methods: Sequence[str], shared: Sequence[str] = ()
) -> StageContext:
    """A stage under a seed of its own, with what another seed left as its inputs: PLM, diffuser and tuned methods.

    `shared`: further stages it reads, whose outs are the same for all seeds.
    """
    project = graph.load(root)
    out.mkdir(parents=True)
    data = root / "data"
    seeded = ("plm", "diffuser", *(f"tuned_{method}" for method in methods))
    inputs = {name: data / name / "point_robot-0" for name in seeded}
    return StageContext(
        root=root,
        stage=next(name for name, found in project.modules.items() if found == module.__name__),
        key=Key("point_robot", None, SEED),
        params=params,
        module=module.__name__,
        modules=project.modules,
        environment=project.params.block("point_robot", "environment"),
        inputs=inputs | {name: data / name / "point_robot" for name in shared},
        out=out,
        work=out.parent / "work",
        logs=out.parent / "logs",
        progress=silent,
        params_file=project.params,
    )
