"""What the benchmarks share: a measured figure, the machine it was measured on, its table and its JSON."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from pd_pipeline.storage import atomic_file

RESULTS = Path(__file__).parent.parent / "results" / "benchmarks"


class Figure(NamedTuple):
    """One measured ratio."""

    what: str
    ours: float
    reference: float
    unit: str
    ratio: float
    goal: str
    """What the ratio should be; empty where the reference is only for comparison."""
    met: bool


def at_least(what: str, ours: float, reference: float, unit: str, *, goal: float, ratio: float | None = None) -> Figure:
    """A figure that should reach `goal` times its reference; `ratio` where it is not the plain quotient."""
    value = ours / reference if ratio is None else ratio
    return Figure(what, ours, reference, unit, value, f">= {goal:g}", value >= goal)


def share_of(what: str, ours: float, limit: float, unit: str) -> Figure:
    """A figure relative to a limit that nothing can exceed."""
    return Figure(what, ours, limit, unit, ours / limit, "", True)


def at_most(what: str, ours: float, reference: float, unit: str, *, goal: float, ratio: float | None = None) -> Figure:
    """A figure that should stay below `goal` times its reference; `ratio` where it is not the plain quotient."""
    value = ours / reference if ratio is None else ratio
    return Figure(what, ours, reference, unit, value, f"<= {goal:g}", value <= goal)


def alternate(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Median rates of two alternating measurements, and the median of their ratios per round.

    They alternate so that whatever slows the machine for a while slows both.
    """
    pairs = [(ours(), peer()) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, load and versions."""
    versions = {}
    for package in ("torch", "transformers", "metaworld", "mujoco", "pyarrow", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


def report(name: str, measure: Callable[[bool], tuple[list[Figure], dict[str, Any]]], quick: bool) -> list[Figure]:
    """Measure, print the table and save it as JSON; with `quick`, sizes are too small to be worth saving."""
    about = machine()
    figures, details = measure(quick)
    show(name, figures, details, quick)
    if not quick:
        saved = as_json(figures, details, about) | {"command": f"python -m benchmarks.{name}"}
        with atomic_file(RESULTS / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(saved, indent=1) + "\n")
    return figures


def as_json(figures: list[Figure], details: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What is saved of a measurement."""
    return {"figures": [f._asdict() for f in figures], "details": details, "machine": about}


def show(name: str, figures: list[Figure], details: dict[str, Any], quick: bool) -> None:
    """Print figures as a table, and details below it."""
    table = Table(title=f"{name}{' (quick: sizes too small for conclusions)' if quick else ''}")
    for column in ("figure", "ours", "reference", "unit", "ratio", "goal", ""):
        table.add_column(column, justify="left" if column in ("figure", "unit") else "right")
    for f in figures:
        numbers = (f"{f.ours:,.4g}", f"{f.reference:,.4g}", f.unit, f"{f.ratio:.3g}", f.goal)
        table.add_row(f.what, *numbers, ("met" if f.met else "MISSED") if f.goal else "")
    console = Console()
    console.print(table)
    for key, value in details.items():
        console.print(f"  {key}: {value:,.4g}" if isinstance(value, float) else f"  {key}: {value}")


def command(name: str, measure: Callable[[bool], tuple[list[Figure], dict[str, Any]]]) -> None:
    """The command `python -m benchmarks.<name> [--quick]`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that it works; writes no result")
    report(name, measure, parser.parse_args().quick)
