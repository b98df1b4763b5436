"""What the driver costs as a project grows, and how long a pipeline of many targets takes on many machines.

Measured: recording a piece of work, and seeing that one is up to date, in projects of more and more seeds, without
computing anything. dvc.lock has an entry for every piece; in large projects most are copies of one.

Simulated: a scheduler that gives each piece, and each part of the evaluation, to a free machine replays the seconds
that pieces of the default project took, with all of its methods and with prompt_diffuser alone. Each piece costs the
driver what was measured, one after the other.
"""

import heapq
import json
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.common import RESULTS, Figure, at_most, command, timed
from benchmarks.projects import BIN, call, project
from pd_pipeline import graph as graphs
from pd_pipeline import lineage, made_from, records, rendering
from pd_pipeline.evaluation.stage import Params as EvaluationParams
from pd_pipeline.graph import Graph
from pd_pipeline.lockfile import HEAD, LOCK_FILE, only
from pd_pipeline.progress import Progress, silent
from pd_pipeline.stage import Key
from pd_pipeline.storage import atomic_directory, read_json

SEEDS = (1, 10, 100, 1000)
SAMPLE = 12
STATUS_UP_TO = 2000
"""Pieces up to which all are made, so that `dvc status` has something to look at."""
TARGETS, MACHINES = 10_000, (1, 10, 100, 1000)


def pretend(graph: Graph, stage: str, key: Key, progress: Progress) -> dict[str, Any]:
    """What `piece.run_piece` leaves behind, without the work."""
    out = graph.root / graph.out(stage, key)
    made, inputs = made_from.work_digest(graph, stage, key), {need: "" for need in graph.stages[stage].needs}
    code = made_from.code_digest(graph, stage, key)
    with atomic_directory(out) as folder:
        (folder / "numbers.json").write_text(json.dumps([stage, str(key)]))
        records.write(graph.root, stage, key, out, folder, made=made, seconds=0.0, inputs=inputs, code=code)
    return {}


class Costs(NamedTuple):
    """Seconds of the driver in a project of some size."""

    pieces: int
    record: float
    """To see that a piece is out of date, and to record it."""
    skip: float
    """To see that a piece is up to date."""
    status: float | None
    """`dvc status` of the whole project; None if not all of it is made."""


def costs(root: Path, seeds: int) -> Costs:
    """Measure a new project with so many seeds."""
    file = project(root, quick=False) / "params.yaml"
    listed = ", ".join(map(str, range(seeds)))
    file.write_text(re.sub("seeds: .*", f"seeds: [{listed}]", file.read_text()))
    graph = graphs.load(root)
    pieces = [(stage, key) for stage in graph.stages for key in graph.keys(stage) if key.family]
    lineage.keep_rendered(graph)
    complete = len(pieces) <= STATUS_UP_TO
    first = pieces if complete else [piece for piece in pieces if piece[1].seed in (None, 0)]
    for piece in first:
        lineage.run(graph, *piece, silent, compute=pretend)
    if not complete:
        fill(root / LOCK_FILE, graph, pieces)
    some = [piece for piece in first if piece[1].seed == 0][:SAMPLE]

    def seconds(force: bool) -> float:
        again = partial(lineage.run, graph, progress=silent, force=force, compute=pretend)
        return median(timed(partial(again, *piece)) for piece in some)

    record, skip = seconds(force=True), seconds(force=False)
    assert all(lineage.up_to_date(graph, *piece) for piece in some), "they were recorded"
    return Costs(len(pieces), record, skip, timed(lambda: dvc_status(root)) if complete else None)


def fill(lock: Path, graph: Graph, pieces: list[tuple[str, Key]]) -> None:
    """Give dvc.lock an entry for each of `pieces`: that of seed 0 under their names."""
    text = lock.read_text()
    blocks = []
    for stage, key in pieces:
        name, like = rendering.address(stage, key), rendering.address(stage, replace(key, seed=0))
        if f"\n  {name}:\n" not in text:
            blocks.append(only(text, [like]).removeprefix(HEAD).replace(f"  {like}:\n", f"  {name}:\n", 1))
    lock.write_text(text + "".join(blocks))


def dvc_status(root: Path) -> None:
    """Which must find that nothing changed."""
    assert "@" not in (found := call(root, str(BIN / "dvc"), "status")), found


class Work(NamedTuple):
    """A piece of work in the simulation."""

    seconds: float
    needs: tuple[int, ...]
    recorded: bool = True
    """Whether it is a piece, which the driver records, and not a part of one."""


def many_targets(seconds: Mapping[str, float], targets: int, parts: int, methods: Collection[str]) -> list[Work]:
    """Collection, both pre-trainings, tuning for each target, and evaluation in `parts` of equal size.

    `seconds` are those of one seed of the default project: `plm@reach-0` and so on. With fewer methods than it has,
    evaluation takes their share of its time.
    """
    stages = {name.split("@")[0] for name in seconds if name.startswith("tuned_")}

    def took(stage: str) -> float:
        return median(value for name, value in seconds.items() if name.startswith(f"{stage}@"))

    trajectories = Work(took("trajectories"), ())
    work = [trajectories, Work(took("plm"), (0,)), Work(took("diffuser"), (0,))]
    for method in methods:
        work += [Work(took(f"tuned_{method}"), (1, 2))] * targets
    known = len({name for name in seconds if name.startswith("tuned_prompt_diffuser@")})
    share = len(methods) / len(stages)
    first = len(work) + 1
    work.append(Work(0.0, tuple(range(3, first - 1)), recorded=False))  # evaluation starts
    each = share * took("evaluation") / known * targets / parts
    work += [Work(each, (first - 1,), recorded=False)] * parts
    work.append(Work(0.0, tuple(range(first, first + parts))))
    return work


def makespan(work: list[Work], machines: int, driver: float) -> float:
    """Seconds until all is done: a free machine takes the first piece whose needs are recorded.

    The driver records one piece at a time, in the order in which they end. It has twice as many pieces under way as
    there are machines, those that wait to be recorded among them (`engines.on_ray`).
    """
    missing = [len(piece.needs) for piece in work]
    readers: list[list[int]] = [[] for _ in work]
    for i, piece in enumerate(work):
        for need in piece.needs:
            readers[need].append(i)
    ready = [i for i, count in enumerate(missing) if not count]
    heapq.heapify(ready)
    events: list[tuple[float, bool, int]] = []  # (when, whether it is recorded or has only been computed, which)
    free, under_way, now, driver_free = machines, 0, 0.0, 0.0
    while ready or events:
        while ready and free and under_way < 2 * machines:
            first = heapq.heappop(ready)
            heapq.heappush(events, (now + work[first].seconds, False, first))
            free, under_way = free - 1, under_way + 1
        now, is_recorded, done = heapq.heappop(events)
        if not is_recorded:
            free += 1
            if work[done].recorded:
                driver_free = max(driver_free, now) + driver
            heapq.heappush(events, (driver_free if work[done].recorded else now, True, done))
            continue
        under_way -= 1
        for reader in readers[done]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    return now


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Costs in projects of growing size, then the simulation with the largest."""
    found = []
    for seeds in SEEDS[:2] if quick else SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            found.append(costs(Path(folder) / "project", seeds))
    least, most = found[0], found[-1]
    title = f"in a project of {most.pieces:,} pieces / of {least.pieces}"
    figures = [
        at_most(f"recording a piece, {title}", most.record, least.record, "s", goal=3),
        at_most(f"skipping a piece that is up to date, {title}", most.skip, least.skip, "s", goal=3),
    ]
    details: dict[str, Any] = {
        f"{cost.pieces} pieces: seconds of dvc status": cost.status for cost in found if cost.status is not None
    }
    details |= {f"{cost.pieces} pieces: milliseconds to record and to skip one": per_piece(cost) for cost in found}
    seconds = read_json(RESULTS.parent / "default/reach/provenance.json")["seconds"]
    targets = 100 if quick else TARGETS
    methods = sorted({name.split("@")[0].removeprefix("tuned_") for name in seconds if name.startswith("tuned_")})
    parts = EvaluationParams().targets
    for size, some in ((targets, methods), (parts, methods), (parts, ["prompt_diffuser"])):
        work = many_targets(seconds, targets, targets // size, some)
        count = f"{len(some)} methods" if len(some) > 1 else some[0]
        what = f"{targets:,} targets, {count}, evaluated in parts of {size:,}"
        details[f"{what}: hours of the longest chain"] = round(critical_path(work) / 3600, 2)
        for machines in MACHINES:
            ours, free = (makespan(work, machines, driver) / 3600 for driver in (most.record, 0.0))
            title = f"{what}, {machines:,} machines: this driver / one that costs nothing"
            figures.append(at_most(title, ours, free, "h", goal=1.2))
    return figures, details


def per_piece(cost: Costs) -> list[float]:
    """Milliseconds to record and to skip a piece."""
    return [round(1000 * seconds, 1) for seconds in (cost.record, cost.skip)]


def critical_path(work: list[Work]) -> float:
    """Seconds of the longest chain of pieces, each of which needs the one before."""
    ends: list[float] = []
    for piece in work:
        ends.append(piece.seconds + max((ends[need] for need in piece.needs), default=0.0))
    return max(ends)


if __name__ == "__main__":
    command("scaling", measure)
