"""What training logs for TensorBoard."""

from pathlib import Path
from typing import Any


class _NoWriter:
    """Replaces TensorBoard's writer where nothing is logged for it."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def writer_for(logs: Path | None, step: int) -> Any:
    """TensorBoard's writer of files in `logs`, from `step` on; None: one that writes nothing."""
    if logs is None:
        return _NoWriter()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(logs), purge_step=step)
