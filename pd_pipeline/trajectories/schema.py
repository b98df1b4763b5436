"""The Parquet format of trajectories: one row per step, sorted by task, episode and step.

| column | type | meaning |
|---|---|---|
| task_id | int32 | task of the family |
| episode_id | int64 | unique within its task and file |
| step | int32 | 0, 1, ... without a gap |
| observation | fixed list of float32 [d_s] | before the action, the goal hidden |
| action | fixed list of float32 [d_a] | as executed, within the bounds |
| reward | float32 | for this step |
| return_to_go | float32 | sum of this and all later rewards of the episode |
| terminated, truncated, success | bool | after the action |
| quality | dictionary of string | expert, medium, random, ... |

The file's metadata (key `pd_pipeline`, JSON) holds `TrajectoryMetadata`. Pages have checksums, and a seal (`seal.py`)
covers the rest; files written by other programs need neither.
"""

import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from pd_pipeline.config import MAX_HORIZON, MAX_TASKS, Name, Parameters, Seed
from pd_pipeline.errors import PipelineError
from pd_pipeline.families import border
from pd_pipeline.families.base import Family
from pd_pipeline.parsing import parse

SCHEMA_VERSION = 1
METADATA_KEY = b"pd_pipeline"
MAX_METADATA_BYTES = 4_000_000
MAX_SIZE = 100_000  # numbers per observation or action
MAX_ORIGINS = 10_000

Bound = Annotated[float, Field(ge=float(np.finfo(np.float32).min), le=float(np.finfo(np.float32).max))]
Task = Annotated[int, Field(ge=0, lt=2**31)]


class Origin(Parameters):
    """Where recorded trajectories come from."""

    source: str = Field(max_length=4096, description="path or name, as it was given")
    format: str = Field(max_length=100)
    dataset: str | None = Field(default=None, max_length=1000, description="id of the data set, if it has one")
    digest: str = Field(max_length=100, description="SHA-256 of the contents of the source")
    options: dict[str, Any] = Field(default={}, description="what was asked of the import")
    versions: dict[str, str] = Field(default={}, description="of the packages that read it")


class TrajectoryMetadata(Parameters):
    """What a file must state to be readable without the program that wrote it."""

    schema_version: int = SCHEMA_VERSION
    family: Name
    quality: Name
    observation_size: int = Field(ge=1, le=MAX_SIZE)
    action_low: tuple[Bound, ...] = Field(min_length=1, max_length=MAX_SIZE)
    action_high: tuple[Bound, ...] = Field(min_length=1, max_length=MAX_SIZE)
    horizon: int = Field(ge=1, le=MAX_HORIZON)
    seed: Seed
    goals: dict[Task, dict[str, Any]] = Field(min_length=1, max_length=MAX_TASKS)
    """Task id -> its hidden goal, for every task in the file."""
    environment: dict[str, Any]
    versions: dict[str, str]
    origin: tuple[Origin, ...] = Field(default=(), max_length=MAX_ORIGINS)
    """Of recorded trajectories; those that were collected by this pipeline have none."""

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if len(self.action_low) != len(self.action_high):
            raise ValueError(f"action_low has {len(self.action_low)} numbers, action_high has {len(self.action_high)}")
        for i, (low, high) in enumerate(zip(self.action_low, self.action_high, strict=True)):
            if low >= high:
                raise ValueError(f"action_low {low} is not below action_high {high} for number {i} of an action")
        return self

    @property
    def action_size(self) -> int:
        """Width d_a of an action."""
        return len(self.action_low)


def limits_of(family: Family) -> dict[str, Any]:
    """What the metadata of a file states of its family: the sizes and bounds of a step, and the horizon."""
    return {
        "observation_size": family.observation_size,
        "action_low": tuple(family.action_low.tolist()),
        "action_high": tuple(family.action_high.tolist()),
        "horizon": family.horizon,
    }


def metadata_of(
    family: Family, quality: str, tasks: Iterable[int], seed: int, origin: tuple[Origin, ...] = ()
) -> TrajectoryMetadata:
    """The metadata of a file with trajectories of some tasks of a family."""
    return TrajectoryMetadata(
        family=family.name,
        quality=quality,
        **limits_of(family),
        seed=seed,
        goals={task: border.goal(family, task) for task in sorted(tasks)},
        environment=family.params.model_dump(mode="json"),
        versions=family.versions(),
        origin=origin,
    )


def parse_metadata(source: str, text: bytes) -> TrajectoryMetadata:
    """The metadata written as `text` in the file `source`. Raises PipelineError."""
    where = f"{source}: metadata '{METADATA_KEY.decode()}'"
    if len(text) > MAX_METADATA_BYTES:
        raise PipelineError(f"{where} has {len(text):,} bytes, more than {MAX_METADATA_BYTES:,}")
    try:
        values = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise PipelineError(f"{where} is nested too deeply") from None
    except ValueError as error:  # not JSON, or not text
        raise PipelineError(f"{where} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise PipelineError(f"{where} is not a JSON object but {type(values).__name__}")
    if (version := values.get("schema_version", SCHEMA_VERSION)) != SCHEMA_VERSION:
        raise PipelineError(f"{source}: schema version {version}, but this program reads {SCHEMA_VERSION}")
    return parse(TrajectoryMetadata, values, f"{source}: metadata")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def arrow_schema(metadata: TrajectoryMetadata) -> pa.Schema:
    """The schema of a file with this metadata, which it includes."""
    return pa.schema(
        [
            pa.field("task_id", pa.int32(), nullable=False),
            pa.field("episode_id", pa.int64(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
            pa.field("observation", pa.list_(pa.float32(), metadata.observation_size), nullable=False),
            pa.field("action", pa.list_(pa.float32(), metadata.action_size), nullable=False),
            pa.field("reward", pa.float32(), nullable=False),
            pa.field("return_to_go", pa.float32(), nullable=False),
            pa.field("terminated", pa.bool_(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("success", pa.bool_(), nullable=False),
            pa.field("quality", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        ],
        metadata={METADATA_KEY: metadata.model_dump_json(exclude=None if metadata.origin else {"origin"}).encode()},
    )
