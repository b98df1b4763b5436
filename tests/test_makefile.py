"""`make setup` killed at any moment works when called again."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

# Replaces the interpreter that makes the environment: quick, or as slow as a file `slow` says.
PYTHON = """\
#!/bin/sh
mkdir -p "$3/bin"
cat > "$3/bin/pip" <<'END'
#!/bin/sh
echo "pip $*" >> calls
case "$*" in *torch=*) [ ! -e no-such-build ]; exit;; esac
if [ -e slow-pip ]; then touch half-way-written; sleep 30; fi
exit 0
END
cat > "$3/bin/python" <<'END'
#!/bin/sh
echo "python $*"
END
echo "venv" >> calls
if [ -e slow-venv ]; then touch half-way-written; sleep 30; fi
chmod +x "$3/bin/pip" "$3/bin/python"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").write_text("tomli==2.0\ntorch==2.13.0\ntorchvision==9\n")
    (tmp_path / "fake-python").write_text(PYTHON)
    (tmp_path / "fake-python").chmod(0o755)
    return tmp_path


def make(folder: Path, target: str = "setup", *more: str) -> subprocess.Popen[bytes]:
    command = ["make", target, "PYTHON=./fake-python", *more]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_setup_installs_once(folder: Path) -> None:
    assert make(folder).wait() == 0
    done = calls(folder)
    assert [call.split()[0] for call in done] == ["venv", "pip", "pip"]
    assert make(folder).wait() == 0
    assert calls(folder) == done
    assert not (folder / ".venv.installing").exists()


def test_setup_says_what_torch_trains_on(folder: Path) -> None:
    printed = subprocess.run(
        ["make", "--silent", "setup", "PYTHON=./fake-python"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "python -c from pd_pipeline.doctor import accelerator" in printed.stdout
    assert "accelerator" not in (folder / "calls").read_text(), "pip has nothing to do with it"


@pytest.mark.parametrize(("driver", "build"), [("nowhere", "torch==2.13.0+cpu"), ("Makefile", "torch===2.13.0")])
@pytest.mark.parametrize("there", [True, False])
def test_setup_takes_the_build_of_torch_for_the_machine_where_there_is_one(
    folder: Path, driver: str, build: str, there: bool
) -> None:
    if not there:
        (folder / "no-such-build").touch()
    assert make(folder, "setup", f"DRIVER={driver}").wait() == 0
    _, first, second = calls(folder)
    assert first.endswith(f" -c constraints.txt {build}")
    assert "torch" not in second, "the package asks for any build"
    assert make(folder, ".venv/.installed-test", f"DRIVER={driver}").wait() == 0
    assert sum("torch" in call for call in calls(folder)) == 1, "once"


@pytest.mark.parametrize("where", ["venv", "pip"])
def test_after_a_kill_it_starts_with_a_new_environment(folder: Path, where: str) -> None:
    (folder / f"slow-{where}").touch()
    process = make(folder)
    deadline = time.monotonic() + 20
    while not (folder / "half-way-written").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (folder / ".venv/half an installation").touch()
    (folder / f"slow-{where}").unlink()
    assert make(folder).wait() == 0
    assert not (folder / ".venv/half an installation").exists()
    assert [call.split()[0] for call in calls(folder)][-3:] == ["venv", "pip", "pip"]
    assert (folder / ".venv/.installed").exists()


def test_test_requirements_are_installed_on_top(folder: Path) -> None:
    assert make(folder, ".venv/.installed-test").wait() == 0
    assert [call.split()[0] for call in calls(folder)] == ["venv", "pip", "pip", "pip"]
    assert calls(folder)[-1].endswith("-e .[test]")


def test_a_kill_during_the_second_installation_redoes_everything(folder: Path) -> None:
    assert make(folder).wait() == 0
    (folder / ".venv.installing").touch()
    assert make(folder).wait() == 0
    assert [call.split()[0] for call in calls(folder)] == ["venv", "pip", "pip", "venv", "pip", "pip"]
    assert not (folder / ".venv.installing").exists()
