"""Which policy of a target is in use, and the decisions on it: data/promoted/<target>/.

    current.json                           the version in use, since when, and by which decision
    decisions/0001.json  0002.json  ...    what was decided

They are written by `deployment.promotion`, and read by the report.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import Field

from pd_pipeline.config import Name, Parameters, Seed
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import read_model, write_json

PROMOTED = Path("data/promoted")
CURRENT = "current.json"
DECISIONS = "decisions"
_DAMAGED = ": bring it back from a copy, or remove it: then it is forgotten what was decided there, and policies stay"
_TARGET = re.compile(r"(.+)-\d+")
Outcome = Literal["promoted", "refused", "rolled back"]


class Current(Parameters):
    """`current.json`."""

    version: int = Field(gt=0, strict=True, description="the version in use")
    since: str = Field(default="", description="UTC time, ISO 8601")
    decision: int = Field(default=0, ge=0, description="number of the decision that put it in use")


class Decision(Parameters):
    """`decisions/NNNN.json`."""

    outcome: Outcome
    version: int | None = Field(description="the version that is in use since this decision; null: none changed")
    against: int | None = Field(description="the version that was in use before")
    reason: str
    decided: str = Field(description="UTC time, ISO 8601")
    family: Name
    task: int
    seed: Seed
    method: Name
    measure: str | None = Field(default=None, description="return, or action_loss, of which less is better")
    count: int | None = Field(default=None, description="episodes or held-out trajectories of either policy")
    candidate: float | None = Field(default=None, description="mean of the new policy")
    in_use: float | None = Field(default=None, description="mean of the policy in use")
    better_by: tuple[float, float, float] | None = Field(
        default=None, description="mean by which the new one is better, and its paired 95 % interval"
    )
    margin: float | None = Field(default=None, description="how much worse it may be")
    used_episodes: dict[str, tuple[int, ...]] = Field(
        default={}, description="quality -> few-shot episodes that the new policy was tuned on"
    )
    used_digests: dict[str, tuple[str, ...]] = Field(
        default={}, description="the same episodes by SHA-256: their numbers change when the family gets more data"
    )
    made_from: dict[str, str] = Field(default={}, description="file of the outs it was made from -> SHA-256")


def folder_of(root: Path, target: str) -> Path:
    """The folder of a target such as `reach-5`."""
    return root / PROMOTED / target


def folders(root: Path, families: Collection[str]) -> list[Path]:
    """The folders of decisions of all targets of some families on which there is one, sorted."""
    return sorted(
        folder
        for folder in (root / PROMOTED).glob(f"*/{DECISIONS}")
        if (target := _TARGET.fullmatch(folder.parent.name)) and target[1] in families and any(folder.glob("*.json"))
    )


def decisions(root: Path, target: str) -> list[Decision]:
    """All decisions on a target, the oldest first. Raises PipelineError where one is damaged."""
    return decisions_in(folder_of(root, target))


def decisions_in(folder: Path) -> list[Decision]:
    """All decisions in the folder of a target, the oldest first. Raises PipelineError where one is damaged."""
    return [*numbered(folder).values()]


def numbered(folder: Path) -> dict[int, Decision]:
    """Number -> decision, of all in the folder of a target, the oldest first; numbers may be missing.

    Raises PipelineError where one is damaged.
    """
    files = {int(file.stem): file for file in (folder / DECISIONS).glob("*.json") if file.stem.isdecimal()}
    return {number: read_model(files[number], Decision, _DAMAGED) for number in sorted(files)}


def current(folder: Path) -> Current:
    """Which version of the target with this folder is in use. Raises PipelineError."""
    path = folder / CURRENT
    if not path.is_file():
        raise PipelineError(f"{path}: no such file: no policy of this target is in use")
    try:
        return read_model(path, Current)
    except PipelineError:
        again = f"`pd-pipeline promote {folder.name}` writes it again, from the decisions beside it"
        raise PipelineError(f"{path}: damaged: {again}") from None


def current_if_any(folder: Path) -> Current | None:
    """What `current` gives; None if no policy of the target is in use. Raises PipelineError."""
    return current(folder) if (folder / CURRENT).is_file() else None


def write_decision(folder: Path, decision: Decision, number: int) -> None:
    """Write the decision with this number to the folder of its target."""
    write_json(folder / DECISIONS / f"{number:04d}.json", decision.model_dump(mode="json"))
