"""The last episodes of a budget, put aside to have the most promising choices act again.

The best of many returns is above what its choice returns on average, since starts are drawn and some of them are easy.
"""

from pydantic import Field

from pd_pipeline.config import Parameters


class ConfirmParams(Parameters):
    """A budget of episodes, and the part of it that is put aside."""

    episodes: int = Field(default=50, gt=0, le=1_000_000, description="per target, in its environment")
    confirm: float = Field(
        default=0.0, ge=0, lt=1, description="share of the episodes, the last ones, that try the best choices again"
    )

    @property
    def searching(self) -> int:
        """Episodes before those that confirm, at least one."""
        return max(1, self.episodes - round(self.confirm * self.episodes))
