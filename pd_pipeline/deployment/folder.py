"""The policy folder: what a tuned policy needs to act, in files that can be copied to another machine.

    policy.json              what it is and what it was made from (`Description`)
    plm/                     the weights that act, as `models.saved_policy` writes them
    prefix.safetensors       keys and values of what stands in front of the window, for every block
    sample.safetensors       observations and rewards of one few-shot trajectory, to try the policy on
    lineage.json             all that it comes from, back to raw trajectories (`ancestry.Ancestry`)

Every adaptation acts as weights and a prefix (`acting.actors`), so the folder is the same for all methods, and to load
it runs no code of a method. The versions of a target are policy folders too:

    data/promoted/reach-5/
        current.json         {"version": 2}
        0001/  0002/         policy folders
"""

import re
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from pd_pipeline.config import Name, Parameters, Seed
from pd_pipeline.decisions import CURRENT, PROMOTED, current
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.storage import file_digest, read_json, read_model

FORMAT: Final = 1
FILE = "policy.json"
PLM = "plm"
PREFIX = "prefix.safetensors"
SAMPLE = "sample.safetensors"
LINEAGE = "lineage.json"
CONTENTS = (FILE, PLM, PREFIX, SAMPLE, LINEAGE)

_TARGET = re.compile(r"[A-Za-z_][\w-]*-\d+")


class Description(Parameters):
    """`policy.json`."""

    format: Literal[1] = FORMAT
    family: Name
    task: int
    seed: Seed
    method: Name = Field(description="the method or variant, as in run.methods")
    varies: Name = Field(description="the method itself; for a variant, the method it varies")
    module: str = Field(description="the module of the method")
    frozen: bool = Field(description="whether the PLM's weights are unchanged")
    requires_grad: bool = Field(
        description="whether the weights required gradients in evaluation: PyTorch multiplies in another order then"
    )
    observation_size: int = Field(gt=0)
    action_size: int = Field(gt=0)
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    horizon: int = Field(gt=0, description="steps of an episode")
    acting_context: int = Field(gt=0, description="steps of the current episode that the policy sees")
    target_return: float = Field(description="the return that the policy is asked for")
    precision: Literal["float32", "bf16"]
    actor: int = Field(ge=0, description="which of the actors of the adaptation this is: the number of its prompt")
    origin: str = Field(description="where its prompt comes from")
    origin_step: int
    actor_losses: tuple[float, ...] = Field(description="action loss of each actor on the few-shot trajectories")
    chosen_by: str = Field(description="why this actor")
    versions: dict[str, str] = Field(description="package -> the version it was written with")
    made_from: dict[str, str] = Field(description="file of the outs it was made from -> SHA-256")
    files: dict[str, str] = Field(description="file of this folder -> SHA-256")

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        if {len(self.action_low), len(self.action_high)} != {self.action_size}:
            raise ValueError("action_low and action_high need action_size numbers each")
        return self


def describe(folder: Path) -> Description:
    """Read policy.json. Raises PipelineError if it is missing, damaged or of another format version."""
    path = folder / FILE
    if not path.is_file():
        raise PipelineError(f"{path}: no such file: {folder} is not a policy folder")
    found = read_json(path).get("format")
    if found != FORMAT:
        raise PipelineError(
            f"{path}: format version {found}, but this version of pd_pipeline reads {FORMAT}: write the policy again, "
            "or load it with the version of pd_pipeline that wrote it"
        )
    return read_model(path, Description, ": copy the whole policy folder again")


def check_files(folder: Path, description: Description) -> None:
    """Raise PipelineError unless the folder's files are those that were written."""
    for name, digest in description.files.items():
        path = folder / name
        if not path.is_file():
            raise PipelineError(f"{path}: no such file: copy the whole policy folder again")
        if file_digest(path).hex() != digest:
            raise PipelineError(f"{path}: damaged: not the file that was written: copy the whole policy folder again")


def current_policy(folder: Path) -> Path:
    """The policy folder that is in use among the numbered versions in `folder`. Raises PipelineError."""
    version = current(folder).version
    policy = folder / f"{version:04d}"
    if not policy.is_dir():
        raise PipelineError(f"{folder / CURRENT}: names version {version}, but there is no folder {policy}")
    return policy


def locate(path_or_target: str | Path) -> Path:
    """The policy folder of a path, or of a target such as `reach-5` below data/promoted/.

    A path is a policy folder, or a folder with the versions of a target. Raises PipelineError if there is none.
    """
    path = Path(path_or_target)
    is_target = isinstance(path_or_target, str) and _TARGET.fullmatch(path_or_target) and not path.exists()
    if is_target and not (path := PROMOTED / path).is_dir():
        raise PipelineError(
            f"{path}: no such folder: no policy of target {path_or_target} is in use here (`pd-pipeline promote "
            f"{path_or_target}` puts a tuned one in use), and there is no policy folder {path_or_target} either"
            f"{_suggested(str(path_or_target))}"
        )
    if not path.is_dir():
        raise PipelineError(
            f"{path}: no such folder: name a policy folder, or a target such as reach-5{_suggested(path.name)}"
        )
    if not (path / FILE).exists() and (path / CURRENT).exists():
        return current_policy(path)
    return path


def _suggested(name: str) -> str:
    """What to name instead, among the targets with a policy in use below the working directory."""
    targets = sorted(path.parent.name for path in PROMOTED.glob(f"*/{CURRENT}"))
    return f": {suggestion(name, targets)}" if targets else ""


def refuse_other_contents(folder: Path, *known: str) -> None:
    """Raise PipelineError if `folder` holds anything but `known`: it would be replaced as a whole."""
    others = sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.is_dir() else []
    if others:
        raise PipelineError(f"{folder}: holds {others[0]}, and would be replaced as a whole: name another folder")
    if folder.exists() and not folder.is_dir():
        raise PipelineError(f"{folder}: not a folder: name another one")
