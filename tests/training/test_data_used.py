"""What pre-training uses: training tasks, the configured quality, every prompt with its own condition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.families.point_robot import PointRobot
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.prompts.segments import Normalization, Prompts
from pd_pipeline.storage import digest
from pd_pipeline.training import diffuser, plm
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories, read
from tests.conftest import run_stages


def set_params(root: Path, *changes: tuple[str, str]) -> None:
    path = root / "params.yaml"
    for old, new in changes:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


def test_the_data_of_target_tasks_changes_nothing_that_is_pretrained(project: Path) -> None:
    outs = [project / f"data/{stage}/point_robot-0" for stage in ("plm", "diffuser")]
    before = [digest(out) for out in outs]
    set_params(project, ("test: 7", "test: 3"), ("test: 2", "test: 1"))
    run_stages(project, "trajectories", "prompts", "plm", "diffuser")
    assert [digest(out) for out in outs] == before


def test_the_data_of_training_tasks_changes_what_is_pretrained(project: Path) -> None:
    outs = [project / f"data/{stage}/point_robot-0" for stage in ("plm", "diffuser")]
    before = [digest(out) for out in outs]
    set_params(project, ("train: 6", "train: 5"))
    run_stages(project, "trajectories", "prompts", "plm", "diffuser")
    assert all(digest(out) != one for out, one in zip(outs, before, strict=True))


@pytest.mark.parametrize("qualities", [("expert",), ("random",), ("random", "expert")])
def test_the_plm_learns_from_the_qualities_asked_for(
    project: Path, point_robot: PointRobot, qualities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Trajectories] = []

    class Watched(PolicyData):
        def __init__(self, data: Trajectories, *others: Any):
            seen.append(data)
            super().__init__(data, *others)

    monkeypatch.setattr(plm, "PolicyData", Watched)
    set_params(project, ("plm: {steps: 60,", f"plm: {{qualities: [{', '.join(qualities)}], steps: 5,"))
    run_stages(project, "plm")
    trained, held_out = seen
    files = [project / f"data/trajectories/point_robot/{quality}.parquet" for quality in qualities]
    data = [read(file, point_robot.train_tasks) for file in files]
    assert sum(len(part.task_id) for part in seen) == sum(len(part.task_id) for part in data)
    for of_quality in data:
        first = {of_quality.observations[start].tobytes() for start in of_quality.starts[:-1]}
        tasks = [
            {int(task) for task, start in zip(part.task_id, part.starts[:-1], strict=True) if at(part, start) in first}
            for part in seen
        ]
        assert tasks == [set(point_robot.train_tasks)] * 2, "episodes of every quality are held out of every task"
    episodes = [[at(part, start) for start in part.starts[:-1]] for part in (trained, held_out)]
    assert not {*episodes[0]} & {*episodes[1]}, "the validation loss uses episodes not trained on"


def at(data: Trajectories, row: int) -> bytes:
    """What tells an episode apart: its first observation, action and reward are drawn."""
    return data.observations[row].tobytes()


@pytest.mark.parametrize("qualities", [("expert",), ("random",), ("random", "expert")])
def test_the_diffuser_learns_each_prompt_of_its_qualities_under_its_own_condition(
    project: Path, qualities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Return-to-go and timesteps of another prompt would be a meaningless condition."""
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss = diffuser.diffusion_loss

    def watched(denoiser: Any, diffusion: Any, x0: torch.Tensor, y: torch.Tensor, generator: Any) -> torch.Tensor:
        given.append((x0, y))
        return loss(denoiser, diffusion, x0, y, generator)

    monkeypatch.setattr(diffuser, "diffusion_loss", watched)
    set_params(
        project,
        ("prompts: {length: 3,", "prompts: {qualities: [expert, random], length: 3,"),
        ("{steps: 80, batch: 32,", f"{{qualities: [{', '.join(qualities)}], steps: 20, batch: 32,"),
    )
    run_stages(project, "prompts", "diffuser")
    folder = project / "data/prompts/point_robot"
    normalization = Normalization.load(folder / "normalization.safetensors")
    pairs = {}
    for name in ("", "-held_out"):
        pairs[name] = set()
        for quality in qualities:
            tensors = prompt_tensors(Prompts.load(folder / f"{quality}{name}.safetensors"), normalization)
            pairs[name] |= {(x0.numpy().tobytes(), y.numpy().tobytes()) for x0, y in zip(*tensors, strict=True)}
    for x0, y in given:
        used = {(one.numpy().tobytes(), its.numpy().tobytes()) for one, its in zip(x0, y, strict=True)}
        assert used <= (pairs[""] if len(x0) == 32 else pairs["-held_out"])
    assert sum(len(x0) == 32 for x0, _ in given) == 20
    drawn = np.concatenate([x0.numpy().reshape(len(x0), -1) for x0, _ in given if len(x0) == 32])
    assert len(np.unique(drawn, axis=0)) > len(pairs[""]) / 2, "all of them are drawn"
