"""Normalisation over several data sets, and the stage prompts recomputed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline import graph
from pd_pipeline.errors import PipelineError
from pd_pipeline.progress import silent
from pd_pipeline.prompts import stage
from pd_pipeline.prompts.segments import Normalization, Prompts, cut
from pd_pipeline.prompts.stage import held_out_episodes
from pd_pipeline.stage import Key, StageContext
from pd_pipeline.storage import read_json
from pd_pipeline.trajectories.reading import Trajectories, read
from tests.builders import D_S, trajectories


def test_statistics_are_computed_over_all_data_sets() -> None:
    parts = [trajectories((30, 20), (0, 1), seed=1), trajectories((10,), (0,), seed=2)]
    parts[1].observations[:] += 5
    parts[1].rewards[:] += 3
    parts[1].returns_to_go[:] -= 40
    normalization = Normalization.of(parts)
    observations, rewards = (
        np.concatenate([getattr(part, name) for part in parts]).astype(float) for name in ("observations", "rewards")
    )
    np.testing.assert_allclose(normalization.mean[:D_S], observations.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normalization.std[:D_S], observations.std(0), rtol=1e-6)
    assert normalization.mean[-1] == pytest.approx(rewards.mean(), rel=1e-6)
    assert normalization.std[-1] == pytest.approx(rewards.std(), rel=1e-6)
    scale = max(np.abs(part.returns_to_go).max() for part in parts)
    assert scale == -parts[1].returns_to_go.min(), "of the second, and negative"
    for order in (parts, parts[::-1]):
        assert Normalization.of(order).return_scale == scale


def observed(column: np.ndarray) -> Trajectories:
    """An episode with a given first observation."""
    data = trajectories((len(column),), (0,), horizon=len(column))
    data.observations[:, 0] = column
    return data


def test_statistics_are_summed_in_float64() -> None:
    """In float32, a deviation of 0.01 around 10,000 is lost in rounding."""
    column = (10_000 + 0.01 * np.random.default_rng(0).integers(-2, 3, 4000)).astype(np.float32)
    normalization = Normalization.of([observed(column)])
    assert normalization.std[0] == pytest.approx(column.astype(float).std(), rel=1e-6)
    data = observed(column)
    rewarded = replace(data, rewards=column)
    assert Normalization.of([rewarded]).std[-1] == pytest.approx(column.astype(float).std(), rel=1e-6)


@pytest.mark.parametrize(("deviation", "divisor"), [(0.0015, 0.0015), (0.0005, 0.001)])
def test_deviations_are_at_least_a_thousandth(deviation: float, divisor: float) -> None:
    column = (deviation * np.tile([-1.0, 1.0], 50)).astype(np.float32)
    assert Normalization.of([observed(column)]).std[0] == pytest.approx(divisor, rel=1e-5)


def test_small_returns_have_a_small_scale() -> None:
    data = trajectories((5,), (0,))
    data.returns_to_go[:] = (-0.25, 0.2, 0.1, 0.0, 0.1)
    assert Normalization.of([data]).return_scale == 0.25


@pytest.mark.parametrize(
    ("share", "counts"), [(0.01, [1, 1, 1]), (0.25, [2, 1, 2]), (0.4, [2, 1, 4]), (0.99, [5, 1, 8])]
)
def test_the_held_out_share_applies_per_task(share: float, counts: list[int]) -> None:
    """The last of 6, 2 and 9 episodes in any order, with the share rounded."""
    tasks = np.random.default_rng(0).permutation(np.repeat([3, 5, 8], [6, 2, 9]))
    held_out = held_out_episodes(tasks, share)
    for task, count in zip((3, 5, 8), counts, strict=True):
        of_task = held_out[tasks == task]
        assert of_task.tolist() == [False] * (len(of_task) - count) + [True] * count


def context(root: Path, out: Path, **params: Any) -> StageContext:
    """The stage of the trained project, with its own folder for outputs."""
    project = graph.load(root)
    return StageContext(
        root=root,
        stage="prompts",
        key=Key("point_robot"),
        params=stage.Params.model_validate(params),
        module=stage.__name__,
        modules=project.modules,
        environment=project.params.block("point_robot", "environment"),
        inputs={"trajectories": root / "data/trajectories/point_robot"},
        out=out,
        work=out / "work",
        logs=out / "logs",
        progress=silent,
        params_file=project.params,
    )


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.4, 2)])
def test_the_stage_by_hand(share: float, count: int, trained_project: Path, tmp_path: Path) -> None:
    """Of 6 expert and 2 random episodes of each task, every fourth segment."""
    reported: list[tuple[Any, ...]] = []
    block = {"length": 3, "stride": 4, "qualities": ["expert", "random"], "held_out": share}
    given = context(trained_project, tmp_path, **block)
    found = stage.run(replace(given, progress=lambda *figures: reported.append(figures)))
    folder, tasks, rows, parts = given.inputs["trajectories"], given.family.train_tasks, 0, []
    for quality, last in (("expert", count), ("random", 1)):
        data = read(folder / f"{quality}.parquet", tasks)
        held_out = [i for task in tasks for i in np.flatnonzero(data.task_id == task)[-last:]]
        others = [i for i in range(len(data.task_id)) if i not in held_out]
        for name, episodes in ((quality, others), (f"{quality}-held_out", held_out)):
            expected = cut(data.select(np.array(episodes)), 3, 4)
            left = Prompts.load(tmp_path / f"{name}.safetensors")
            for field in Prompts.__dataclass_fields__:
                np.testing.assert_array_equal(getattr(left, field), getattr(expected, field))
            assert set(left.start.tolist()) == {0, 4, 8}
            rows += len(expected)
        parts.append(data)
    expected_normalization = Normalization.of(parts)
    normalization = Normalization.load(tmp_path / "normalization.safetensors")
    for name in Normalization.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(normalization, name), getattr(expected_normalization, name))
    assert found == {"row_count": rows, "return_scale": expected_normalization.return_scale}
    assert rows == 4 * (6 + 2) * 3
    assert read_json(tmp_path / "config.json") == block
    assert reported == [("prompts point_robot", 1, 2), ("prompts point_robot", 2, 2)]


def test_trajectories_of_another_family_are_refused(trained_project: Path, tmp_path: Path) -> None:
    given = context(trained_project, tmp_path, length=3)
    with pytest.raises(PipelineError, match="horizon"):
        stage.run(replace(given, environment=given.environment | {"horizon": 13}))
