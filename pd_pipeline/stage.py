"""What a stage function is given: one object, the same from every door."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pd_pipeline.config import ParamsFile
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.progress import Progress


@dataclass(frozen=True)
class Key:
    """Which piece of a stage: only the axes that the stage has are set."""

    family: str | None = None
    task: int | None = None
    seed: int | None = None

    def __str__(self) -> str:
        """`reach`, `reach-0` (family, seed), `reach-15-0` (family, task, seed); empty without axes."""
        return "-".join(str(part) for part in (self.family, self.task, self.seed) if part is not None)


@dataclass(frozen=True)
class StageContext:
    """Inputs, outputs and parameters of one run of one stage."""

    root: Path
    stage: str
    key: Key
    params: Any
    """The stage's own Params, validated."""
    module: str
    """Where these are defined: of a tuning stage, the module of its method."""
    environment: dict[str, Any]
    """The family's `environment` block of params.yaml; empty for a stage without the family axis."""
    modules: dict[str, str]
    """Stage of the graph -> the module of its Params, for all families' stages."""
    inputs: dict[str, Path]
    """Upstream stage -> the file or directory of its out (a parent directory where it has several keys)."""
    out: Path
    """Empty directory that becomes the out when the function returns."""
    work: Path
    """Directory that survives a kill and is removed on success; only of these inputs, parameters and code."""
    logs: Path
    """Directory for TensorBoard files: not an out, since they hold times and host names."""
    progress: Progress
    params_file: ParamsFile
    """All of params.yaml, from the one reading that this piece of work is recorded with."""
    facts: dict[str, str] = field(default_factory=dict)
    """Filled by the stage: `device` and `precision` it computed with, for the record beside the out."""

    @cached_property
    def family(self) -> Family:
        """The task family of the key."""
        assert self.key.family is not None, f"stage {self.stage} has no family axis"
        return load_family(self.key.family, self.environment, self.root)

    @property
    def device(self) -> str:
        """What to compute on, as params.yaml names it."""
        return self.params_file.machine.device

    @property
    def seed(self) -> int:
        """The seed of the key."""
        assert self.key.seed is not None, f"stage {self.stage} has no seed axis"
        return self.key.seed

    @property
    def task(self) -> int:
        """The target task of the key."""
        assert self.key.task is not None, f"stage {self.stage} has no task axis"
        return self.key.task
