"""`summary.json` of a tuned out: the inputs and the cost of the method, and what evaluation needs."""

from pathlib import Path

from pydantic import Field

from pd_pipeline.config import Name, Parameters
from pd_pipeline.storage import read_model, write_json

FILE = "summary.json"


class Summary(Parameters):
    """One target's summary.

    Unless `target.target_return` sets it, `target_return` is the mean return of the target's own few-shot
    trajectories: it is known and can be reached. Their best return may not be: it can come from a start near the goal.
    For a method without demonstrations, it is the median return of the training tasks.
    """

    method: Name = Field(description="the method; for a variant, the method it varies")
    frozen: bool = Field(description="whether the PLM's weights are unchanged")
    quality: Name
    few_shot: int = Field(ge=0, description="number of trajectories of the target that the method was given")
    few_shot_episodes: tuple[int, ...]
    choose: str = Field(description="the rule by which they were chosen")
    prompt_quality: Name = Field(description="quality of the trajectories that prompts are cut from")
    prompt_episodes: tuple[int, ...] = Field(description="those of the target that they are cut from")
    shown_task: int = Field(description="task of the trajectories shown to the method: the target or another")
    shown_episodes: tuple[int, ...]
    target_return: float = Field(ge=-1e30, le=1e30)
    candidates: int | None = Field(gt=0)
    chain: int | None = Field(gt=0, description="steps of the reverse chain of the tuned generator")
    tuned_parameters: int = Field(ge=0)
    plm_forward: int = Field(ge=0, description="sequences that went through the PLM")
    plm_backward: int = Field(ge=0, description="sequences that had a backward pass")
    environment_episodes: int = Field(ge=0)
    fell_back: bool = Field(description="whether drawn prompts took the place of what the method left")


def save(directory: Path, summary: Summary) -> None:
    """Write the summary of an out."""
    write_json(directory / FILE, summary.model_dump(mode="json"))


def load(directory: Path) -> Summary:
    """Read the summary of an out. Raises PipelineError if it is missing or invalid."""
    return read_model(directory / FILE, Summary)
