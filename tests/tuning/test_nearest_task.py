"""Segments of the training task whose numbers are nearest to the target's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.conditions import Conditions
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Prompts, cut
from pd_pipeline.tuning import nearest_task
from pd_pipeline.tuning.nearest_task import Params
from pd_pipeline.tuning.protocol import Pretrained, Run
from pd_pipeline.tuning.unseen import Unseen
from tests.builders import trajectories
from tests.tuning.tiny import PROMPT, TASK, pretrained

SEGMENTS = cut(trajectories((10, 8, 10, 9), (0, 0, 1, 2), seed=3), PROMPT)
NUMBERS = {0: (0.0, 3.0), 1: (1.0, 0.0), 2: (-2.0, -2.0)}


def drawn(tmp_path: Path, target: tuple[float, float], seed: int = 0, **changes: Any) -> Prompts:
    plm = pretrained(Conditions(names=("phase", "task"), tasks=NUMBERS | {TASK: target}))
    run = Run(tmp_path / "work", tmp_path / "logs", "tuned_nearest_task", silent, seed)
    params = Params.model_validate({"prompts": 4} | changes)
    return nearest_task.tune(plm, Unseen(TASK, SEGMENTS, 0.0), params, run).prompts


@pytest.mark.parametrize(("target", "nearest"), [((0.9, 1.0), 1), ((0.1, 1.9), 0), ((-9.0, 0.0), 2)])
def test_segments_are_those_of_the_nearest_task(tmp_path: Path, target: tuple[float, float], nearest: int) -> None:
    found = drawn(tmp_path, target)
    of_nearest = SEGMENTS.select(SEGMENTS.task_id == nearest)
    rows = [np.flatnonzero((of_nearest.x0 == x0).all((1, 2))) for x0 in found.x0]
    assert all(len(row) == 1 for row in rows)
    assert len({int(row[0]) for row in rows}) == 4, "drawn without replacement"
    np.testing.assert_array_equal(found.y, of_nearest.y[np.concatenate(rows)])
    assert found.task_id.tolist() == [TASK] * 4


def test_seeds_draw_others_and_more_than_there_are_repeat(tmp_path: Path) -> None:
    one, again, other = (drawn(tmp_path, (0.0, 0.0), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.x0, again.x0)
    assert not np.array_equal(one.x0, other.x0)
    assert len(drawn(tmp_path, (0.0, 0.0), prompts=50)) == 50


def test_without_the_condition_it_says_what_to_add(tmp_path: Path, plm: Pretrained) -> None:
    run = Run(tmp_path, tmp_path, "tuned_nearest_task reach-5-0", silent, 0)
    with pytest.raises(PipelineError, match=r"reach-5-0: nothing says which tasks are alike: add `task` to diffuser"):
        nearest_task.tune(plm, Unseen(TASK, SEGMENTS, 0.0), Params(), run)
