"""The examples for Slurm and Kubernetes, as far as they go without either."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pd_pipeline.cli import app
from tests.dvc_project import ENVIRONMENT, make_project

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "docs" / "examples"
SRUN = """\
#!/bin/sh
echo "srun $*" >> "$CALLS"
while [ "${1#-}" != "$1" ]; do shift; done
exec "$@"
"""


def stub(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("alone")
def test_a_job_of_slurm_runs_a_stage_on_its_nodes(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    programs = tmp_path / "bin"
    programs.mkdir()
    stub(programs, "srun", SRUN)
    stub(programs, "scontrol", '#!/bin/sh\n[ "$*" = "show hostnames node1" ] && echo 127.0.0.1\n')
    slurm = {
        "SLURM_SUBMIT_DIR": str(root),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "1",
        "CALLS": str(tmp_path / "calls"),
        "PATH": f"{programs}{os.pathsep}{ENVIRONMENT['PATH']}",
    }
    script = ["bash", str(EXAMPLES / "slurm.sh"), "run", "behavior_policies", "--key", "point_robot"]
    done = subprocess.run(script, env=ENVIRONMENT | slurm, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "behavior_policies point_robot: " in done.stdout
    assert (root / "data/behavior_policies/point_robot/policies.json").is_file()
    assert "behavior_policies@point_robot" in (root / "dvc.lock").read_text()
    assert "srun --ntasks=1 --ntasks-per-node=1 ray symmetric-run" in (tmp_path / "calls").read_text()


def test_a_job_of_slurm_fails_with_its_command(tmp_path: Path) -> None:
    stub(tmp_path, "srun", SRUN)
    stub(tmp_path, "scontrol", "#!/bin/sh\necho 127.0.0.1\n")
    stub(tmp_path, "ray", "#!/bin/sh\nexit 3\n")
    slurm = {name: "1" for name in ("SLURM_JOB_NODELIST", "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK")}
    given = slurm | {"SLURM_SUBMIT_DIR": str(tmp_path), "CALLS": os.devnull, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", str(EXAMPLES / "slurm.sh"), "run"], env=given, check=False).returncode == 3


def test_the_job_for_kubernetes_has_our_version_of_ray_and_runs_a_command_that_there_is() -> None:
    job = YAML(typ="safe").load((EXAMPLES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    pinned = re.search(r"^ray==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == pinned[1]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"]: "/project" for volume in pod["volumes"]}
    shell, option, line = shlex.split(job["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")
    go, command = line.split(" && ")
    assert go == "cd /project"
    name, *arguments = shlex.split(command)
    assert name == "pd-pipeline"
    asked = CliRunner().invoke(app, [*arguments, "--help"])
    assert asked.exit_code == 0, asked.output
    image = (EXAMPLES / "Dockerfile").read_text()
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in image
