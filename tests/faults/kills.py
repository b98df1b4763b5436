"""SIGKILL at random moments: started from any entry point, the work ends with the same bytes as without kills."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

from pd_pipeline import graph, records
from pd_pipeline.storage import digest
from tests.conftest import run_stages
from tests.dvc_project import BIN, ENVIRONMENT, make_project, write_graph
from tests.faults.report import Attack

PARAMS = """\
run: {families: [point_robot], seeds: [0], methods: [prompt_dt, full_finetune]}
machine: {device: cpu}
report: {rollouts: false}
families:
  point_robot:
    environment: {horizon: 8, tasks: 4, test_tasks: [1, 3]}
    behavior_policies: {}
    trajectories: {workers: 2, episodes_per_shard: 3, episodes: {expert: {train: 6, test: 6}}}
    prompts: {length: 3, stride: 1}
    plm: {steps: 60, batch_per_task: 2, width: 8, layers: 1, context: 4, checkpoint_seconds: 0}
    diffuser:
      {steps: 60, batch: 8, diffusion: {steps: 4}, denoiser: {width: 8, blocks: 1}, checkpoint_seconds: 0}
    tuned_prompt_dt: {prompts: 4}
    tuned_full_finetune: {prompts: 4, steps: 20, batch: 4, checkpoint_seconds: 0}
    evaluation: {workers: 2, bootstrap: 50}
"""
DOORS = {
    "pd-pipeline run all": ["pd-pipeline", "run", "all"],
    "dvc repro": ["dvc", "--wait-for-lock", "repro"],
    "dagster job execute": ["dagster", "job", "execute", "-m", "assets.location", "-j", "bring_up_to_date"],
}


def prepared(root: Path) -> Path:
    """A DVC project with everything to do."""
    make_project(root, PARAMS)
    write_graph(root)
    return root


def undisturbed(root: Path) -> dict[str, str]:
    """Digests of all outs of work that is not killed."""
    make_project(root, PARAMS)
    run_stages(root, *(stage for stage in graph.load(root).stages if stage != "report"))
    return outs(root)


def outs(root: Path) -> dict[str, str]:
    """Digest of each out of a project, except the report, which names the folder's revision."""
    project = graph.load(root)
    pieces = [(stage, key) for stage in project.stages for key in project.keys(stage) if stage != "report"]
    return {f"{stage} {key}": digest(root / project.out(stage, key)) for stage, key in pieces}


def attack(door: str, kills: int, folder: Path, expected: dict[str, str], seed: int = 0) -> Attack:
    """Kill a door's process group `kills` times at random moments, in each trial, then let it finish."""
    found, rng, trial = Attack(f"SIGKILL: {door}"), random.Random(seed), 0
    while found.tries < kills:
        root = prepared(folder / f"{door.split(maxsplit=1)[0]}-{trial}")
        trial += 1
        running = True
        while running and found.tries < kills:
            process = begin(root, door)
            deadline = time.monotonic() + 1.0 + rng.random() * 9.0
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            running = process.poll() is None
            if not running:
                break
            family = [*psutil.Process(process.pid).children(recursive=True)]
            if rng.random() < 0.5:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # only the parent: its workers must notice
            process.wait()
            found.survived(_after_a_kill(root, family))
        found.failures += _in_the_end(root, door, expected)
        shutil.rmtree(root)
    return found


def begin(root: Path, door: str) -> subprocess.Popen[bytes]:
    """Start an entry point in its own process group."""
    home = root / ".dagster"
    home.mkdir(exist_ok=True)
    command = [str(BIN / DOORS[door][0]), *DOORS[door][1:]]
    environment = ENVIRONMENT | {"PD_PIPELINE_ROOT": str(root), "DAGSTER_HOME": str(home)}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=root, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)


def _after_a_kill(root: Path, family: list[psutil.Process]) -> str | None:
    """What is wrong right after a kill: processes that keep working, incomplete outs."""
    workers = [process for process in family if process.is_running() and "multiprocessing" in _command(process)]
    _, alive = psutil.wait_procs(workers, timeout=5)
    if alive:
        return f"{len(alive)} worker processes outlived their parent"
    for process in family:  # processes started by dvc or dagster: the next try would wait for them
        psutil.wait_procs([process], timeout=20)
    project = graph.load(root)
    for stage in project.stages:
        for key in project.keys(stage):
            out, record = root / project.out(stage, key), records.find(root, stage, key)
            if out.exists() and (record is None or records.foreign(out, record)):
                return f"{out.relative_to(root)} is not what its record says"
    return None


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _in_the_end(root: Path, door: str, expected: dict[str, str]) -> list[str]:
    """What is wrong after finishing through the same entry point: other bytes, leftovers, an unclean status."""
    if _empty(lock := root / ".dvc/tmp/rwlock"):
        lock.unlink()  # as `pd-pipeline doctor` does
    process = begin(root, door)
    try:
        process.wait(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return [f"{door}: a quiet run after kills does not end"]
    if process.returncode != 0:
        again = _output(root, "pd-pipeline", "run", "all")
        return [f"{door}: a quiet run after kills ends with {process.returncode}: {again[-400:]}"]
    problems = []
    if (found := outs(root)) != expected:
        problems.append(f"{door}: other bytes in {sorted(name for name in expected if found[name] != expected[name])}")
    if left := [str(path.relative_to(root)) for path in (root / "data").rglob(".*.tmp")]:
        problems.append(f"{door}: left behind: {left}")
    if "up to date" not in (status := _output(root, "dvc", "status")):
        problems.append(f"{door}: dvc status: {status[:300]}")
    return problems


def _output(root: Path, *command: str) -> str:
    """The output of a command."""
    environment = ENVIRONMENT | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _empty(lock: Path) -> bool:
    """Whether a kill left DVC's own lock file empty."""
    return lock.is_file() and not lock.read_text().strip()
