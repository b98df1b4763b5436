"""Data-parallel training: every process computes on its share of a batch, and all take the step of the whole batch.

Each rank draws the same batch and keeps its own samples of it. PyTorch's DistributedDataParallel averages the gradients
of the ranks; a rank's loss is weighted by how much of the batch it has, so that this average is the gradient of the
whole. Weights, moments and logs are therefore the same on all ranks, and the first one alone writes them.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pd_pipeline.progress import silent
from pd_pipeline.stage import StageContext
from pd_pipeline.storage import remove
from pd_pipeline.workers import Answer, Workers, cores

PATIENCE = 14 * 86_400.0
"""Seconds: the other ranks answer when training is done."""
T = TypeVar("T")


class Ranks(NamedTuple):
    """Which of `size` processes this one is."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this process writes what all have."""
        return self.rank == 0

    def share(self, batch: T) -> T:
        """The samples of this rank: every `size`-th of each tensor (B, ...) of a batch."""
        return _every(batch, self) if self.size > 1 else batch

    def seed_step(self, step: int) -> int:
        """A number per step and rank, for what each rank draws for itself, such as dropout."""
        return step * self.size + self.rank

    def weighted(self, loss: Tensor, weight: Tensor) -> Tensor:
        """The loss of this share, such that its mean over the ranks is that of the batch.

        `weight` (): over how much of it the loss is a mean.
        """
        if self.size == 1:
            return loss
        total = weight.detach().float().clone()
        dist.all_reduce(total)
        return loss * (weight * self.size / total)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """`model`, or what calls it and averages its gradients over the ranks during a backward pass."""
        return nn.parallel.DistributedDataParallel(model) if self.size > 1 else model

    def means(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the ranks."""
        if self.size == 1:
            return {name: float(value) for name, value in values.items()}
        found = torch.stack([value.detach().float() for value in values.values()])
        dist.all_reduce(found)
        return dict(zip(values, (found / self.size).tolist(), strict=True))

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether one of the ranks says so."""
        if self.size == 1:
            return flag
        found = torch.tensor(float(flag), device=device)
        dist.all_reduce(found)
        return bool(found > 0)

    def device(self, device: torch.device) -> torch.device:
        """The device of this rank: the GPUs in turn, from the one that is named on."""
        if self.size == 1 or device.type != "cuda":
            return device
        return torch.device("cuda", ((device.index or 0) + self.rank) % torch.cuda.device_count())


ALONE = Ranks(0, 1)
"""A process that trains by itself."""


def _every(part: Any, ranks: Ranks) -> Any:
    if isinstance(part, Tensor):
        return part[ranks.rank :: ranks.size]
    return type(part)(*(_every(each, ranks) for each in part))


def in_processes(train: Callable[[StageContext, Ranks], T], context: StageContext, count: int) -> T:
    """Call `train`, a function of a module, in `count` processes; this is the first of them, and its result counts.

    Raises PipelineError where another one fails or dies.
    """
    if count == 1:
        return train(context, ALONE)
    context.work.mkdir(parents=True, exist_ok=True)
    meeting = context.work / f"ranks-{os.getpid()}"
    remove(meeting)  # of an earlier process with this number
    others = replace(context, progress=silent, spread=None)
    arguments = [(train, others, Ranks(rank, count), meeting) for rank in range(1, count)]
    where = f"{context.stage} {context.key}"
    with Workers(_member, arguments, where, f"lower {context.stage}.processes", PATIENCE) as workers:
        workers.send([True] * (count - 1))
        try:
            with _joined(Ranks(0, count), meeting, context.device):
                found = train(context, Ranks(0, count))
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):  # the connection to another rank broke
                workers.gather()  # which says why
            raise  # of this rank: the others see no more than that it has gone
        workers.gather()
    remove(meeting)
    return found


def _member(train: Callable[[StageContext, Ranks], Any], context: StageContext, ranks: Ranks, meeting: Path) -> Answer:
    def answer(message: Any) -> None:
        with _joined(ranks, meeting, context.device):
            train(context, ranks)

    return answer


@contextmanager
def _joined(ranks: Ranks, meeting: Path, device: str) -> Iterator[None]:
    """Connected with the other ranks, by the file `meeting`, and computing on this rank's share of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // ranks.size))
    a_gpu_each = device != "cpu" and torch.cuda.device_count() >= ranks.size
    backend = "nccl" if a_gpu_each else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=ranks.rank, world_size=ranks.size)
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(before)
