"""What a tuned out says of itself, in `summary.json`: what the method was given, what it cost, how to evaluate it."""

from pathlib import Path

from pydantic import Field

from pd_pipeline.config import Name, Parameters
from pd_pipeline.storage import read_model, write_json

FILE = "summary.json"


class Summary(Parameters):
    """One target's summary.

    `target_return` is the mean return of the target's own few-shot trajectories: known to whoever has them, and
    reachable. Their best is not: it may owe its return to a start near the goal.
    """

    method: Name = Field(description="what a variant varies, else the method itself")
    frozen: bool = Field(description="whether the PLM's weights are as they were")
    quality: Name
    few_shot: int = Field(gt=0, description="number of trajectories of the target")
    few_shot_episodes: tuple[int, ...] = Field(min_length=1)
    shown_task: int = Field(description="whose trajectories the method was given: the target's, or another's")
    shown_episodes: tuple[int, ...] = Field(min_length=1)
    target_return: float = Field(ge=-1e30, le=1e30)
    candidates: int | None = Field(gt=0)
    chain: int | None = Field(gt=0, description="steps of the reverse chain that the prompts come from")
    tuned_parameters: int = Field(ge=0)
    plm_forward: int = Field(ge=0, description="sequences that went through the PLM")
    plm_backward: int = Field(ge=0, description="of these, with a gradient")
    environment_episodes: int = Field(ge=0)


def save(directory: Path, summary: Summary) -> None:
    """Write the summary of an out."""
    write_json(directory / FILE, summary.model_dump(mode="json"))


def load(directory: Path) -> Summary:
    """Read the summary of an out. Raises PipelineError where it is missing or broken."""
    return read_model(directory / FILE, Summary)
