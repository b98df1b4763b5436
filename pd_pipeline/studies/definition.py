"""The definition of a study: one YAML file in studies/, next to params.yaml.

studies/few_shot.yaml
    title: How many trajectories are enough?
    base:                          # replaces values of params.yaml; same structure
      run: {families: [point_robot], methods: [prompt_dt, prompt_diffuser]}
    grid:                          # every combination is a point; names as for --set
      target.few_shot: [1, 2, 5]
    seeds: [0, 1, 2]               # default: those of params.yaml
"""

import itertools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pd_pipeline.config import STAGE_NAME, Name, Parameters, Seed
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.parsing import parse
from pd_pipeline.yaml_text import read_file, values_of

FOLDER = Path("studies")
PREFIX = "study_"
"""Prefix of the name of a study's stage; the name of its file follows."""

MAX_POINTS = 1000
Value = bool | int | float | str | None | list[Any] | dict[str, Any]


class Study(Parameters):
    """The contents of a study file."""

    title: str = Field(min_length=1, max_length=200)
    note: str = Field(
        default="", max_length=5000, description="a remark for readers of the results, shown in the report"
    )
    base: dict[str, Any] = Field(default={}, description="replaces values of params.yaml; same structure")
    grid: dict[str, Annotated[list[Value], Field(min_length=1, max_length=MAX_POINTS)]] = Field(
        min_length=1, max_length=20, description="parameter, named as for --set -> its values"
    )
    seeds: tuple[Seed, ...] | None = Field(default=None, min_length=1, max_length=1000)

    @property
    def points(self) -> list[dict[str, Value]]:
        """Every combination of the grid's values, the last parameter changing fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def overrides(self, point: Mapping[str, Value]) -> tuple[str, ...]:
        """The overrides of params.yaml at a point, in the form of --set."""
        seeds = () if self.seeds is None else (f"run.seeds={list(self.seeds)}",)
        return ("run.studies=[]", *seeds, *(f"{name}={json.dumps(value)}" for name, value in point.items()))


def label(point: Mapping[str, Value]) -> str:
    """A short name for a point, such as `few_shot 1, weight 20`, with the last part of each parameter's name."""
    return ", ".join(f"{name.split('.')[-1]} {_short(value)}" for name, value in point.items())


def _short(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def path(root: Path, name: str) -> Path:
    """The path of a study file."""
    return root / FOLDER / f"{name}.yaml"


def names(root: Path) -> list[str]:
    """The names of the studies of a project."""
    return sorted(file.stem for file in (root / FOLDER).glob("*.yaml") if file.is_file())


def read(root: Path, name: Name) -> Study:
    """Read a study file. Raises PipelineError if it is missing or invalid."""
    file = path(root, name)
    if not re.fullmatch(STAGE_NAME, name):
        raise PipelineError(f"study '{name}': a name starts with a small letter and has only letters, digits and '_'")
    if not file.is_file():
        raise PipelineError(f"{file}: no such study: {suggestion(name, names(root))}")
    study = parse(Study, values_of(read_file(file), file), str(file.relative_to(root)))
    if (count := math.prod(map(len, study.grid.values()))) > MAX_POINTS:  # before they are made: they may be billions
        raise PipelineError(f"{file}: {count:,} points: at most {MAX_POINTS:,} are allowed")
    for parameter in study.grid:
        if parameter.startswith(("run.seeds", "run.families", "run.studies", "machine.")):
            raise PipelineError(
                f"{file}: grid.{parameter}: set it in `seeds` or `base`, where it applies to every point"
            )
    return study
