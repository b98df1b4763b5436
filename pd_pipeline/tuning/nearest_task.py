"""Drawn segments of the training task that is most like the target, for a target of which only the goal is known.

What is like it is told by the numbers of the diffuser's condition `task`: the least Euclidean distance between them, in
standard deviations over the training tasks. The baseline of a diffuser that is told the goal: it uses the same numbers
and generates nothing.
"""

from dataclasses import replace

import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.tuning.adaptation import Prompted
from pd_pipeline.tuning.protocol import Pretrained, Run
from pd_pipeline.tuning.unseen import Unseen, UnseenParams

NEEDS = ("diffuser", "prompts")
DEMONSTRATIONS = False


class Params(UnseenParams):
    """Only the parameters that every method without demonstrations has."""


def tune(plm: Pretrained, target: Unseen, params: Params, run: Run) -> Prompted:
    """Draw segments of the nearest task. Raises PipelineError if the diffuser knows no numbers of tasks."""
    assert plm.diffuser is not None, "NEEDS names the diffuser"
    conditions = plm.diffuser[0].config.conditions
    if "task" not in conditions.names:
        raise PipelineError(
            f"{run.title}: nothing says which tasks are alike: add `task` to diffuser.conditions, or leave out this method"
        )
    tasks = np.unique(target.training.task_id)
    apart = np.array([conditions.of_task(int(task)) for task in tasks]) - conditions.of_task(target.task)  # (tasks, C)
    nearest = tasks[np.linalg.norm(apart, axis=1).argmin()]
    rows = np.flatnonzero(target.training.task_id == nearest)
    drawn = np.random.default_rng(run.seed).choice(rows, params.prompts, replace=params.prompts > len(rows))
    segments = target.training.select(drawn)
    return Prompted(prompts=replace(segments, task_id=np.full_like(segments.task_id, target.task)))
