"""What a study is: a file of its own beside params.yaml.

studies/few_shot.yaml
    title: How many trajectories are enough?
    base:                          # takes the place of params.yaml's values; of the same shape
      run: {families: [point_robot], methods: [prompt_dt, prompt_diffuser]}
    grid:                          # every combination is a point; names as in --set
      target.few_shot: [1, 2, 5]
    seeds: [0, 1, 2]               # those of params.yaml where left out
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pd_pipeline import config
from pd_pipeline.config import Name, Parameters, Seed
from pd_pipeline.errors import PipelineError

FOLDER = Path("studies")
PREFIX = "study_"
"""What the name of a study's stage begins with: the name of its file follows."""

MOST_POINTS = 1000
Value = bool | int | float | str | None | list[Any] | dict[str, Any]


class Study(Parameters):
    """One study's file."""

    title: str = Field(min_length=1, max_length=200)
    note: str = Field(default="", max_length=5000, description="what to keep in mind when reading it; on the report")
    base: dict[str, Any] = Field(default={}, description="takes the place of values of params.yaml, of the same shape")
    grid: dict[str, Annotated[list[Value], Field(min_length=1, max_length=MOST_POINTS)]] = Field(
        min_length=1, max_length=20, description="parameter, named as in --set -> its values"
    )
    seeds: tuple[Seed, ...] | None = Field(default=None, min_length=1, max_length=1000)

    @property
    def points(self) -> list[dict[str, Value]]:
        """Every combination of the grid's values, the last parameter changing fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def overrides(self, point: Mapping[str, Value]) -> tuple[str, ...]:
        """What stands in place of values of the file at a point, as --set takes it."""
        seeds = () if self.seeds is None else (f"run.seeds={list(self.seeds)}",)
        return ("run.studies=[]", *seeds, *(f"{name}={json.dumps(value)}" for name, value in point.items()))


def label(point: Mapping[str, Value]) -> str:
    """`few_shot 1, weight 20`: a point in few words, each parameter by the last part of its name."""
    return ", ".join(f"{name.split('.')[-1]} {_short(value)}" for name, value in point.items())


def _short(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def path(root: Path, name: str) -> Path:
    """The file of a study."""
    return root / FOLDER / f"{name}.yaml"


def names(root: Path) -> list[str]:
    """The studies that a project has files of."""
    return sorted(file.stem for file in (root / FOLDER).glob("*.yaml"))


def read(root: Path, name: Name) -> Study:
    """Read a study's file. Raises PipelineError where there is none, or it is not a study's."""
    file = path(root, name)
    if not file.is_file():
        known = ", ".join(names(root)) or "none"
        raise PipelineError(f"{file}: no such study: known are {known}")
    study = config.parse(Study, config.values_of(config.read_file(file), file), str(file.relative_to(root)))
    if (count := len(study.points)) > MOST_POINTS:
        raise PipelineError(f"{file}: {count:,} points: more than {MOST_POINTS:,} are not meant")
    for parameter in study.grid:
        if parameter.startswith(("run.seeds", "run.families", "run.studies", "machine.")):
            raise PipelineError(f"{file}: grid.{parameter}: set it in `seeds` or `base.run`, the same for every point")
    return study
