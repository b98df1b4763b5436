"""What does the pieces of work of a graph: this process, or a cluster.

Either way this process decides what is up to date, holds the locks and records lineage; an engine only computes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import Protocol

from pd_pipeline.engines.order import Piece, R
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.piece import Compute
from pd_pipeline.progress import Progress, console
from pd_pipeline.stage import Key

ENGINE = "PD_PIPELINE_ENGINE"
"""Variable with the engine to use where a command names none, for `dvc repro` and Dagster."""


class EngineName(StrEnum):
    """What computes pieces of work."""

    LOCAL = "local"
    RAY = "ray"


class Engine(Protocol):
    """Computes pieces of work."""

    @property
    def compute(self) -> Compute | None:
        """Called as `piece.run_piece`; None: that itself."""

    def results(
        self,
        pieces: Sequence[Piece],
        needs: Callable[[str, Key], Iterable[Piece]],
        work: Callable[[str, Key], R],
    ) -> Iterator[R]:
        """Call `work` for each of `pieces`, and yield what it returns as it is done.

        `pieces` are in an order that has what one of them `needs` before it.
        """

    def progress(self) -> AbstractContextManager[Progress]:
        """Where a piece of work reports its progress."""


class Local:
    """One piece of work after the other, in this process."""

    compute: Compute | None = None

    def results(
        self,
        pieces: Sequence[Piece],
        needs: Callable[[str, Key], Iterable[Piece]],
        work: Callable[[str, Key], R],
    ) -> Iterator[R]:
        """In the order given."""
        for stage, key in pieces:
            yield work(stage, key)

    def progress(self) -> AbstractContextManager[Progress]:
        """A bar on a terminal, otherwise lines."""
        return console()


LOCAL = Local()


def chosen(name: str | None = None) -> AbstractContextManager[Engine]:
    """The engine with this name, or the one named in the environment, ready to compute.

    Raises PipelineError for a name that is none, and where there is no such cluster.
    """
    asked = name or os.environ.get(ENGINE) or EngineName.LOCAL
    if asked not in [*EngineName]:
        raise PipelineError(f"{ENGINE}: {asked}: {suggestion(asked, [*EngineName])}")
    if asked == EngineName.RAY:
        from pd_pipeline.engines.on_ray import connected

        return connected()
    return nullcontext(LOCAL)
