"""How many trajectories are enough to be scored on."""

from pd_pipeline.errors import PipelineError

LEAST_HELD_OUT = 2
"""Held-out trajectories that an interval needs."""


class TooFew(PipelineError):
    """Too few trajectories of a target are left to be scored on."""

    def __init__(self, task: int, left: int, quality: str):
        super().__init__(
            f"task {task}: {left} of the {LEAST_HELD_OUT} trajectories of quality '{quality}' that an interval needs "
            "are left to be scored on: bring more, or use fewer (target.few_shot)"
        )
