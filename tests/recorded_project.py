"""A family without a simulator: trajectories that point_robot collected, as files of a user."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pd_pipeline.trajectories.reading import Trajectories, read, read_metadata, write
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns

FAMILY = "my_robot"
FOLDER = f"data/imported/{FAMILY}"
RECORDED_PARAMS = f"""\
run:
  families: [{FAMILY}]
  methods: [prompt_dt, full_finetune, noise_prompt]
machine: {{device: cpu}}
families:
  {FAMILY}:
    environment: {{data: {FOLDER}, targets: [1, 4]}}
    target: {{few_shot: 3}}
    prompts: {{length: 3, stride: 1}}
    plm: {{steps: 20, batch_per_task: 4, width: 16, layers: 2, context: 6, log_every: 10}}
    diffuser: {{steps: 10, batch: 16, diffusion: {{steps: 8}}, denoiser: {{width: 16, blocks: 1}}}}
    tuned_prompt_diffuser: {{adapt: {{steps: 4}}, steps: 4, batch: 4, candidates: 6, chain: 3, prompts: 4}}
    tuned_full_finetune: {{steps: 8, batch: 8}}
    tuned_noise_prompt: {{prompts: 4}}
    evaluation: {{bootstrap: 200}}
"""


def metadata_of(source: Path, tasks: Sequence[int] | None = None, **changes: object) -> TrajectoryMetadata:
    """Metadata of a collected file for the recorded family, of some of its tasks."""
    found = read_metadata(source)
    goals = {task: goal for task, goal in found.goals.items() if tasks is None or task in tasks}
    return found.model_copy(update={"family": FAMILY, "goals": goals} | changes)


def columns_of(data: Trajectories, shift: int = 0) -> Columns:
    """Trajectories as steps, in the order of the file; `shift` is added to the numbers of episodes."""
    step = np.concatenate([np.arange(length) for length in data.lengths]).astype(np.int32)
    last = np.append(data.starts[1:] - 1, [])[: len(data.lengths)].astype(int)
    truncated = np.zeros(len(step), bool)
    truncated[last] = True
    return Columns(
        task_id=np.repeat(data.task_id, data.lengths),
        episode_id=np.repeat(data.episode_id + shift, data.lengths),
        step=step,
        observation=data.observations,
        action=data.actions,
        reward=data.rewards,
        return_to_go=data.returns_to_go,
        terminated=np.zeros(len(step), bool),
        truncated=truncated,
        success=data.success,
    )


def record(source: Path, path: Path, tasks: Sequence[int] | None = None, shift: int = 0, **changes: object) -> Path:
    """Write the episodes of some tasks of a collected file as a user's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, metadata_of(source, tasks, **changes), [columns_of(read(source, tasks), shift)])
    return path


def record_project(trained: Path, root: Path, params: str = RECORDED_PARAMS) -> Path:
    """A project with the recorded family: its data are what `trained` collected of point_robot."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(params)
    for quality in ("expert", "random"):
        source = trained / f"data/trajectories/point_robot/{quality}.parquet"
        record(source, root / FOLDER / f"{quality}.parquet")
    return root


def short_episodes(made: Columns, length: int) -> Columns:
    """The first steps of every episode, ended there."""
    kept = made.select(made.step < length)
    rest = kept.return_to_go.copy()
    for end in np.flatnonzero(kept.step == length - 1):
        first = end - length + 1
        rest[first : end + 1] = np.cumsum(kept.reward[first : end + 1][::-1].astype(np.float64))[::-1]
    return replace(kept, return_to_go=rest, truncated=kept.step == length - 1)
