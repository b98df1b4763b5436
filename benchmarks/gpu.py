"""Figures of one accelerator, in pieces: that it computes what the CPU does, and how fast it trains, tunes and acts.

    python -m benchmarks.gpu                          # every piece that results/gpu/<card>.json lacks
    python -m benchmarks.gpu tuning --again           # one piece once more
    python -m benchmarks.gpu --device cpu --quick     # small sizes on any machine; writes no result

A piece takes a minute or two, and is saved when it is done; after `--minutes` no further one is begun. It needs the
library alone: no simulator, Dagster or DVC. Data is synthetic, of the size of a Meta-World data set.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Figure, as_json, at_least, machine, share_of, show
from benchmarks.correctness import differences
from benchmarks.device import BATCH, CONTEXT, SHAPES, Bench
from benchmarks.training import matmul_rate, operations, training_step
from pd_pipeline.acting.actors import Started, prompted
from pd_pipeline.compute import pick_device, use_bf16
from pd_pipeline.models.decision_transformer import Steps
from pd_pipeline.progress import silent
from pd_pipeline.storage import atomic_file
from pd_pipeline.tuning import prompt_diffuser, prompt_gradient
from pd_pipeline.tuning.protocol import Run

RESULTS = Path(__file__).parent.parent / "results" / "gpu"
CPU = torch.device("cpu")

Measured = tuple[list[Figure], dict[str, Any]]


def correctness(bench: Bench) -> Measured:
    """Losses, gradients, prompts, actions and resuming against the CPU; see `correctness`."""
    return differences(bench), {"bf16": use_bf16("auto", bench.device)}


def plm(bench: Bench, shape: str) -> Measured:
    """Samples per second of PLM training, against what the matrix products alone would take; then compiled."""
    limit = matmul_rate(bench)
    figures: list[Figure] = []
    plain = 0.0
    details: dict[str, Any] = {"matmul_tflops": limit / 1e12, "batch": BATCH}
    modes = {"eager": None} if bench.quick else {"eager": None, "compiled": "default", "CUDA graphs": "reduce-overhead"}
    for name, mode in modes.items():
        torch._dynamo.reset()  # of another shape or mode, what was compiled before would make sizes unknown
        policy = bench.policy(shape, bench.device, dropout=0.1).train()
        if name == "eager":
            details["megaflop_per_sample"] = operations(bench, policy) / 1e6
        if mode is not None:
            policy.compile(mode=mode)
        with tempfile.TemporaryDirectory() as work:
            step, _ = training_step(bench, policy, Path(work))
            rate = bench.rate(step, *((1, 1) if bench.quick else (30, 3))) * BATCH
        plain = plain or rate
        whole = limit / (details["megaflop_per_sample"] * 1e6)
        figures.append(share_of(f"PLM {shape}, {name}, against the matmul limit", rate, whole, "samples/s"))
        if mode is not None:
            figures.append(at_least(f"PLM {shape}, {name}, against eager", rate, plain, "samples/s", goal=1))
    return figures, details


def tuning(bench: Bench) -> Measured:
    """Targets per minute of prompt_diffuser and prompt_gradient with their defaults, one after another."""
    figures, details = [], {}
    short = {"steps": 2} if bench.quick else {}
    fewest = {"adapt": {"steps": 2}, "candidates": 8}
    few = fewest if bench.quick else {}
    for shape in bench.shapes:
        for method, changes, least in ((prompt_diffuser, few, fewest), (prompt_gradient, {}, {})):
            name = method.__name__.rpartition(".")[2]
            params = method.Params.model_validate(short | changes)
            seconds = {}
            for device in (bench.device, CPU) if shape == "128x3" else (bench.device,):
                plm = bench.pretrained(shape, device)
                target = bench.target(plm)
                with tempfile.TemporaryDirectory() as work:  # what is loaded once is not counted
                    warm = method.Params.model_validate({"steps": 2} | least)
                    method.tune(plm, target, warm, Run(Path(work), Path(work) / "logs", name, silent, 0))
                with tempfile.TemporaryDirectory() as work:
                    run = Run(Path(work), Path(work) / "logs", name, silent, 0)
                    bench.synchronize()
                    started = time.perf_counter()
                    method.tune(plm, target, params, run)
                    bench.synchronize()
                    seconds[device] = time.perf_counter() - started
            details[f"{name} {shape}, seconds per target"] = seconds[bench.device]
            if CPU in seconds:
                per_minute, beside = (60 / seconds[device] for device in (bench.device, CPU))
                what = f"{name} {shape}, against the CPU beside it"
                figures.append(at_least(what, per_minute, beside, "targets/min", goal=1))
    return figures, details


def acting(bench: Bench) -> Measured:
    """Steps per second of many actors, without a simulator, against the CPU beside the card."""
    figures = []
    count, often = (16, (1, 1)) if bench.quick else (400, (10, 3))
    for shape in bench.shapes:
        rates = {}
        for device in (bench.device, CPU):
            plm = bench.pretrained(shape, device)
            target = bench.target(plm)
            actors = prompted(plm.policy, target.draw(np.random.default_rng(0), count), plm.normalization)
            window, _ = target.windows.any_windows(np.random.default_rng(0), count, CONTEXT)
            rates[device] = count * bench.rate(partial(_act, actors.started(), window), *often)
        what = f"acting {shape}, {count} actors, against the CPU beside it"
        figures.append(at_least(what, rates[bench.device], rates[CPU], "steps/s", goal=1))
    return figures, {}


def _act(started: Started, window: Steps) -> np.ndarray:
    actions: np.ndarray = started.act(window).cpu().numpy()  # a simulator needs them on the CPU
    return actions


PIECES: dict[str, Callable[[Bench], Measured]] = {
    "correctness": correctness,
    **{f"plm_{shape}": partial(plm, shape=shape) for shape in SHAPES},
    "tuning": tuning,
    "acting": acting,
}


def card(device: torch.device) -> str:
    """The name of a device as a file name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run(device: torch.device, names: list[str], results: Path, *, again: bool, quick: bool, minutes: float) -> bool:
    """Measure the pieces that are missing, and save each; whether all goals were met."""
    path = results / f"{card(device)}.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() and not quick else {}
    begun, met = time.monotonic(), True
    bench = Bench.on(device, quick)
    for name in names:
        if name in done and not again:
            print(f"{name}: already in {path}")
            continue
        if time.monotonic() - begun > 60 * minutes:
            print(f"{name}: left for the next time, after {minutes:g} minutes")
            continue
        about = machine() | {"device": card(device)}
        figures, details = PIECES[name](bench)
        met = met and all(figure.met for figure in figures)
        show(f"{name} on {card(device)}", figures, details, quick)
        if not quick:
            done[name] = as_json(figures, details, about)
            results.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(done, indent=1) + "\n")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("names", nargs="*", metavar="piece", help=", ".join(PIECES))
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu")
    parser.add_argument("--again", action="store_true", help="measure pieces that were measured before, too")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it works; writes no result")
    parser.add_argument("--minutes", type=float, default=5.0, help="after which no further piece is begun")
    given = parser.parse_args()
    if unknown := set(given.names) - set(PIECES):
        parser.error(f"unknown {', '.join(sorted(unknown))}: known are {', '.join(PIECES)}")
    device, names = pick_device(given.device), given.names or list(PIECES)
    sys.exit(not run(device, names, RESULTS, again=given.again, quick=given.quick, minutes=given.minutes))


if __name__ == "__main__":
    main()
