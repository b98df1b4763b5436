"""Early stopping: the weights of the step with the lowest loss on other data, whatever happens in between."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pd_pipeline.models.weights import weights
from pd_pipeline.progress import silent
from pd_pipeline.storage import load_arrays, save_arrays
from pd_pipeline.training.loop import Trainer
from pd_pipeline.training.stopping import Best, Watch, passes_of
from tests.training.test_loop import STEPS, loss_of, model, params


class Killed(Exception):
    """The process is gone."""


def trained(
    work: Path, losses: list[float] | None, every: int = 1, kill_at: int | None = None
) -> tuple[Trainer, list[dict[str, np.ndarray]]]:
    """A trainer, and its weights after 0, 1, 2, ... steps; the watched loss after each is given."""
    net = model()
    loss, seen = loss_of(net), list[dict[str, np.ndarray]]()
    trainer = Trainer(net, params(log_every=2, schedule="constant", checkpoint_seconds=0), work, "test")

    def loss_of_step(step: int) -> torch.Tensor:
        if step == kill_at:
            raise Killed
        seen.append(weights(net))
        return loss(step)

    watch = None if losses is None else Watch(lambda: losses[trainer.step], every)
    trainer.fit(trainer.backward(loss_of_step), silent, watch=watch)
    return trainer, seen


def same(net: nn.Module, expected: dict[str, np.ndarray]) -> None:
    for name, array in weights(net).items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("best", [0, 1, 5, 11])
def test_the_weights_of_the_lowest_loss_are_kept(best: int, tmp_path: Path) -> None:
    losses = [1.0 + (step != best) * (1 + 0.01 * step) for step in range(STEPS + 1)]
    found, seen = trained(tmp_path, losses)
    same(found.model, seen[best])
    assert (found.best.step, found.best.loss) == (best, losses[best])
    assert [row["held_out"] for row in found.history.rows] == losses[2::2]


def test_the_last_step_may_be_the_best(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path / "plain", None)
    found, _ = trained(tmp_path / "watched", [float(STEPS - step) for step in range(STEPS + 1)])
    same(found.model, weights(plain.model))
    assert "held_out" not in plain.history.rows[0]
    for row, other in zip(found.history.rows, plain.history.rows, strict=True):
        assert {name: value for name, value in row.items() if name != "held_out"} == other, "watching changes nothing"


def test_it_looks_before_the_first_step_then_now_and_then_and_after_the_last(tmp_path: Path) -> None:
    at: list[int] = []
    net = model()
    trainer = Trainer(net, params(), tmp_path, "test")
    watch = Watch(lambda: at.append(trainer.step) or 1.0, every=5, passes=3)
    trainer.fit(trainer.backward(loss_of(net)), silent, watch=watch)
    assert at == [0, 5, 10, 12]
    assert passes_of(watch, 12) == 3 * len(at)
    assert passes_of(watch, 10) == 3 * 3
    assert passes_of(None, 12) == 0
    same(net, weights(model()))  # of equal losses the first


@pytest.mark.parametrize(("kill_at", "best"), itertools.product([1, 6, 11], [0, 3, 9]))
def test_a_killed_training_keeps_the_same_step(kill_at: int, best: int, tmp_path: Path) -> None:
    losses = [2.0 - (step == best) for step in range(STEPS + 1)]
    whole, _ = trained(tmp_path / "whole", losses)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", losses, kill_at=kill_at)
    again, _ = trained(tmp_path / "killed", losses)
    assert again.resumed_at == kill_at
    assert (again.best.step, again.best.loss) == (best, 1.0)
    same(again.model, weights(whole.model))
    assert again.history.rows == whole.history.rows


UNREADABLE = (
    "[",
    "[1, 2]",
    '{"loss": 1.0}',
    '{"loss": [], "step": 1}',
    '{"loss": "low", "step": 3}',
    '{"loss": 1.0, "step": Infinity}',
    None,
)


@pytest.mark.parametrize("best", UNREADABLE)
def test_a_checkpoint_whose_best_cannot_be_read_is_not_used(best: str | None, tmp_path: Path) -> None:
    losses = [2.0 - (step == 3) for step in range(STEPS + 1)]
    with pytest.raises(Killed):
        trained(tmp_path, losses, kill_at=8)
    path = tmp_path / "step-00000008.safetensors"
    arrays, metadata = load_arrays(path)
    metadata.pop("best")
    save_arrays(path, arrays, metadata | ({} if best is None else {"best": best}))
    again, seen = trained(tmp_path, losses)
    assert again.resumed_at == 7
    assert again.best.step == 3
    assert len(seen) == STEPS - 7


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    best, x = Best(), torch.zeros(2)
    best.offer(float("nan"), 0, {"x": x})
    x += 1
    best.offer(3.0, 1, {"x": x})
    x += 1
    best.offer(float("nan"), 2, {"x": x})
    assert (best.step, best.loss) == (1, 3.0)
    assert best.tensors["x"].tolist() == [1, 1], "a copy"
