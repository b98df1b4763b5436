"""Files of goal-conditioned policies: invalid ones, or those of other sizes, are refused in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families import goal_policy
from pd_pipeline.storage import load_arrays, save_arrays

LOW, HIGH = np.full(2, -1, np.float32), np.ones(2, np.float32)


def saved(path: Path) -> Path:
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=(8, 5)), rng.normal(size=8)), (rng.normal(size=(2, 8)), rng.normal(size=2))]
    goal_policy.save(path, layers, mean=np.zeros(5), deviation=np.ones(5), log_std=np.zeros(2))
    return path


def load(path: Path) -> goal_policy.GoalPolicy:
    return goal_policy.load(path, LOW, HIGH, 5, lambda environment: np.zeros(2), 0.0)


def test_a_saved_policy_is_read_back(tmp_path: Path) -> None:
    policy = load(saved(tmp_path / "p.safetensors"))
    assert [weight.shape for weight, _ in policy.layers] == [(8, 5), (2, 8)]
    assert policy.mu(np.zeros((3, 5), np.float32)).shape == (3, 2)


Arrays = dict[str, np.ndarray]
BROKEN: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "no layers": (
        lambda a: [a.pop(f"layer{i}.{part}") for i in (0, 1) for part in ("weight", "bias")],
        "lacks layer0.bias, layer0.weight",
    ),
    "a layer missing": (lambda a: [a.pop("layer0.weight"), a.pop("layer0.bias")], "lacks layer0"),
    "no bias": (lambda a: a.pop("layer1.bias"), "lacks layer1.bias"),
    "no deviation": (lambda a: a.pop("deviation"), "lacks deviation"),
    "too much": (lambda a: a.update(more=np.zeros(1, np.float32)), "has unexpected more"),
    "not finite": (lambda a: a["layer1.bias"].fill(np.nan), "'layer1.bias' is not finite"),
    "another type": (lambda a: a.update({"mean": np.zeros(5)}), "'mean' is not float32"),
    "deviation of zero": (lambda a: a["deviation"].fill(0), "deviation 0 is not positive"),
    "deviation of another width": (lambda a: a.update({"deviation": np.ones(4, np.float32)}), "'deviation' has shape"),
    "layers that do not meet": (lambda a: a.update({"layer1.weight": np.ones((2, 7), np.float32)}), "expected 2 x 8"),
    "first layer of another width": (
        lambda a: a.update({"layer0.weight": np.ones((8, 6), np.float32)}),
        "expected 8 x 5",
    ),
    "bias of another width": (lambda a: a.update({"layer1.bias": np.ones(3, np.float32)}), "expected 3 x 8"),
    "a matrix for a bias": (
        lambda a: a.update({"layer0.bias": np.ones((8, 1), np.float32)}),
        "'layer0.bias' has shape",
    ),
    "a number for a mean": (lambda a: a.update({"mean": np.zeros((), np.float32)}), "'mean' has shape"),
    "other inputs": (lambda a: a.update({"mean": np.zeros(4, np.float32)}), "made for 4 inputs and 2 actions"),
    "other actions": (lambda a: a.update({"log_std": np.zeros(3, np.float32)}), "made for 5 inputs and 3 actions"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_policies_are_refused(tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    path = saved(tmp_path / "p.safetensors")
    arrays = {name: array.copy() for name, array in load_arrays(path)[0].items()}
    change(arrays)
    save_arrays(path, arrays)
    with pytest.raises(PipelineError, match=rf"p\.safetensors: .*{message}"):
        load(path)


def test_truncated_and_missing_policies_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "p.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(PipelineError, match=r"p\.safetensors: not a safetensors file"):
        load(path)
    with pytest.raises(PipelineError, match="no such file"):
        load(tmp_path / "none.safetensors")
