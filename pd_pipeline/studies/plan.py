"""What the stage of a study gathers: it is given as the stage's parameters, and so stands in its record."""

from typing import Any

from pydantic import Field

from pd_pipeline.config import Parameters


class PlannedPoint(Parameters):
    """One point of the grid, and where what was made of it lies. Folders are relative to the project."""

    label: str
    values: dict[str, Any] = Field(description="parameter of the grid -> its value here")
    seeds: tuple[int, ...]
    targets: dict[str, tuple[int, ...]] = Field(description="family -> its target tasks")
    bootstrap: dict[str, int | None] = Field(description="family -> draws of an interval; null: the default")
    evaluation: dict[str, str] = Field(description="`family-seed` -> folder")
    tuned: dict[str, dict[str, str]] = Field(description="method -> `family-seed` -> folder of its targets' folders")
    fits: dict[str, str] = Field(description="`family-seed` -> folder of prompt_fit, where methods generate prompts")


class Plan(Parameters):
    """A study as it is gathered."""

    title: str
    note: str = ""
    names: tuple[str, ...] = Field(description="parameters of the grid")
    points: tuple[PlannedPoint, ...] = Field(min_length=1)
