"""The Parquet format of trajectories: one row a step, sorted by task, episode and step.

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

The file's metadata (key `pd_pipeline`, JSON) holds `TrajectoryMetadata`.
"""

from typing import Any

import pyarrow as pa

from pd_pipeline.config import Parameters

SCHEMA_VERSION = 1
METADATA_KEY = b"pd_pipeline"


class TrajectoryMetadata(Parameters):
    """What a file must say of itself to be read without the program that wrote it."""

    schema_version: int = SCHEMA_VERSION
    family: str
    quality: str
    observation_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    horizon: int
    seed: int
    goals: dict[int, dict[str, Any]]
    """Task id -> its hidden goal, for every task that the file holds."""
    environment: dict[str, Any]
    versions: dict[str, str]

    @property
    def action_size(self) -> int:
        """Width d_a of an action."""
        return len(self.action_low)


def arrow_schema(metadata: TrajectoryMetadata) -> pa.Schema:
    """The schema of a file with this metadata, metadata included."""
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
        metadata={METADATA_KEY: metadata.model_dump_json().encode()},
    )
