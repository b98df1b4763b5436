"""The small project of `pd-pipeline init`, and commands in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    """The variables of commands: this environment's programs, and one thread per process."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "true", "OMP_NUM_THREADS": "1"}


def project(folder: Path, quick: bool) -> Path:
    """A new project; `quick`: with one method."""
    subprocess.run([BIN / "pd-pipeline", "init", folder], env=environment(), check=True, stdout=subprocess.DEVNULL)
    if quick:
        params = folder / "params.yaml"
        params.write_text(re.sub("methods: .*", "methods: [prompt_dt]", params.read_text()))
    return folder


def call(root: Path, *command: str, **variables: str) -> str:
    """Run a command in the project, which must succeed; returns its output."""
    given = environment() | variables
    return subprocess.run(command, cwd=root, env=given, check=True, capture_output=True, text=True).stdout
