"""One piece of work: a stage for one key. Doing it, whole or not at all, and whether it is done."""

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pd_pipeline import __version__, made_from, records
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.progress import Progress
from pd_pipeline.revision import git_revision
from pd_pipeline.stage import Key, Spread, StageContext
from pd_pipeline.storage import atomic_directory, digest, recover, remove

COMPUTING = ("torch", "numpy", "gymnasium", "mujoco", "metaworld", "stable-baselines3")
"""Packages whose version decides what comes out: with another one, an out is another one."""
Compute = Callable[[Graph, str, Key, Progress], dict[str, Any]]
"""What is called as `run_piece`: it, or what has it called on another machine."""


def run_piece(graph: Graph, stage: str, key: Key, progress: Progress, spread: Spread | None = None) -> dict[str, Any]:
    """Do one piece of work: the function behind `pd-pipeline run`, a DVC stage and a Dagster asset.

    Parts of it are computed by `spread`, if that is given.

    The out is written completely or not at all, with a record of its files and cost next to it. Work that was killed
    resumes if its code, parameters and inputs have not changed. Returns the metrics of the stage. Raises PipelineError
    if the out contains files that the stage did not write: these are never replaced.
    """
    refuse_missing(graph, stage, key)
    final, home = replaceable(graph, stage, key), graph.home(stage, key)
    made, facts = made_from.work_digest(graph, stage, key), _facts(graph, stage, key)
    work = resume_folder(graph, stage, key, made)
    if work.parent.is_dir():
        for other_work in work.parent.iterdir():
            if other_work != work:
                remove(other_work)
    work.mkdir(parents=True, exist_ok=True)
    with records.clock(work) as clock, atomic_directory(final) as out:
        context = replace(stage_context(graph, stage, key, out, work, progress), spread=spread)
        with _memory_of_a_card():
            metrics = importlib.import_module(graph.stages[stage].module).run(context)
        # a file may have been added in the meantime
        records.refuse_foreign(final, records.foreign(final, records.find(home, stage, key)), stage)
        facts |= {"made": made, "seconds": clock.seconds, "parameters": context.params.model_dump(mode="json")}
        if key.family is not None:
            facts["environment"] = context.family.params.model_dump(mode="json")
        records.write(home, stage, key, final, out, **facts, **context.facts)
    shutil.rmtree(work.parent)
    return metrics


@contextmanager
def _memory_of_a_card() -> Iterator[None]:
    """Raises MemoryError where a GPU has too little; what was kept of it is free for others when the work has ended."""
    try:
        yield
    except RuntimeError as error:
        if "torch" in sys.modules and isinstance(error, sys.modules["torch"].OutOfMemoryError):
            raise MemoryError(str(error)) from error
        raise
    finally:
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()  # does nothing where no card was used


def refuse_missing(graph: Graph, stage: str, key: Key) -> None:
    """Raise PipelineError if an out that a piece of work reads is not there."""
    for need, other in graph.upstream(stage, key):
        if not (graph.root / graph.out(need, other)).exists():
            missing = f"{need} --key {other}" if str(other) else need
            raise PipelineError(f"{graph.out(need, other)}: missing: run `pd-pipeline run {missing}` first")


def replaceable(graph: Graph, stage: str, key: Key) -> Path:
    """The path of the out of a piece of work, which may be replaced. Raises PipelineError where it may not."""
    final = graph.root / graph.out(stage, key)
    if final.is_symlink():
        raise PipelineError(
            f"{final} is a link, and an out is replaced as a whole: replace the link with what it points to, or link a "
            "folder above it, such as data/, and run again"
        )
    recover(final)
    records.refuse_foreign(final, records.foreign(final, records.find(graph.home(stage, key), stage, key)), stage)
    return final


def resume_folder(graph: Graph, stage: str, key: Key, made: str) -> Path:
    """Where work with this digest keeps what it resumes from, as long as the packages that compute are the same."""
    return graph.home(stage, key) / ".work" / stage / (str(key) or "all") / name_of(made)[:16]


def packages() -> dict[str, str]:
    """Each of `COMPUTING` -> its version, without what it was built for, such as +cpu."""
    return {package: metadata.version(package).partition("+")[0] for package in COMPUTING}


def name_of(made: str) -> str:
    """The digest of the work (`made_from.work_digest`) and of the packages that compute."""
    return digest(made, *(f"{package} {version}" for package, version in packages().items()))


def _facts(graph: Graph, stage: str, key: Key) -> dict[str, Any]:
    """Inputs and versions of the code before the work, for its record: a commit may be made in the meantime."""
    return {
        "inputs": {need: digest(graph.root / path) for need, path in graph.inputs(stage, key).items()},
        "code": made_from.code_digest(graph, stage, key),
        "version": __version__,
        "packages": packages(),
        "revision": git_revision(graph.root),
    }


def stage_context(graph: Graph, stage: str, key: Key, out: Path, work: Path, progress: Progress) -> StageContext:
    """What the stage function of a piece of work gets."""
    return StageContext(
        root=graph.root,
        stage=stage,
        key=key,
        params=graph.stage_params(stage, key),
        module=graph.stages[stage].params_module,
        modules=graph.modules,
        environment=graph.params.block(key.family, "environment") if key.family else {},
        inputs={need: graph.root / path for need, path in graph.inputs(stage, key).items()},
        out=out,
        work=work,
        logs=graph.home(stage, key) / "data" / "tensorboard" / stage / (str(key) or "all"),
        progress=progress,
        params_file=graph.params,
    )


def is_made(graph: Graph, stage: str, key: Key) -> bool:
    """Whether the out matches its record and was made from the current code, parameters and inputs."""
    record, out = records.find(graph.home(stage, key), stage, key), graph.root / graph.out(stage, key)
    if not all((graph.root / graph.out(*need)).exists() for need in graph.upstream(stage, key)):
        return False
    if record is None or not out.is_dir() or records.listing(out) != record.files:
        return False
    return record.made == made_from.work_digest(graph, stage, key)
