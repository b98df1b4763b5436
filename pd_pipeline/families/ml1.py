"""Any task of Meta-World's ML1 as a family, by its name: `meta_world: push-v3`."""

from typing import Any

from pydantic import Field

from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.families.meta_world import MetaWorld, MetaWorldParams

BENCHMARK_TASKS = 50
"""Number of training tasks in an ML1 benchmark."""


class ML1Params(MetaWorldParams):
    """Parameters of an ML1 task."""

    meta_world: str = Field(
        pattern=r"^[a-z]+(-[a-z]+)*-v\d$", max_length=60, description="Meta-World's name of the task"
    )
    horizon: int = Field(default=500, gt=0, le=500, description="steps per episode; Meta-World allows at most 500")
    tasks: int = Field(
        default=BENCHMARK_TASKS, gt=1, le=BENCHMARK_TASKS, description="number of tasks: the first of ML1's fifty"
    )
    test_tasks: tuple[int, ...] = Field(
        default=(10, 16, 24, 35, 40), min_length=1, description="targets of the split published"
    )
    validation_tasks: tuple[int, ...] = Field(
        default=(3, 12, 21, 30, 44), min_length=1, description="targets of the split validation"
    )
    success_radius: float = Field(
        default=0.05, gt=0, le=1, description="radius in metres of the ball that marks the goal in images"
    )
    gain: float = Field(default=1.0, gt=0, le=10, description="factor by which the expert scales the script's actions")
    noise: float = Field(
        default=0.05, ge=0, le=10, description="standard deviation of the noise on the expert's actions"
    )


class ML1(MetaWorld):
    """One task of Meta-World's ML1, such as push-v3, each variation with its own hidden goal.

        families:
          push:
            environment: {meta_world: push-v3}

    Observation, action and reward are those of `MetaWorldEnv`; objects of the scene take the place of the puck. Where
    the goal is that of one, such as a door or a button, it can be seen unless `mask_object` hides it. Success is
    defined by Meta-World. Expert: Meta-World's script for the task with a little noise. Medium: half the gain and more
    noise. Both start with up to five steps in a random direction. How well the script solves a task varies: check the
    success rate of the collected data before training on it.
    """

    Params = ML1Params
    params: ML1Params

    def __init__(self, name: str, params: ML1Params):
        where = f"{PARAMS_FILE}: families.{name}.environment"
        from metaworld.policies import ENV_POLICY_MAP  # takes half a second, which other families do not need

        if params.meta_world not in ENV_POLICY_MAP:
            hint = suggestion(params.meta_world, sorted(ENV_POLICY_MAP))
            raise PipelineError(f"{where}.meta_world: '{params.meta_world}' is not a task of Meta-World: {hint}")
        in_use = "validation_tasks" if params.split == "validation" else "test_tasks"
        for split in ("test_tasks", in_use):
            if outside := [task for task in getattr(params, split) if not 0 <= task < params.tasks]:
                raise PipelineError(f"{where}.{split}: {outside} are not among tasks 0 to {params.tasks - 1}")
        self._script: Any = ENV_POLICY_MAP[params.meta_world]
        self.environment, self.tasks = params.meta_world, range(params.tasks)
        self.targets = {"published": params.test_tasks, "validation": params.validation_tasks}
        self.success_radius = params.success_radius
        super().__init__(name, params)

    def script(self) -> Any:
        """Meta-World's script for the task."""
        return self._script()

    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """Expert: the script with a little noise, so that episodes differ. Medium: less gain and more noise."""
        start = {"exploring_steps": 5}
        return {
            "expert": {"gain": self.params.gain, "noise": self.params.noise, "reset": start},
            "medium": {"gain": 0.5 * self.params.gain, "noise": self.params.noise + 0.3, "reset": start},
            "random": {"random": True},
        }
