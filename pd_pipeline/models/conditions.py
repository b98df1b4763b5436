"""What the diffuser is conditioned on beyond return-to-go and timestep: chosen by `diffuser.conditions`.

    phase     where in its episode a prompt begins, among its segments there: 0 the first one, 1 the last one
    effort    mean square of its actions, in units of their bounds: a cost that one may want to keep low
    task      the numbers that describe its task (`Family.goal`), standardised over the training tasks

These are more channels of y, the same at every step of a prompt. The diffuser reads them, the PLM does not. The paper
leaves open which conditions help; `task` tells the diffuser what the policy must find out from its prompt, so it is a
fair setting only where a user knows that of a target too.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pd_pipeline.config import Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.prompts.segments import Normalization, Prompts

if TYPE_CHECKING:
    from pd_pipeline.families.base import Family

Condition = Literal["phase", "effort", "task"]
Askable = Literal["phase", "effort"]
CHANNELS = 2  # of y as the PLM reads it


class Conditions(Parameters):
    """Those of a diffuser, in the order of their channels; saved beside its weights."""

    names: tuple[Condition, ...] = ()
    tasks: dict[int, tuple[float, ...]] = {}
    """Task -> its numbers, with the condition `task`."""

    @property
    def size(self) -> int:
        """C, the number of channels that they add to y."""
        return sum(self._width(name) for name in self.names)

    def channels(self, name: Condition) -> slice:
        """Where a condition is in y."""
        before = self.names[: self.names.index(name)]
        first = CHANNELS + sum(self._width(other) for other in before)
        return slice(first, first + self._width(name))

    def _width(self, name: Condition) -> int:
        return len(next(iter(self.tasks.values()), ())) if name == "task" else 1

    def of_task(self, task: int) -> tuple[float, ...]:
        """The numbers of a task. Raises PipelineError for one that the family did not have in pre-training."""
        if task not in self.tasks:
            raise PipelineError(
                f"task {task}: the diffuser has the condition `task`, and knows nothing of this task: it knows "
                f"{', '.join(map(str, self.tasks))}. Leave out `task` in diffuser.conditions"
            )
        return self.tasks[task]


def conditions_of(names: Iterable[Condition], family: "Family") -> Conditions:
    """The conditions with these names for a family. Raises PipelineError if `task` has no numbers there."""
    chosen = tuple(dict.fromkeys(names))
    if "task" not in chosen:
        return Conditions(names=chosen)
    where = f"families.{family.name}.diffuser.conditions: task"
    every = dict.fromkeys((*family.train_tasks, *family.test_tasks))
    goals = {task: _numbers(family.goal(task)) for task in every}
    first = family.train_tasks[0]
    if len({len(goal) for goal in goals.values()}) > 1 or not goals[first]:
        raise PipelineError(
            f"{where}: the tasks of this family are not described by equally many numbers, such as task {first} by "
            f"{family.goal(first)}: leave out `task`"
        )
    known = np.array([goals[task] for task in family.train_tasks])  # (tasks, numbers)
    spread = known.std(0)
    scaled = {
        task: (np.array(goal) - known.mean(0)) / np.where(spread > 0, spread, 1.0) for task, goal in goals.items()
    }
    return Conditions(names=chosen, tasks={task: tuple(map(float, goal)) for task, goal in scaled.items()})


def _numbers(value: Any) -> list[float]:
    """All numbers in JSON values, in the order of the keys; no truth values and no text."""
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [float(value)]
    inner = [value[key] for key in sorted(value)] if isinstance(value, dict) else value
    return [number for part in inner for number in _numbers(part)] if isinstance(inner, list | tuple) else []


def conditioned(
    prompts: Prompts, conditions: Conditions, normalization: Normalization, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """All segments of some episodes -> normalised x0 (n, K*, channels), and y (n, K*, 2 + C) for the diffuser."""
    x0, y = prompt_tensors(prompts, normalization, device)
    for name in conditions.names:
        if name == "phase":
            added = _phase(prompts)[:, None]
        elif name == "effort":
            actions = slice(normalization.observation_size, normalization.observation_size + normalization.action_size)
            added = x0[..., actions].square().mean((1, 2)).cpu().numpy()[:, None]
        else:
            added = np.array([conditions.of_task(int(task)) for task in prompts.task_id])
        more = torch.from_numpy(added.astype(np.float32)).to(y.device)  # (n, 1) or (n, numbers)
        y = torch.cat((y, more[:, None].expand(-1, y.shape[1], -1)), dim=-1)
    return x0, y


def _phase(prompts: Prompts) -> np.ndarray:
    """(n,) in [0, 1]: the start of each segment over the last start that its episode has."""
    episodes = np.stack((prompts.task_id, prompts.episode_id), axis=1)
    _, episode = np.unique(episodes, axis=0, return_inverse=True)
    last = np.zeros(episode.max() + 1)
    np.maximum.at(last, episode.ravel(), prompts.start)
    return prompts.start / np.maximum(last[episode.ravel()], 1)


def for_target(y: Tensor, conditions: Conditions, task: int) -> Tensor:
    """y (n, K*, 2 + C) of other tasks with the numbers of a target in their place, where the diffuser reads these."""
    if "task" not in conditions.names:
        return y
    changed = y.clone()
    changed[..., conditions.channels("task")] = torch.tensor(conditions.of_task(task)).to(y)
    return changed


def ask(y: Tensor, conditions: Conditions, asked: Mapping[Askable, float], where: str) -> Tensor:
    """y (n, K*, 2 + C) with each asked condition at that quantile of itself: 0 the lowest of the n, 1 the highest.

    Raises PipelineError, which begins with `where`, for a condition that the diffuser was not pre-trained with.
    """
    changed = y.clone() if asked else y
    for name, share in asked.items():
        if name not in conditions.names:
            raise PipelineError(
                f"{where}: ask: the diffuser was pre-trained without the condition `{name}`: add it to "
                "diffuser.conditions"
            )
        place = conditions.channels(name)
        changed[..., place] = y[:, 0, place].quantile(share, dim=0)
    return changed
