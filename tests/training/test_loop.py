"""The training loop: compared with an explicit loop, resumed at any step, stopped by a signal."""

import csv
import itertools
import math
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from pd_pipeline.compute import generator_of, pick_device, use_bf16
from pd_pipeline.errors import PipelineError
from pd_pipeline.interruption import Interrupted
from pd_pipeline.models.weights import load_weights, weights
from pd_pipeline.progress import silent
from pd_pipeline.storage import load_arrays, save_arrays
from pd_pipeline.training import loop
from pd_pipeline.training.loop import Diverged, History, OptimizationParams, Trainer, learning_rate
from pd_pipeline.training.stopping import Watch

STEPS = 12


def params(**changes: Any) -> OptimizationParams:
    values = {"steps": STEPS, "learning_rate": 0.05, "warmup": 3, "log_every": 4, "precision": "float32"}
    return OptimizationParams(**(values | changes))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def loss_of(net: nn.Module) -> Callable[[int], Tensor]:
    def loss(step: int) -> Tensor:
        x = torch.randn(8, 3, generator=generator_of(7, step))
        return (net(x) - x.sum(1, keepdim=True)).square().mean()

    return loss


def trained(
    work: Path, *, at: Callable[[int], None] = lambda step: None, logs: Path | None = None, **changes: Any
) -> Trainer:
    """Train; `at` is called before every step."""
    net = model()
    loss = loss_of(net)

    def watched(step: int) -> Tensor:
        at(step)
        return loss(step)

    trainer = Trainer(net, params(**changes), work, "test")
    trainer.fit(trainer.backward(watched), silent, logs, lambda: {"extra": float(trainer.step)})
    return trainer


def same(one: Trainer, other: Trainer) -> None:
    for name, array in weights(one.model).items():
        np.testing.assert_array_equal(array, weights(other.model)[name])
    for name, average in one.ema.items():
        assert torch.equal(average, other.ema[name])
    assert one.history.rows == other.history.rows


def test_equals_an_explicit_training_loop(tmp_path: Path) -> None:
    """Clipping, warm-up, cosine, AdamW and the moving average, each from its definition."""
    found = trained(tmp_path, clip=0.1, ema=0.9, weight_decay=0.01)
    net = model()
    loss = loss_of(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1, weight_decay=0.01, foreach=False, fused=False)
    average = {n: p.detach().clone() for n, p in net.named_parameters()}
    losses = []
    for step in range(STEPS):
        rate = (
            0.05 * (step + 1) / 3 if step < 3 else 0.05 * (0.01 + 0.99 * (1 + math.cos(math.pi * (step - 3) / 9)) / 2)
        )
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        total = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
        for parameter in net.parameters():
            parameter.grad *= min(1.0, 0.1 / (total + 1e-6))
        optimizer.step()
        losses.append(float(value.detach()))
        decay = min(0.9, (1 + step) / (10 + step))
        for name, parameter in net.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()
    for name, value in found.model.named_parameters():
        torch.testing.assert_close(value, average[name], atol=1e-6, rtol=1e-5, msg="it ends with the average")
    rows = found.history.rows
    assert [row["step"] for row in rows] == [4, 8, 12]
    np.testing.assert_allclose([row["loss"] for row in rows], np.reshape(losses, (3, 4)).mean(1), rtol=1e-5)
    assert [row["extra"] for row in rows] == [4, 8, 12]


def test_without_an_average_it_ends_with_the_last_weights(tmp_path: Path) -> None:
    """Which the average is made from: nothing of it reaches the next step."""
    seen: dict[str, list[Tensor]] = {"plain": [], "averaged": []}
    ends: dict[str, Tensor] = {}
    for name, ema in (("plain", None), ("averaged", 0.9)):
        net = model()
        trainer, loss = Trainer(net, params(ema=ema, log_every=1), tmp_path / name, "test"), loss_of(net)

        def at_each(step: int, net: nn.Module = net, name: str = name, loss: Any = loss) -> Tensor:
            seen[name].append(next(net.parameters()).detach().clone())
            return loss(step)

        trainer.fit(trainer.backward(at_each), silent, evaluate=dict)
        ends[name] = next(net.parameters()).detach()
    assert not torch.equal(ends["plain"], ends["averaged"])
    assert not torch.equal(ends["plain"], seen["plain"][-1]), "after the last step, which comes after the last loss"
    for plain, averaged in zip(seen["plain"], seen["averaged"], strict=True):
        assert torch.equal(plain, averaged)


def test_what_is_measured_on_the_way_is_of_the_average(tmp_path: Path) -> None:
    """By `evaluate` and by a watch, which keeps the average of its lowest loss."""
    net, found = model(), dict[str, list[Tensor]](evaluated=[], watched=[])
    trainer = Trainer(net, params(ema=0.9, log_every=1), tmp_path, "test")

    def kept(name: str, value: float) -> float:
        assert all(torch.equal(weight, trainer.ema[of]) for of, weight in net.named_parameters())
        found[name].append(next(net.parameters()).detach().clone())
        return value

    watch = Watch(lambda: kept("watched", abs(trainer.step - 5.0)), every=1)
    evaluate = lambda: {"extra": kept("evaluated", 1.0)}  # noqa: E731
    trainer.fit(trainer.backward(loss_of(net)), silent, evaluate=evaluate, watch=watch)
    assert len(found["evaluated"]) == STEPS == len(found["watched"]) - 1, "a look before the first step, too"
    assert torch.equal(next(net.parameters()), found["watched"][5])


def interrupted(work: Path, step: int, **changes: Any) -> None:
    """Train up to a step with a checkpoint after each step, then stop."""

    def kill(now: int) -> None:
        if now == step:
            raise Killed

    with pytest.raises(Killed):
        trained(work, at=kill, checkpoint_seconds=0, **changes)


class Killed(BaseException):
    """Simulates a kill of the process."""


@pytest.mark.parametrize("step", range(1, STEPS))
def test_resumed_at_any_step_ends_the_same(tmp_path: Path, step: int) -> None:
    whole = trained(tmp_path / "whole", ema=0.9)

    def kill(now: int) -> None:
        if now == step:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "killed", at=kill, ema=0.9, checkpoint_seconds=0)
    resumed = trained(tmp_path / "killed", ema=0.9)
    assert resumed.resumed_at == step
    same(whole, resumed)


class Partly(nn.Module):
    """One layer is trained, another is frozen, and a buffer counts the forward passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.frozen, self.free = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 1)
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.free(self.frozen(x))


def partly_trained(work: Path, kill_at: int | None = None) -> Trainer:
    net = Partly()
    loss = loss_of(net)

    def watched(step: int) -> Tensor:
        if step == kill_at:
            raise Killed
        return loss(step)

    trainer = Trainer(net, params(ema=0.9, checkpoint_seconds=0), work, "test")
    trainer.fit(trainer.backward(watched), silent)
    return trainer


def test_frozen_weights_do_not_change_and_are_in_no_checkpoint(tmp_path: Path) -> None:
    whole = partly_trained(tmp_path / "whole")
    assert torch.equal(whole.model.frozen.weight, Partly().frozen.weight)
    assert not torch.equal(whole.model.free.weight, Partly().free.weight)
    assert set(whole.ema) == {"free.weight", "free.bias"}
    kept = {name for name in load_arrays(tmp_path / f"whole/step-{STEPS:08d}.safetensors")[0]}
    groups = {"model": ["free.weight", "free.bias", "passes"], **dict.fromkeys(("ema", "first", "second"), whole.ema)}
    assert kept == {f"{group}.{name}" for group, names in groups.items() for name in names}
    with pytest.raises(Killed):
        partly_trained(tmp_path / "killed", kill_at=5)
    resumed = partly_trained(tmp_path / "killed")
    assert resumed.resumed_at == 5
    same(whole, resumed)
    assert float(resumed.model.passes) == STEPS


def test_a_model_with_nothing_to_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test: no weight of the model requires a gradient"):
        Trainer(model().requires_grad_(False), params(), tmp_path, "test")


def test_resumed_from_an_older_checkpoint_ends_the_same(tmp_path: Path) -> None:
    """A kill between checkpoints: the steps after the last one are repeated."""
    whole = trained(tmp_path / "whole")
    clock = iter(range(10_000))

    def kill(now: int) -> None:
        if now == 9:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pd_pipeline.training.loop.time.monotonic", lambda: next(clock))
        with pytest.raises(Killed):
            trained(tmp_path / "killed", at=kill, checkpoint_seconds=3.5)
    resumed = trained(tmp_path / "killed")
    assert 0 < resumed.resumed_at < 9
    same(whole, resumed)


Arrays = dict[str, np.ndarray]


def rewritten(change: Callable[[Arrays, dict[str, str]], object]) -> Callable[[Path], object]:
    """Damage that leaves a valid safetensors file."""

    def damage(path: Path) -> None:
        arrays, metadata = load_arrays(path)
        change(arrays, metadata)
        save_arrays(path, arrays, metadata)

    return damage


def logged(text: str) -> Callable[[Path], object]:
    return rewritten(lambda arrays, metadata: metadata.update(log=text))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "not finite": rewritten(lambda a, m: a.update({"model.0.bias": a["model.0.bias"] * np.nan})),
    "moment of another shape": rewritten(lambda a, m: a.update({"first.0.weight": np.zeros((1, 1), np.float32)})),
    "second moment of another type": rewritten(lambda a, m: a.update({"second.2.bias": np.zeros(1, np.float64)})),
    "weight missing": rewritten(lambda a, m: a.pop("model.2.weight")),
    "average missing": rewritten(lambda a, m: a.pop("ema.2.weight")),
    "too much": rewritten(lambda a, m: a.update(more=np.zeros(1))),
    "of another step": rewritten(lambda a, m: m.update(step="7")),
    "beyond the last step": rewritten(lambda a, m: m.update(step="999999")),
    "negative step": rewritten(lambda a, m: m.update(step="-8")),
    "step is not a number": rewritten(lambda a, m: m.update(step="eight")),
    "no step": rewritten(lambda a, m: m.pop("step")),
    "log is not JSON": logged("["),
    "log is nested": logged("[" * 100_000),
    "log is an object": logged("{}"),
    "log of words": logged('[{"step": 4, "loss": "low"}, {"step": 8}]'),
    "log of other steps": logged('[{"step": 5}]'),
    "log lacks a row": logged('[{"step": 4}]'),
    "sums are a list": rewritten(lambda a, m: m.update(sums="[1]")),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_older_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    whole = trained(tmp_path / "whole", ema=0.9)
    interrupted(tmp_path / "work", 8, ema=0.9)
    newest = tmp_path / "work/step-00000008.safetensors"
    DAMAGE[case](newest)
    resumed = trained(tmp_path / "work", ema=0.9)
    assert resumed.resumed_at == 7
    same(whole, resumed)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("pd_pipeline", "WARNING")
    assert str(newest) in record.getMessage()


def test_without_a_usable_checkpoint_it_starts_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trained(tmp_path / "whole")
    interrupted(tmp_path / "work", 8)
    for path in (tmp_path / "work").iterdir():
        DAMAGE["moment of another shape"](path)
    resumed = trained(tmp_path / "work")
    assert resumed.resumed_at == 0
    same(whole, resumed)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("step", ["00000999999", "00999999"])
def test_a_checkpoint_with_an_impossible_step_is_not_used(tmp_path: Path, step: str) -> None:
    whole = trained(tmp_path / "whole")
    interrupted(tmp_path / "work", 8)
    arrays, metadata = load_arrays(tmp_path / "work/step-00000008.safetensors")
    save_arrays(tmp_path / f"work/step-{step}.safetensors", arrays, metadata | {"step": "999999"})
    (tmp_path / "work/step-99999999.safetensors").mkdir()
    resumed = trained(tmp_path / "work")
    assert resumed.resumed_at == 8
    same(whole, resumed)


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    trained(tmp_path, checkpoint_seconds=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000011.safetensors", "step-00000012.safetensors"]


def test_sigterm_saves_once_and_exits_with_143(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)

    def stop(now: int) -> None:
        if now == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        trained(tmp_path / "stopped", at=stop)
    assert caught.value.code == 143
    assert [p.name for p in (tmp_path / "stopped").iterdir()] == ["step-00000006.safetensors"], "the step was finished"
    assert signal.getsignal(signal.SIGTERM) == before
    same(whole, trained(tmp_path / "stopped"))


def test_sigterm_between_saving_and_exiting_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must never exit without having saved: here the signal arrives after the decision whether to save."""
    answers = itertools.chain(
        [False], itertools.repeat(True)
    )  # False when asked whether to save; then the signal arrives

    @contextmanager
    def late() -> Iterator[Callable[[], bool]]:
        yield lambda: next(answers)

    monkeypatch.setattr(loop, "terminated", late)
    with pytest.raises(Interrupted):
        trained(tmp_path)
    assert len(list(tmp_path.glob("step-*.safetensors"))) == 1


def test_works_outside_the_main_thread(tmp_path: Path) -> None:
    """Dagster runs steps in threads, where no signal handler may be set."""
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(trained, tmp_path / "thread").result()  # raises what training raised
    outside = trained(tmp_path / "main")
    assert len(inside.history.rows) == STEPS // 4
    assert inside.history.rows == outside.history.rows
    found, expected = weights(inside.model), weights(outside.model)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_is_reported_with_its_step(tmp_path: Path, bad: float) -> None:
    trainer = Trainer(model(), params(), tmp_path, "plm reach-0")

    def compute(step: int) -> dict[str, Tensor]:
        for parameter in trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return {"loss": torch.tensor(bad if step == 5 else 1.0)}

    with pytest.raises(Diverged, match=r"plm reach-0: loss is (nan|inf) before step 8: lower the learning rate"):
        trainer.fit(compute, silent)
    assert issubclass(Diverged, PipelineError)


def test_diverging_again_from_a_checkpoint_gives_the_same_message(tmp_path: Path) -> None:
    for _ in range(2):
        trainer = Trainer(model(), params(checkpoint_seconds=0), tmp_path, "x")

        def compute(step: int, trainer: Trainer = trainer) -> dict[str, Tensor]:
            for parameter in trainer.model.parameters():
                parameter.grad = torch.full_like(parameter, math.nan if step == 5 else 0.0)
            return {"loss": torch.tensor(math.nan if step == 5 else 1.0)}

        with pytest.raises(Diverged, match="before step 8"):
            trainer.fit(compute, silent)
    assert trainer.resumed_at == 0, "checkpoints with values that are not finite are not used"


def test_learning_rate() -> None:
    given = OptimizationParams(steps=110, learning_rate=2.0, warmup=10)
    assert learning_rate(given, 0) == pytest.approx(0.2)
    assert learning_rate(given, 9) == pytest.approx(2.0)
    assert learning_rate(given, 10) == pytest.approx(2.0)
    assert learning_rate(given, 60) == pytest.approx(2.0 * (0.01 + 0.99 * 0.5))
    assert learning_rate(given, 110) == pytest.approx(0.02)
    rates = [learning_rate(given, step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    constant = given.model_copy(update={"schedule": "constant"})
    assert {learning_rate(constant, step) for step in range(10, 110)} == {2.0}
    assert learning_rate(given.model_copy(update={"warmup": 0}), 0) == 2.0


def test_losses_as_csv(tmp_path: Path) -> None:
    history = History([{"step": 4, "loss": 0.25}, {"step": 8, "loss": 0.125, "extra": 1e-9}])
    history.write(tmp_path / "losses.csv")
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"step": "4", "loss": "0.25", "extra": ""}, {"step": "8", "loss": "0.125", "extra": "1e-09"}]


def test_losses_for_tensorboard(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "work", logs=tmp_path / "logs")
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert {"loss", "extra", "learning_rate"} <= set(events.Tags()["scalars"])
    written = events.Scalars("loss")
    assert [event.step for event in written] == [4, 8, 12]
    np.testing.assert_allclose([e.value for e in written], [row["loss"] for row in trainer.history.rows], rtol=1e-5)


def test_tensorboard_shows_each_step_once_after_a_stop(tmp_path: Path) -> None:
    def stop(now: int) -> None:
        if now == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        trained(tmp_path / "work", at=stop, logs=tmp_path / "logs")
    trained(tmp_path / "work", logs=tmp_path / "logs")
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [4, 8, 12]


def test_generators_are_pure_functions() -> None:
    def numbers(seed: int, step: int) -> list[float]:
        return torch.randn(4, generator=generator_of(seed, step)).tolist()

    assert numbers(1, 2) == numbers(1, 2)
    assert len({tuple(numbers(seed, step)) for seed in range(4) for step in range(4)}) == 16


def test_devices_and_precision() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    assert use_bf16("bf16", torch.device("cpu"))
    assert not use_bf16("float32", torch.device("cuda"))
    assert not use_bf16("auto", torch.device("mps"))
    assert use_bf16("auto", torch.device("cpu")) == torch.cpu._is_avx512_bf16_supported()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("cuda", "device: cuda, but there is no CUDA device: use auto or cpu"),
        ("cuda:1", "device: cuda:1, but there is no CUDA device"),
        ("mps", "device: mps, but there is no MPS device"),
    ],
)
def test_an_unavailable_device_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(PipelineError, match=message):
        pick_device(wanted)


def test_an_unavailable_cuda_index_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(PipelineError, match="device: cuda:2, but the last device is cuda:1"):
        pick_device("cuda:2")


def test_autocast_follows_the_precision(tmp_path: Path) -> None:
    for precision, expected in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        trainer = Trainer(nn.Linear(2, 2), params(precision=precision), tmp_path, "x")
        with trainer.autocast():
            assert trainer.model(torch.zeros(1, 2)).dtype == expected


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    saved = weights(nn.Linear(2, 3))
    save_arrays(path, saved)
    target = nn.Linear(2, 4)
    with pytest.raises(PipelineError, match=r"w\.safetensors: these weights do not fit the config beside them"):
        load_weights(target, path, "the config beside them")
    good = nn.Linear(2, 3)
    load_weights(good, path, "it")
    for name, values in weights(good).items():
        np.testing.assert_array_equal(values, saved[name], err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": 10**12},
        {"learning_rate": 0},
        {"learning_rate": 1000},
        {"warmup": 10**12},
        {"log_every": 10**12},
        {"ema": 1.0},
        {"clip": 0},
        {"schedule": "step"},
    ],
)
def test_parameters_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        params(**changes)
