"""Data-parallel training: two processes take the steps of one."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import load_arrays
from pd_pipeline.training import plm
from pd_pipeline.training.policy_data import Batch, Steps
from pd_pipeline.training.ranks import ALONE, Ranks, in_processes
from tests.training.test_pretraining import context

pytestmark = pytest.mark.xdist_group("ranks")  # what two processes train is trained once
SHAPE = {"context": 6, "width": 16, "layers": 2, "steps": 12, "batch_per_task": 3, "dropout": 0.0, "clip": 0.05}


def trained(given: StageContext) -> dict[str, np.ndarray]:
    plm.run(given)
    return load_arrays(given.out / "policy.safetensors")[0]


@pytest.fixture(scope="module")
def two(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StageContext, dict[str, np.ndarray]]:
    """What two processes train, without a break."""
    given = context(trained_project, tmp_path_factory.mktemp("ranks") / "two", plm, processes=2, **SHAPE)
    return given, trained(given)


def test_two_processes_take_the_steps_of_one(
    trained_project: Path, tmp_path: Path, two: tuple[StageContext, dict[str, np.ndarray]]
) -> None:
    """Windows are of different lengths, so that the shares of a batch weigh differently."""
    one = context(trained_project, tmp_path / "one", plm, **SHAPE)
    alone, (both, together) = trained(one), two
    for name, weight in alone.items():
        np.testing.assert_allclose(together[name], weight, rtol=1e-3, atol=2e-5, err_msg=name)
    for column in ("loss", "validation_loss"):
        losses = [pl.read_csv(given.out / "losses.csv")[column] for given in (one, both)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
    assert sorted(path.name for path in both.out.iterdir()) == sorted(path.name for path in one.out.iterdir())
    assert not [path for path in both.work.iterdir() if path.name.startswith("ranks")]


def test_they_go_on_from_a_checkpoint(
    trained_project: Path, tmp_path: Path, two: tuple[StageContext, dict[str, np.ndarray]]
) -> None:
    some = context(trained_project, tmp_path / "some", plm, processes=2, checkpoint_seconds=0, **SHAPE)
    seen: list[int] = []

    def stopped(title: str, done: int, total: int, figures: str = "") -> None:
        seen.append(done)
        if done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        plm.run(replace(some, progress=stopped))
    assert seen[-1] == 7, "both stopped after the same step"
    again = trained(some)
    for name, weight in two[1].items():
        np.testing.assert_array_equal(again[name], weight, err_msg=name)


def failing(given: StageContext, ranks: Ranks) -> int:
    """Trains nothing: the last rank fails, while the first waits for it."""
    if ranks.rank == ranks.size - 1:
        raise PipelineError(f"rank {ranks.rank} has no data")
    return int(ranks.any(True, torch.device("cpu")))


def dying(given: StageContext, ranks: Ranks) -> int:
    """The last rank is killed."""
    if ranks.rank == ranks.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(ranks.any(True, torch.device("cpu")))


def exhausted(given: StageContext, ranks: Ranks) -> int:
    """The first rank fails by itself, while the others wait for it."""
    if ranks.rank == 0:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    return int(ranks.any(True, torch.device("cpu")))


def test_the_error_of_another_process_is_the_error(trained_project: Path, tmp_path: Path) -> None:
    given = context(trained_project, tmp_path / "out", plm, **SHAPE)
    with pytest.raises(PipelineError, match=r"^training point_robot-5: rank 1 has no data$"):
        in_processes(failing, given, 2)
    with pytest.raises(PipelineError, match=r"training point_robot-5: .* died.*lower training\.processes"):
        in_processes(dying, given, 2)
    with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator: can't allocate memory$"):
        in_processes(exhausted, given, 2)
    assert not torch.distributed.is_initialized()


def test_gpus_are_taken_in_turn_from_the_one_that_is_named_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    named, whole = torch.device("cuda:2"), torch.device("cuda")
    assert [Ranks(rank, 3).device(named).index for rank in range(3)] == [2, 3, 0]
    assert [Ranks(rank, 2).device(whole).index for rank in range(2)] == [0, 1]
    assert Ranks(0, 1).device(named) is named


def test_the_shares_of_a_batch_are_all_of_it() -> None:
    steps = Steps(*(torch.arange(7 * k).view(7, k) for k in (1, 2, 3)), torch.arange(7))
    batch = Batch(steps, steps, torch.ones(7, 2, dtype=torch.bool))
    parts = [Ranks(rank, 3).share(batch) for rank in range(3)]
    assert [len(part.valid) for part in parts] == [3, 2, 2]
    assert torch.cat([part.window.timesteps for part in parts]).sort().values.tolist() == list(range(7))
    assert parts[1].prompt.observations.tolist() == [[2, 3], [8, 9]]
    assert ALONE.share(batch) is batch
    assert len({Ranks(rank, 3).seed_step(step) for rank in range(3) for step in range(5)}) == 15
    assert [ALONE.seed_step(step) for step in range(3)] == [0, 1, 2]
