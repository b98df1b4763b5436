"""A killed Dagster run frees its slot in the pool: launched again, it continues within a minute."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.dvc_project import BIN, ENVIRONMENT
from tests.faults.kills import prepared
from tests.faults.report import Attack

REPOSITORY = Path(__file__).parents[2]
LAUNCH = ["dagster", "job", "launch", "-w", "workspace.yaml", "-j", "bring_up_to_date"]


def attack(root: Path) -> Attack:
    """Kill the process of a run in the middle of its step, launch the job again, and wait for it to train."""
    found = Attack("SIGKILL of a Dagster run that holds the pool")
    prepared(root)
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(params.replace("plm: {steps: 60,", "plm: {steps: 4000,"))
    home = root / ".dagster"
    home.mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
    shutil.copy(REPOSITORY / "workspace.yaml", root / "workspace.yaml")
    environment = ENVIRONMENT | {"PD_PIPELINE_ROOT": str(root), "DAGSTER_HOME": str(home)}
    _call(root, environment, "dagster", "instance", "info")  # makes the databases: two processes at once would collide
    command = [str(BIN / "dagster-daemon"), "run", "-w", "workspace.yaml"]
    with (root / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        found.survived(_problem(root, environment, daemon.pid))
    finally:
        for process in [*psutil.Process(daemon.pid).children(recursive=True), psutil.Process(daemon.pid)]:
            process.kill()
        daemon.wait()
    return found


def _problem(root: Path, environment: dict[str, str], daemon: int) -> str | None:
    checkpoints = lambda: sorted((root / ".work/plm").rglob("step-*.safetensors"))  # noqa: E731
    _call(root, environment, *LAUNCH)
    if not _within(180, lambda: len(checkpoints()) >= 2):
        return "the first run does not train"
    workers = _workers_of(daemon)
    for process in workers:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(workers, timeout=10)
    if not workers or _workers_of(daemon):
        return f"of {workers} SIGKILL left {_workers_of(daemon)}"
    reached = int(checkpoints()[-1].stem.removeprefix("step-"))
    time.sleep(2)
    if int(checkpoints()[-1].stem.removeprefix("step-")) != reached:
        return "something trains on after the kill"
    began = time.monotonic()
    _call(root, environment, *LAUNCH)
    if not _within(100, lambda: bool(checkpoints()) and int(checkpoints()[-1].stem.removeprefix("step-")) > reached):
        return "launched again after a kill, the job does not go on"
    waited = time.monotonic() - began
    print(f"launched again, it trained on after {waited:.0f} s, from step {reached}", flush=True)
    return None if waited < 60 else f"it went on after {waited:.0f} s, not within a minute"


def _call(root: Path, environment: dict[str, str], name: str, *arguments: str) -> None:
    command = [str(BIN / name), *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)


def _within(seconds: float, met: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if met():
            return True
        time.sleep(0.2)
    return False


def _workers_of(daemon: int) -> list[psutil.Process]:
    """The processes of runs and their steps: children of the code servers that a daemon started."""
    living = [process for process in psutil.Process(daemon).children(recursive=True) if _words(process)]
    servers = [process for process in living if "grpc" in _words(process)]
    spawned = {child for server in servers for child in server.children(recursive=True)} - set(servers)
    return [process for process in spawned if _words(process)]


def _words(process: psutil.Process) -> list[str]:
    """The command line of a process; empty once it is dead."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
