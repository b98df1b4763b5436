"""Checks for what commonly goes wrong on a machine or in a project folder, each of which says what to do.

A check looks at one thing and yields findings; what is safe to fix is fixed. `note` is for what only some uses need.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pd_pipeline import data_root, dvc_locks, lineage, locks, made_from, preflight, records, rendering, storage
from pd_pipeline import graph as graphs
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.piece import resume_folder
from pd_pipeline.records import Record
from pd_pipeline.stage import Key
from pd_pipeline.storage import read_model
from pd_pipeline.studies.definition import PREFIX, names

WATCHED = ("torch", "metaworld", "mujoco", "dvc", "dagster")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_RENDER = "import mujoco; mujoco.GLContext(64, 64).make_current()"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "note", "fixed", "problem"]
    text: str

    @property
    def problem(self) -> bool:
        """Whether the user must do something before the pipeline works."""
        return self.level == "problem"

    def __str__(self) -> str:
        """The line as it is printed."""
        return f"{self.level:8}{self.text}"


def examine(root: Path) -> Iterator[Finding]:
    """All findings for this machine and the project at `root`."""
    yield from versions()
    yield from threads()
    yield from accelerator()
    yield from rendering_contexts()
    try:
        project = graphs.load(root)
        preflight.check(project)
    except PipelineError as error:
        yield Finding("problem", str(error))
        return
    yield Finding("ok", f"params.yaml: {sum(len(project.keys(stage)) for stage in project.stages)} pieces of work")
    yield from shared_outs(project)
    yield from dvc_project(project)
    yield from stale_locks(root)
    yield from leftovers(project)
    yield from own_files(project)
    yield from former_outs(project)
    yield from resume_folders(project)


def versions() -> Iterator[Finding]:
    """Installed packages against the requirements of this package."""
    from packaging.requirements import Requirement

    wrong = False
    for line in metadata.requires("pd-pipeline") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed == "missing" or not requirement.specifier.contains(installed, prereleases=True):
            wrong = True
            yield Finding(
                "problem", f"{requirement.name} is {installed}, but {requirement} is required: run `make setup`"
            )
    if not wrong:
        found = ", ".join(f"{name} {metadata.version(name)}" for name in WATCHED)
        yield Finding("ok", f"Python {sys.version.split()[0]}, {found}")


def threads() -> Iterator[Finding]:
    """The number of threads that torch uses."""
    import torch

    cores, used = len(os.sched_getaffinity(0)), torch.get_num_threads()
    if used > cores:
        yield Finding("problem", f"torch uses {used} threads on {cores} cores: set OMP_NUM_THREADS={cores}")
    else:
        yield Finding("ok", f"torch uses {used} threads on {cores} cores")


def accelerator(driver: Path = NVIDIA_DRIVER) -> Iterator[Finding]:
    """The device that torch would train on, and whether its build suits the machine. `make setup` prints this too."""
    import torch

    if torch.cuda.is_available():
        yield Finding("ok", f"torch {torch.__version__} trains on {torch.cuda.get_device_name()} (cuda)")
    elif driver.exists() and torch.version.cuda is None:
        yield Finding(
            "note",
            f"there is an NVIDIA driver, but torch {torch.__version__} is a build for CPUs: install the build of "
            f"{torch.__version__.partition('+')[0]} for CUDA to train on the GPU",
        )
    elif driver.exists():
        yield Finding(
            "problem",
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda} but finds no GPU: update the NVIDIA "
            "driver, or check that the GPU is visible (nvidia-smi, CUDA_VISIBLE_DEVICES)",
        )
    elif torch.version.cuda is not None:
        yield Finding(
            "note",
            f"torch {torch.__version__} is built for CUDA, but there is no NVIDIA driver: it trains on the CPU, and a "
            "build for CPUs would save gigabytes",
        )
    else:
        yield Finding("ok", f"torch {torch.__version__} trains on the CPU")


def rendering_contexts() -> Iterator[Finding]:
    """Whether MuJoCo can render off screen, which only pictures of the simulator need."""
    chosen = os.environ.get("MUJOCO_GL", "")
    working = [name for name in dict.fromkeys((chosen, "egl", "osmesa")) if _renders(name)]
    if chosen in working:
        yield Finding("ok", f"off-screen rendering works{f' (MUJOCO_GL={chosen})' if chosen else ''}")
    elif working:
        yield Finding(
            "note", f"off-screen rendering needs MUJOCO_GL={working[0]}: set it for pictures of the simulator"
        )
    else:
        yield Finding("note", "no off-screen rendering: for pictures of the simulator, install libegl1 or libosmesa6")


def _renders(name: str) -> bool:
    environment = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"} | ({"MUJOCO_GL": name} if name else {})
    # in a separate process, which a failing GL library may kill
    done = subprocess.run([sys.executable, "-c", _RENDER], env=environment, capture_output=True, check=False)
    return done.returncode == 0


def shared_outs(project: Graph) -> Iterator[Finding]:
    """Whether the data root answers, if the project has one."""
    try:
        if (root := data_root.of(project)) is not None:
            root.find("0" * 64)
            yield Finding("ok", f"machine.data_root: {root.url} answers")
    except (PipelineError, OSError) as error:
        yield Finding("problem", str(error))


def dvc_project(project: Graph) -> Iterator[Finding]:
    """Whether dvc.yaml matches the graph, and DVC's own lock file is readable."""
    if not (project.root / ".dvc" / "config").is_file():
        yield Finding(
            "note", "not a DVC project: nothing is recorded unless you run `dvc init` (or `dvc init --no-scm`)"
        )
        return
    try:
        rendering.check(project)
        yield Finding("ok", f"{rendering.DVC_FILE} matches params.yaml and the code")
    except PipelineError as error:
        yield Finding("problem", str(error))
    lock = project.root / ".dvc" / "tmp" / "rwlock"
    if not _broken(lock):
        yield Finding("ok", "DVC's lock file is readable")
        return
    time.sleep(1.0)  # it is unreadable for a moment whenever DVC writes it
    if _broken(lock):
        lock.unlink()
        yield Finding("fixed", f"{lock}: unreadable after a kill, every DVC command failed: removed")


def _broken(lock: Path) -> bool:
    try:
        json.loads(lock.read_text())
    except FileNotFoundError:
        return False
    except json.JSONDecodeError:
        return True
    return False


def stale_locks(root: Path) -> Iterator[Finding]:
    """Entries of DVC's lock file whose pid now belongs to another program."""
    removed = dvc_locks.remove_stale(root)
    for holder in removed:
        yield Finding(
            "fixed",
            f"DVC's lock named process {holder.pid} ('{holder.command}'), which now is '{holder.running}': removed",
        )
    for holder in dvc_locks.holders(root):
        yield Finding("note", f"process {holder.pid} ('{holder.command}') is working in this project")
    if not removed:
        yield Finding("ok", "no lock was left behind")


def leftovers(project: Graph) -> Iterator[Finding]:
    """Temporary outs left by killed processes, for pieces that no process is making now."""
    count = 0
    for stage in project.stages:
        for key in project.keys(stage):
            out = project.root / project.out(stage, key)
            found = sorted((*out.parent.glob(f".{out.name}.*.tmp"), *out.parent.glob(f".{out.name}.*.old")))
            if found and locks.is_free(project.root, stage, key):
                storage.recover(out)
                count += len(found)
                yield Finding("fixed", f"{out}: removed what a killed process left beside it")
    if not count:
        yield Finding("ok", "no temporary files of killed processes beside the outs")


def own_files(project: Graph) -> Iterator[Finding]:
    """Files in outs that the pipeline did not make: a stage refuses to run rather than replace them."""
    found: dict[tuple[str, Key], Path] = {}
    for stage in project.stages:
        for key in project.keys(stage):
            record, out = records.find(project.root, stage, key), project.root / project.out(stage, key)
            if record is not None and (names := records.foreign(out, record)):
                found[stage, key] = out / names[0]
    recorded = lineage.lock_entries(project, found)  # such as after `dvc checkout` of another commit
    for (stage, key), file in found.items():
        if (stage, key) not in recorded:
            yield Finding("note", f"{file}: not made by stage {stage}: move it before running that stage")


def former_outs(project: Graph) -> Iterator[Finding]:
    """Outs of pieces that params.yaml asks for no more.

    Stages that read all targets of a family depend on the whole folder, for DVC, so that what is left there makes them
    out of date in a clone, which does not have it.
    """
    asked = {project.out(stage, key) for stage in project.stages for key in project.keys(stage)}
    asked |= {Path("data") / f"{PREFIX}{name}" for name in names(project.root)}  # also of studies run by name alone
    made = {
        Path(read_model(file, Record, ": remove it").out) for file in (project.root / records.FOLDER).rglob("*.json")
    }
    former = sorted(str(out) for out in made - asked if (project.root / out).exists())
    if former:
        yield Finding("note", f"params.yaml asks for these no more, remove them to save space: {' '.join(former)}")
    else:
        yield Finding("ok", "no out is of a piece that params.yaml does not ask for")


def resume_folders(project: Graph) -> Iterator[Finding]:
    """Folders for resuming killed work that belong to earlier code, parameters or inputs."""
    stale = [str(path.relative_to(project.root)) for path in _work_folders(project.root) if not _resumes(project, path)]
    if stale:
        yield Finding("note", f"no longer of use, remove them to save space: {' '.join(stale)}")
    else:
        yield Finding("ok", "no stale folder in .work")


def _work_folders(root: Path) -> list[Path]:
    return sorted(path for path in (root / ".work").glob("*/*/*") if path.is_dir())


def _resumes(project: Graph, path: Path) -> bool:
    """Whether its stage would resume from this folder (.work/<stage>/<key>/<digest>)."""
    stage, name = path.parent.parent.name, path.parent.name
    keys = project.keys(stage) if stage in project.stages else []
    key = next((key for key in keys if (str(key) or "all") == name), None)
    if key is None or not all((project.root / project.out(*need)).exists() for need in project.upstream(stage, key)):
        return False
    return path == resume_folder(project, stage, key, made_from.work_digest(project, stage, key))
