"""What does the pieces of work of a graph: this process, or a cluster.

Either way this process decides what is up to date, holds the locks and records lineage; an engine only computes.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pd_pipeline.engines.order import Piece
from pd_pipeline.piece import Compute
from pd_pipeline.progress import Progress, console
from pd_pipeline.stage import Key


class Engine(Protocol):
    """Computes pieces of work."""

    @property
    def compute(self) -> Compute | None:
        """Called as `piece.run_piece`; None: that itself."""

    def each(
        self,
        pieces: Sequence[Piece],
        needs: Callable[[str, Key], Iterable[Piece]],
        work: Callable[[str, Key], Any],
    ) -> None:
        """Call `work` for each of `pieces`, which are in an order that has what one of them `needs` before it."""

    def progress(self) -> AbstractContextManager[Progress]:
        """Where a piece of work reports its progress."""


class Local:
    """One piece of work after the other, in this process."""

    compute: Compute | None = None

    def each(
        self,
        pieces: Sequence[Piece],
        needs: Callable[[str, Key], Iterable[Piece]],
        work: Callable[[str, Key], Any],
    ) -> None:
        """In the order given."""
        for stage, key in pieces:
            work(stage, key)

    def progress(self) -> AbstractContextManager[Progress]:
        """A bar on a terminal, otherwise lines."""
        return console()


LOCAL = Local()
