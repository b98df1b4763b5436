"""The plan of a study: what its stage collects. It is the parameters of the stage, so it is in its record."""

from typing import Any

from pydantic import Field

from pd_pipeline.config import Parameters


class PlannedPoint(Parameters):
    """One point of the grid and its folders, relative to the project."""

    label: str
    values: dict[str, Any] = Field(description="parameter of the grid -> its value at this point")
    seeds: tuple[int, ...]
    targets: dict[str, tuple[int, ...]] = Field(description="family -> its target tasks")
    bootstrap: dict[str, int | None] = Field(description="family -> bootstrap draws per interval; null: the default")
    evaluation: dict[str, str] = Field(description="`family-seed` -> folder")
    tuned: dict[str, dict[str, str]] = Field(description="method -> `family-seed` -> folder of its targets' folders")
    fits: dict[str, str] = Field(description="`family-seed` -> folder of prompt_fit, if methods generate prompts")


class Plan(Parameters):
    """The parameters of the stage of a study."""

    title: str
    note: str = ""
    names: tuple[str, ...] = Field(description="parameters of the grid")
    points: tuple[PlannedPoint, ...] = Field(min_length=1)
