"""Segments as prompts (eq. 4 and 5), and their normalisation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_pipeline.errors import PipelineError
from pd_pipeline.prompts.segments import MIN_STD, Normalization, Prompts, cut
from pd_pipeline.storage import load_arrays, save_arrays
from pd_pipeline.trajectories.reading import Trajectories
from tests.builders import D_A, D_S, trajectories


def naive(data: Trajectories, length: int, stride: int) -> list[tuple[np.ndarray, np.ndarray, int, int, int]]:
    """One segment after another, as in the equations."""
    found = []
    for episode in range(len(data.task_id)):
        begin, end = data.starts[episode], data.starts[episode + 1]
        for start in range(0, end - begin - length + 1, stride):
            x0, y = [], []
            for t in range(start, start + length):
                row = begin + t
                x0.append([*data.observations[row], *data.actions[row], data.rewards[row]])
                y.append([data.returns_to_go[row], t])
            found.append((np.array(x0), np.array(y), data.task_id[episode], data.episode_id[episode], start))
    return found


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_cut_equals_the_loop(lengths: list[int], length: int, stride: int, seed: int) -> None:
    data = trajectories(tuple(lengths), tuple(range(len(lengths))), seed)
    expected = naive(data, length, stride)
    if not expected:
        with pytest.raises(PipelineError, match=f"as long as a prompt of {length} steps"):
            cut(data, length, stride)
        return
    prompts = cut(data, length, stride)
    assert len(prompts) == len(expected)
    assert prompts.x0.shape == (len(expected), length, D_S + D_A + 1)
    for i, (x0, y, task, episode, start) in enumerate(expected):
        np.testing.assert_array_equal(prompts.x0[i], x0.astype(np.float32))
        np.testing.assert_array_equal(prompts.y[i], y.astype(np.float32))
        assert (prompts.task_id[i], prompts.episode_id[i], prompts.start[i]) == (task, episode, start)


def test_dtypes_and_order_of_channels() -> None:
    prompts = cut(trajectories((4,), (3,)), 2)
    assert prompts.x0.dtype == prompts.y.dtype == np.float32
    assert prompts.start.dtype == np.int32
    data = trajectories((4,), (3,))
    np.testing.assert_array_equal(prompts.x0[1, 0, :D_S], data.observations[1])
    np.testing.assert_array_equal(prompts.x0[1, 0, D_S : D_S + D_A], data.actions[1])
    assert prompts.x0[1, 0, -1] == data.rewards[1]


def test_prompts_round_trip_and_select(tmp_path: Path) -> None:
    prompts = cut(trajectories((5, 6), (0, 1)), 3)
    prompts.save(tmp_path / "p.safetensors")
    loaded = Prompts.load(tmp_path / "p.safetensors")
    for name in Prompts.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(prompts, name))
    assert loaded.select(loaded.task_id == 1).start.tolist() == [0, 1, 2, 3]
    save_arrays(tmp_path / "other.safetensors", {"a": np.zeros(1)})
    with pytest.raises(PipelineError, match=r"other\.safetensors: lacks episode_id, start, task_id, x0, y"):
        Prompts.load(tmp_path / "other.safetensors")


@given(st.integers(0, 1000), st.floats(1e-3, 1e4))
def test_normalization_round_trip(seed: int, scale: float) -> None:
    data = trajectories((9, 7), (0, 1), seed)
    data.observations[:] *= np.float32(scale)
    normalization = Normalization.of([data])
    x0 = cut(data, 3).x0
    back = normalization.denormalize(normalization.normalize(x0))
    np.testing.assert_allclose(back, x0, rtol=1e-4, atol=1e-4 * scale)
    np.testing.assert_allclose(
        normalization.to_actions(normalization.actions(data.actions)), data.actions, rtol=1e-5, atol=1e-6
    )


def test_normalized_channels_are_of_order_one() -> None:
    data = trajectories((200, 100), (0, 1))
    normalization = Normalization.of([data])
    observations = normalization.observations(data.observations)
    np.testing.assert_allclose(observations.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(observations.std(0), 1, atol=1e-4)
    x0 = normalization.normalize(cut(data, 5).x0)
    np.testing.assert_array_equal(x0[..., :D_S], normalization.observations(cut(data, 5).x0[..., :D_S]))
    assert np.abs(data.returns_to_go / normalization.return_scale).max() == pytest.approx(1)


def test_actions_are_scaled_by_their_bounds() -> None:
    normalization = Normalization.of([trajectories((9,), (0,), action_low=(-1.0, 0.0), action_high=(3.0, 10.0))])
    np.testing.assert_allclose(
        normalization.actions(np.array([[-1.0, 0.0], [3.0, 10.0], [1.0, 5.0]])), [[-1, -1], [1, 1], [0, 0]]
    )
    np.testing.assert_allclose(normalization.to_actions(np.array([-1.0, 1.0])), [-1, 10])


def test_narrow_bounds_of_actions_are_not_left() -> None:
    """Commands in metres per step may be far below MIN_STD."""
    narrow = {"action_low": (-1e-5, 0.0), "action_high": (1e-5, 5e-4)}
    normalization = Normalization.of([trajectories((9,), (0,), **narrow)])
    np.testing.assert_allclose(
        normalization.to_actions(np.array([[-1, -1], [1, 1]])), [[-1e-5, 0.0], [1e-5, 5e-4]], rtol=1e-6, atol=1e-12
    )


def test_dimensions_that_never_change_are_guarded() -> None:
    data = trajectories((20,), (0,))
    data.observations[:, 1] = 0.7
    data.observations[:, 2] = 0.7 + 1e-7 * np.arange(20)
    normalization = Normalization.of([data])
    np.testing.assert_array_equal(normalization.std[1:3], np.float32(MIN_STD))
    assert np.abs(normalization.observations(data.observations)[:, 1:]).max() < 1e-2
    other = data.observations + np.float32(1e-3)
    assert np.abs(normalization.observations(other)[:, 1:]).max() < 2, "a small change stays small"


def test_rewards_that_are_all_zero_give_a_scale() -> None:
    data = trajectories((5,), (0,))
    data.rewards[:] = 0
    data.returns_to_go[:] = 0
    assert Normalization.of([data]).return_scale == 1.0


def test_normalization_is_saved_exactly(tmp_path: Path) -> None:
    normalization = Normalization.of([trajectories((9,), (0,))])
    normalization.save(tmp_path / "n.safetensors")
    loaded = Normalization.load(tmp_path / "n.safetensors")
    np.testing.assert_array_equal(loaded.mean, normalization.mean)
    np.testing.assert_array_equal(loaded.std, normalization.std)
    assert (loaded.return_scale, loaded.horizon) == (normalization.return_scale, 10)
    assert (loaded.observation_size, loaded.action_size) == (D_S, D_A)


BROKEN_NORMALIZATIONS: list[tuple[dict[str, np.ndarray | None], str]] = [
    ({"std": None}, "lacks std"),
    ({"more": np.zeros(1)}, "has unexpected more"),
    ({"mean": np.full(6, np.nan, np.float32)}, "'mean' is not finite"),
    ({"std": np.array([1, 1, 0, 1, 1, 1], np.float32)}, "std 0 is not positive"),
    ({"std": np.array([1, 1, -2, 1, 1, 1], np.float32)}, "std -2 is not positive"),
    ({"std": np.ones((6, 1), np.float32)}, r"'std' has shape \(6, 1\)"),
    ({"std": np.ones(6)}, "'std' is float64, expected float32"),
    ({"mean": np.ones(5, np.float32)}, "mean and std of 5 and 6 channels, but sizes for 6"),
    ({"numbers": np.array([1.0, 10.0, 3.0])}, r"'numbers' has shape \(3,\)"),
    ({"numbers": np.array([0.0, 10.0, 3.0, 2.0])}, "return scale, horizon and sizes are"),
    ({"numbers": np.array([-1.0, 10.0, 3.0, 2.0])}, "return scale, horizon and sizes are"),
    ({"numbers": np.array([1.0, 0.0, 3.0, 2.0])}, "return scale, horizon and sizes are"),
    ({"numbers": np.array([1.0, 10.5, 3.0, 2.0])}, "return scale, horizon and sizes are"),
    ({"numbers": np.array([1.0, 10.0, 4.0, 2.0])}, "channels, but sizes for 7"),
    ({"numbers": np.array([1.0, 10.0, 1e12, 2.0])}, "channels, but sizes for"),
    ({"numbers": np.array([np.inf, 10.0, 3.0, 2.0])}, "'numbers' is not finite"),
]


def spoiled(path: Path, changes: dict[str, np.ndarray | None]) -> Path:
    arrays, _ = load_arrays(path)
    save_arrays(path, {name: array for name, array in (arrays | changes).items() if array is not None})
    return path


@pytest.mark.parametrize(("changes", "message"), BROKEN_NORMALIZATIONS)
def test_broken_normalizations_are_refused(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    path = tmp_path / "n.safetensors"
    Normalization.of([trajectories((9,), (0,))]).save(path)
    with pytest.raises(PipelineError, match=rf"n\.safetensors: .*{message}"):
        Normalization.load(spoiled(path, changes))


BROKEN_PROMPTS: list[tuple[dict[str, np.ndarray | None], str]] = [
    ({"y": None}, "lacks y"),
    ({"x0": np.full((7, 3, 6), np.inf, np.float32)}, "'x0' is not finite"),
    ({"x0": np.zeros((7, 3, 6))}, "'x0' is float64, expected float32"),
    ({"x0": np.zeros((7, 3), np.float32)}, r"'x0' has shape \(7, 3\)"),
    ({"x0": np.zeros((7, 2, 6), np.float32)}, "differ in number or length"),
    ({"y": np.zeros((7, 3, 3), np.float32)}, r"'y' has shape \(7, 3, 3\), expected any x any x 2"),
    ({"task_id": np.zeros(6, np.int32)}, "differ in number or length"),
    ({"task_id": np.zeros(7, np.int64)}, "'task_id' is int64, expected int32"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN_PROMPTS)
def test_broken_prompts_are_refused(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    path = tmp_path / "p.safetensors"
    cut(trajectories((5, 6), (0, 1)), 3).save(path)
    with pytest.raises(PipelineError, match=rf"p\.safetensors: .*{message}"):
        Prompts.load(spoiled(path, changes))


def test_prompts_of_another_family_or_length_are_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "p.safetensors", trajectories((5, 6), (0, 1))
    cut(data, 3).save(path)
    normalization = Normalization.of([data])
    assert len(Prompts.load(path, normalization, 3)) == 7
    with pytest.raises(PipelineError, match="expected any x 4 x 6"):
        Prompts.load(path, normalization, 4)
    other = replace(normalization, mean=normalization.mean[:-1])
    with pytest.raises(PipelineError, match="expected any x 3 x 5"):
        Prompts.load(path, other, 3)
