"""The context that a stage function gets: the same from the CLI, DVC and Dagster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pd_pipeline.config import ParamsFile
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.progress import Progress

P = TypeVar("P")
R = TypeVar("R")


class Spread(Protocol):
    """Has parts of a piece of work computed side by side on the machines of a cluster."""

    def __call__(self, work: Callable[["StageContext", Sequence[P]], Iterable[R]], parts: Sequence[P]) -> Iterator[R]:
        """Call `work` with some of `parts` at a time; yields what it yields, in any order.

        `work` can be imported by name. It gets the context of the machine where it is called and leaves files in its
        work folder alone; these are in the work folder of this machine when what it yields arrives here.
        """


@dataclass(frozen=True)
class Key:
    """Identifies one piece of work of a stage: only the axes of the stage are set."""

    family: str | None = None
    task: int | None = None
    seed: int | None = None

    def __str__(self) -> str:
        """`reach`, `reach-0` (family, seed), `reach-15-0` (family, task, seed); empty without axes."""
        return "-".join(str(part) for part in (self.family, self.task, self.seed) if part is not None)


@dataclass(frozen=True)
class StageContext:
    """Inputs, outputs and parameters of one piece of work."""

    root: Path
    stage: str
    key: Key
    params: Any
    """The stage's own Params, validated."""
    module: str
    """The module that defines them: for a tuning stage, the module of its method."""
    environment: dict[str, Any]
    """The `environment` block of the family in params.yaml; empty for a stage without the family axis."""
    modules: dict[str, str]
    """Stage -> the module of its Params, for all stages that work on one family."""
    inputs: dict[str, Path]
    """Upstream stage -> the path of its out, or the parent directory of several outs."""
    out: Path
    """Empty directory; it becomes the out when the function returns."""
    work: Path
    """Directory that is kept after a kill and removed on success; specific to these inputs, parameters and code."""
    logs: Path
    """Directory for TensorBoard files: not part of the out, since they contain times and host names."""
    progress: Progress
    params_file: ParamsFile
    """All of params.yaml, as this piece of work is recorded with it."""
    facts: dict[str, str] = field(default_factory=dict)
    """Set by the stage: the `device` and `precision` it used, for the record."""
    spread: Spread | None = None
    """Where other machines compute for this piece; None: it computes everything itself."""

    @cached_property
    def family(self) -> Family:
        """The task family of the key."""
        assert self.key.family is not None, f"stage {self.stage} has no family axis"
        return load_family(self.key.family, self.environment, self.root)

    @property
    def device(self) -> str:
        """The device to compute on, as named in params.yaml."""
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
