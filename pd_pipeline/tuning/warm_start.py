"""Multi-task transfer: prompts that were tuned for similar training tasks are the start for the target.

    similar   segments of every training task predict few-shot windows; those of the `neighbours` tasks with the least
              mean loss are similar, and the best of their segments are the start
    borrowed  the start is tuned on the trajectories of these tasks, of which there are many
    own       then on the few-shot trajectories, as by `prompt_gradient`

The action loss under a task's segments measures how alike two tasks are in the eyes of the PLM that has to act on them.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pd_pipeline.config import MAX_STEPS
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prompting import prompt_tensors, to_prompts
from pd_pipeline.prompts.segments import Prompts
from pd_pipeline.training.loop import History, Rate
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import read
from pd_pipeline.tuning.adaptation import Cost, Prompted
from pd_pipeline.tuning.prompt_gradient import (
    DescentParams,
    PromptParameters,
    descend,
    descend_and_select,
    tuned_numbers,
)
from pd_pipeline.tuning.protocol import Pretrained, Run, Target
from pd_pipeline.tuning.unseen import training_prompts
from pd_pipeline.tuning.windows import window_losses

NEEDS = ("prompts", "trajectories")


class Params(DescentParams):
    """Which tasks are similar, and how long their data is learned from; `target.quality` is that of their data too."""

    learning_rate: Rate = Field(default=1e-1, description="in the units that prompts are normalised to")
    neighbours: int = Field(default=3, gt=0, le=10_000, description="similar training tasks to borrow from")
    per_task: int = Field(default=16, gt=0, le=10_000, description="segments per training task that are compared")
    compared: int = Field(default=32, gt=0, le=100_000, description="few-shot windows that they are compared on")
    borrowed: int = Field(default=100, ge=0, le=MAX_STEPS, description="steps on the data of the similar tasks")


def tune(plm: Pretrained, target: Target, params: Params, run: Run) -> Prompted:
    """Find similar tasks, tune their best segments on their data, then on the target's."""
    quality = params.target.quality
    pool = spread(training_prompts(plm.outs["prompts"], quality, plm), params.per_task, {target.task, run.task})
    x0, y = prompt_tensors(pool, plm.normalization, plm.device)
    rng = np.random.default_rng(run.seed)
    window, valid = target.windows.any_windows(rng, params.compared, plm.policy.config.acting_window)
    losses = window_losses(plm, x0, y, window, valid).mean(1)  # (segments,)
    tasks = similar(losses, pool.task_id, params.neighbours)
    of_similar = torch.from_numpy(np.flatnonzero(np.isin(pool.task_id, tasks))).to(x0.device)
    best = of_similar[losses[of_similar].argsort(stable=True)]
    start = best[torch.arange(params.candidate_count, device=best.device) % len(best)]
    x0, y, rows = x0[start], y[start], list[dict[str, float]]()
    if params.borrowed:
        borrowed = PolicyData(
            read(plm.outs["trajectories"] / f"{quality}.parquet", tasks), plm.normalization, plm.device
        )
        first = params.model_copy(update={"steps": params.borrowed})
        part = replace(run, work=run.work / "borrowed", logs=run.logs / "borrowed", title=f"{run.title} borrowed")
        prompts = PromptParameters(x0)
        rows += descend(plm, borrowed, prompts, y, first, part).rows
        x0 = prompts.x0.detach()
    found, y, history, passes = descend_and_select(plm, target, x0, y, params, replace(run, work=run.work / "own"))
    rows += [row | {"step": row["step"] + params.borrowed} for row in history.rows]
    each_way = len(x0) * params.windows * (params.borrowed + params.steps)
    return Prompted(
        prompts=to_prompts(found, y, plm.normalization, target.task),
        history=History(rows),
        cost=Cost(
            tuned_parameters=tuned_numbers(x0),
            plm_forward=each_way + len(losses) * params.compared + passes,
            plm_backward=each_way,
        ),
    )


def spread(prompts: Prompts, per_task: int, without: Collection[int | None]) -> Prompts:
    """At most `per_task` segments of every task not in `without`, evenly spread. Raises PipelineError if none is left.

    Segments of the task to adapt to are its data, and those of the task whose trajectories are shown must not be
    borrowed for itself.
    """
    rows = []
    if not (tasks := [task for task in np.unique(prompts.task_id) if task not in without]):
        raise PipelineError(
            f"warm_start: there is no training task to borrow from beside {prompts.task_id[0]}, which is the target or "
            "what it is shown: have more training tasks, or leave warm_start out"
        )
    for task in tasks:
        of_task = np.flatnonzero(prompts.task_id == task)
        rows.append(of_task[np.linspace(0, len(of_task) - 1, min(per_task, len(of_task))).round().astype(int)])
    return prompts.select(np.concatenate(rows))


def similar(losses: Tensor, task_id: np.ndarray, count: int) -> list[int]:
    """The `count` tasks whose segments have the least mean loss (n,), most similar first."""
    found, tasks = losses.cpu().double().numpy(), np.unique(task_id)
    means = np.array([found[task_id == task].mean() for task in tasks])
    return [int(task) for task in tasks[np.argsort(means, kind="stable")[:count]]]
