"""One training loop: progress, losses to CSV and TensorBoard, bf16, clipping, schedules, EMA and exact resume.

Batches and noise are pure functions of (seed, step), so a checkpoint holds all that later steps depend on: weights,
moments, EMA, those to stop at, the step and the losses not yet written. Checkpoints are in the stage's work folder; two
are kept:

    .work/<stage>/<key>/<digest>/
        step-00001500.safetensors     model.*, ema.*, first.*, second.*, best.*; metadata: step, log, sums, best
        step-00001800.safetensors
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from pd_pipeline.compute import use_bf16
from pd_pipeline.config import MAX_STEPS, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.interruption import Interrupted, terminated
from pd_pipeline.models.weights import as_tensors, check_fit
from pd_pipeline.progress import Progress
from pd_pipeline.storage import load_arrays, remove, save_arrays, write_table
from pd_pipeline.training.adamw import AdamW
from pd_pipeline.training.ranks import ALONE, Ranks
from pd_pipeline.training.stopping import Best, Watch
from pd_pipeline.training.tensorboard import writer_for

StepCount = Annotated[int, Field(gt=0, le=MAX_STEPS)]
Rate = Annotated[float, Field(gt=0, le=100)]
BatchSize = Annotated[int, Field(gt=0, le=1_000_000)]
_log = logging.getLogger("pd_pipeline")


class OptimizationParams(Parameters):
    """How a model is trained."""

    steps: StepCount
    learning_rate: Rate
    weight_decay: float = Field(default=1e-4, ge=0, le=100)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = Field(default=100, ge=0, le=MAX_STEPS, description="steps of linear warm-up")
    clip: float | None = Field(default=0.25, gt=0, description="norm to which gradients are clipped")
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which training ends with; null: it ends with the last",
    )
    precision: Literal["auto", "bf16", "float32"] = Field(
        default="auto", description="auto: bf16 autocast where the hardware supports it"
    )
    log_every: StepCount = 50
    checkpoint_seconds: float = Field(default=20.0, ge=0, le=1e9)


class PretrainingParams(OptimizationParams):
    """How a model is trained that learns for minutes, not seconds."""

    compile: bool = Field(default=False, description="torch.compile: takes minutes, needs a C++ compiler on a CPU")


class Diverged(PipelineError):
    """The loss is no longer finite; a retry would give the same."""


@dataclass
class History:
    """What training logs: one row per `log_every` steps."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write as CSV; columns in order of appearance, empty where a row has no such value."""
        write_table(path, self.rows)


def learning_rate(params: OptimizationParams, step: int) -> float:
    """Learning rate at a step: linear warm-up, then constant or a cosine decay to 1 % of the peak."""
    if step < params.warmup:
        return params.learning_rate * (step + 1) / params.warmup
    if params.schedule == "constant":
        return params.learning_rate
    done = (step - params.warmup) / max(params.steps - params.warmup, 1)
    return params.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Checkpoint(NamedTuple):
    """A checkpoint as read from disk, checked against the trainer's model and parameters."""

    tensors: dict[str, Tensor]
    step: int
    rows: list[dict[str, float]]
    sums: dict[str, float]
    best: Best


class Trainer:
    """Trains the weights of a model that require gradients; `fit` resumes where it finds a checkpoint.

    Checkpoints leave out frozen weights, which do not change.
    """

    def __init__(self, model: nn.Module, params: OptimizationParams, work: Path, title: str, ranks: Ranks = ALONE):
        self.device = next(model.parameters()).device
        self.model, self.params, self.work, self.title, self.ranks = model, params, work, title, ranks
        self.bf16 = use_bf16(params.precision, self.device)
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ValueError(f"{title}: no weight of the model requires a gradient: there is nothing to train")
        self.optimizer = AdamW(self.trained, params.weight_decay)
        self.ema = {n: p.detach().clone() for n, p in self.trained.items()} if params.ema else {}
        self.history = History()
        self.best = Best()
        self.step = 0
        self.resumed_at = 0
        self._sums: dict[str, float] = {}  # of each value since the last row
        self._watch: Watch | None = None

    def backward(self, loss_of_step: Callable[[int], Tensor]) -> Callable[[int], dict[str, Tensor]]:
        """The `compute` argument of `fit` for a plain loss: forward under autocast, then backward."""

        def compute(step: int) -> dict[str, Tensor]:
            with self.autocast():
                loss = loss_of_step(step)
            loss.backward()
            return {"loss": loss.detach()}

        return compute

    def autocast(self) -> torch.autocast:
        """A context in which forward passes use the configured precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def fit(
        self,
        compute: Callable[[int], dict[str, Tensor]],
        progress: Progress,
        logs: Path | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        watch: Watch | None = None,
    ) -> History:
        """Train until the last step.

        `compute` fills the gradients for a step number and returns named values, `loss` among them, whose means become
        the logged rows; `evaluate` adds values to each row. In the end the weights are the moving average, where there
        is one, which `evaluate` and `watch` see too; with `watch` those of its lowest loss, which is logged as
        `held_out`. Raises Diverged where a value is not finite, and Interrupted after SIGTERM,
        once the state is saved.
        """
        self._watch = watch
        self._resume()
        if watch and not self.best.tensors:
            self._look(watch)
        writer = writer_for(logs if self.ranks.leads else None, self.step)
        saved = time.monotonic()
        with terminated() as stop, closing(writer):
            while self.step < self.params.steps:
                self._update(compute)
                self.step += 1
                seen = self._look(watch) if watch and watch.is_due(self.step, self.params.steps) else {}
                if self.step % self.params.log_every == 0 or self.step == self.params.steps:
                    row = self._log(evaluate, seen)
                    progress(self.title, self.step, self.params.steps, f"loss {row['loss']:.5f}")
                    for name, value in row.items():
                        writer.add_scalar(name, value, self.step)
                stopping = self.ranks.any(stop(), self.device)
                if stopping or time.monotonic() - saved > self.params.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
                if stopping:
                    raise Interrupted
        self._set(self.best.tensors or self.ema)
        return self.history

    @torch.no_grad()
    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.trained[name].copy_(tensor)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the weights are their moving average, where there is one."""
        last = {name: self.trained[name].detach().clone() for name in self.ema}
        self._set(self.ema)
        try:
            yield
        finally:
            self._set(last)

    def _look(self, watch: Watch) -> dict[str, float]:
        with self._averaged():
            with torch.no_grad(), self.autocast():
                loss = watch.loss()
            self.best.offer(loss, self.step, self.trained)
        return {"held_out": loss}

    def _update(self, compute: Callable[[int], dict[str, Tensor]]) -> None:
        self.optimizer.zero_grad()
        for name, value in self.ranks.means(compute(self.step)).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self.params.clip is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), self.params.clip)
        self.optimizer.step(learning_rate(self.params, self.step))
        if self.ema:
            assert self.params.ema is not None
            average, fresh = list(self.ema.values()), [p.detach() for p in self.trained.values()]
            torch._foreach_lerp_(average, fresh, 1 - min(self.params.ema, (1 + self.step) / (10 + self.step)))

    def _log(self, evaluate: Callable[[], dict[str, float]] | None, seen: dict[str, float]) -> dict[str, float]:
        count = self.step - (self.history.rows[-1]["step"] if self.history.rows else 0)
        means = {name: total / count for name, total in self._sums.items()}
        if bad := [name for name, mean in means.items() if not math.isfinite(mean)]:
            raise Diverged(
                f"{self.title}: {bad[0]} is {means[bad[0]]} before step {self.step}: lower the learning rate, or look "
                "for extreme values in the data"
            )
        row = {"step": self.step, **means, "learning_rate": learning_rate(self.params, self.step - 1), **seen}
        if evaluate is not None:
            with self._averaged():
                row |= evaluate()
        self.history.rows.append(row)
        self._sums = {}
        return row

    @property
    def precision(self) -> str:
        """The precision of forward passes, for a stage's record."""
        return "bf16" if self.bf16 else "float32"

    @property
    def _changing(self) -> dict[str, Tensor]:
        """The part of the model's state that training changes: trained weights, and buffers such as running means."""
        frozen = {n for n, p in self.model.named_parameters() if not p.requires_grad}
        return {n: t for n, t in self.model.state_dict().items() if n not in frozen}

    def _save(self) -> None:
        if not self.ranks.leads:
            return
        state = {f"model.{n}": t for n, t in self._changing.items()}
        state |= {f"ema.{n}": t for n, t in self.ema.items()}
        state |= {f"best.{n}": t for n, t in self.best.tensors.items()}
        state |= {f"first.{n}": t for n, t in self.optimizer.first.items()}
        state |= {f"second.{n}": t for n, t in self.optimizer.second.items()}
        arrays = {n: t.detach().cpu().numpy() for n, t in state.items()}
        best = {"loss": self.best.loss, "step": self.best.step}
        written = {"sums": self._sums, "log": self.history.rows, "best": best}
        metadata = {"step": str(self.step)} | {name: json.dumps(value) for name, value in written.items()}
        save_arrays(self.work / f"step-{self.step:08d}.safetensors", arrays, metadata)
        for old in sorted(self.work.glob("step-*.safetensors"))[:-2]:
            old.unlink()

    def _resume(self) -> None:
        """Resume from the newest usable checkpoint; unusable ones are removed with a warning."""
        for path in sorted(self.work.glob("step-*.safetensors"), reverse=True):
            try:
                found = self._read(path)
            except PipelineError as error:
                _log.warning("%s: removed an unusable checkpoint, resuming from before it: %s", self.title, error)
                remove(path)
                continue
            self._restore(found)
            return

    def _read(self, path: Path) -> Checkpoint:
        """Read a checkpoint. Raises PipelineError where it does not fit this model and these parameters."""
        arrays, metadata = load_arrays(path)
        like = {f"model.{n}": t for n, t in self._changing.items()}
        like |= {f"ema.{n}": t for n, t in self.ema.items()}
        like |= {f"{moment}.{n}": p for n, p in self.trained.items() for moment in ("first", "second")}
        like |= {f"best.{n}": p for n, p in self.trained.items() if self._watch}
        check_fit(path, arrays, like, "the model in training")
        try:
            step = int(metadata["step"])
            rows, sums, best = (json.loads(metadata[name]) for name in ("log", "sums", "best"))
            best_loss, best_step = float(best["loss"]), int(best["step"])
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PipelineError(f"{path}: its step, log, sums or best cannot be read: {error}") from None
        if not 0 < step <= self.params.steps or path.name != f"step-{step:08d}.safetensors":
            raise PipelineError(f"{path}: claims to be step {step} of {self.params.steps}")
        logged = [*range(self.params.log_every, step + 1, self.params.log_every)]
        if step == self.params.steps and step % self.params.log_every:
            logged.append(step)
        well_formed = isinstance(rows, list) and all(is_numbers(part) for part in (*rows, sums))
        if not well_formed or [row.get("step") for row in rows] != logged:
            raise PipelineError(f"{path}: its log does not match {step} steps")
        tensors = as_tensors(arrays, self.device)
        kept = {n: tensors[f"best.{n}"] for n in self.trained if self._watch}
        return Checkpoint(tensors, step, rows, sums, Best(best_loss, best_step, kept))

    def _restore(self, found: Checkpoint) -> None:
        """Set the state to that of a checkpoint."""
        tensors, self.step, self.history.rows, self._sums, self.best = found
        self.resumed_at = self.step
        self.model.load_state_dict({n: tensors[f"model.{n}"] for n in self._changing}, strict=False)
        for name in self.ema:
            self.ema[name].copy_(tensors[f"ema.{name}"])
        first, second = ({n: tensors[f"{moment}.{n}"] for n in self.trained} for moment in ("first", "second"))
        self.optimizer.restore(self.step, first, second)


def is_numbers(value: Any) -> bool:
    """Whether `value` maps names to numbers."""
    return isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values())
