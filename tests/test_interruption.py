"""Signals: every stage ends within seconds, leaves no process behind and keeps finished work."""

import builtins
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pd_pipeline import graph, interruption
from pd_pipeline.__main__ import main
from pd_pipeline.interruption import Interrupted, held_back, terminated
from tests.conftest import run_stages, shared_project
from tests.dvc_project import change, invoke, make_project, start

SECONDS = 20.0
"""To end in. An idle machine takes one or two; one that runs other tests stalls for as long as that."""
# An environment as slow as a real robot, so that a signal always comes in the middle of a shard.
SLOW_FAMILY = """\
import time

from pd_pipeline.families.point_robot import PointRobot, PointRobotEnv


class SlowEnv(PointRobotEnv):
    def step(self, action):
        time.sleep(0.2)
        return super().step(action)


class Slow(PointRobot):
    def make(self, task):
        return SlowEnv(self._goal(task), self.params)
"""
SLOW_PARAMS = """\
run: {families: [slow], seeds: [0], methods: [prompt_dt]}
machine: {device: cpu}
families:
  slow:
    environment: {entry_point: "slow_family:Slow", horizon: 6, tasks: 4, test_tasks: [1, 3]}
    behavior_policies: {}
    trajectories: {workers: 2, episodes_per_shard: 2, episodes: {expert: {train: 20, test: 20}}}
    prompts: {length: 3, stride: 1}
    plm: {steps: 100000000, batch_per_task: 2, width: 8, layers: 1, context: 4}
    diffuser: {steps: 4, batch: 8}
    tuned_prompt_dt: {}
    evaluation: {workers: 1}
"""


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    root = make_project(tmp_path, SLOW_PARAMS)
    (root / "slow_family.py").write_text(SLOW_FAMILY)
    return root


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def shards(root: Path) -> set[str]:
    return {path.name for path in (root / ".work/trajectories").rglob("*.safetensors") if not path.name.startswith(".")}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_collection_ends_within_seconds_and_keeps_the_finished_shards(slow: Path, name: str) -> None:
    assert "levels" in invoke(slow, "run", "behavior_policies")
    process = start(slow, "pd-pipeline", "run", "trajectories")
    deadline = time.monotonic() + 60
    while len(shards(slow)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    finished, children = shards(slow), descendants(process)
    assert len(finished) >= 2
    assert len(children) >= 2
    process.send_signal(getattr(signal, name))  # only to the parent
    process.wait(timeout=SECONDS)
    _, alive = psutil.wait_procs(children, timeout=SECONDS)
    assert not alive
    assert process.returncode != 0
    assert "Traceback" not in (process.stdout.read() if process.stdout else "")
    assert shards(slow) >= finished
    assert not (slow / "data/trajectories/slow").exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_training_saves_and_exits(project: Path, name: str) -> None:
    text = (project / "params.yaml").read_text().replace("plm: {steps: 60,", "plm: {steps: 100000000,")
    (project / "params.yaml").write_text(text)
    process = start(project, "pd-pipeline", "run", "plm")
    assert process.stdout is not None
    next(line for line in process.stdout if "loss" in line)
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + getattr(signal, name)
    assert "Traceback" not in output
    assert output.endswith("interrupted: what was finished is kept; the same command goes on from there\n")
    assert len(list((project / ".work/plm").rglob("step-*.safetensors"))) == 1
    assert (project / "data/plm/point_robot-0/policy.safetensors").is_file(), "the old out is kept"


ENDLESS = 100_000_000
WHOLE_PARAMS = f"""\
run: {{families: [point_robot], seeds: [0], methods: [prompt_dt, full_finetune]}}
machine: {{device: cpu}}
families:
  point_robot:
    environment: {{horizon: 8, tasks: 4, test_tasks: [1, 3]}}
    behavior_policies: {{}}
    trajectories: {{workers: 1, episodes: {{expert: {{train: 3, test: 6}}}}}}
    prompts: {{length: 3, stride: 1}}
    plm: {{steps: 4, batch_per_task: 2, width: 8, layers: 1, context: 4}}
    diffuser: {{steps: 4, batch: 8, diffusion: {{steps: 4}}, denoiser: {{width: 8, blocks: 1}}}}
    tuned_prompt_dt: {{prompts: 4}}
    tuned_full_finetune: {{prompts: 4, steps: 5, batch: 4}}
    evaluation: {{workers: 2, bootstrap: 50}}
  cheetah_vel:
    environment: {{horizon: 20}}
    behavior_policies: {{learning: {{steps: {ENDLESS}, batch: 320, workers: 2}}}}
    trajectories: {{}}
    prompts: {{}}
    plm: {{}}
    diffuser: {{}}
    tuned_prompt_dt: {{}}
    tuned_full_finetune: {{}}
    evaluation: {{}}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with every out made."""

    def build(root: Path) -> None:
        make_project(root, WHOLE_PARAMS)
        run_stages(root, *graph.load(root).stages)

    return shared_project(tmp_path_factory, "interrupted", build)


STAGES = {
    "behavior_policies": ("families: [point_robot]", "families: [cheetah_vel]", 2),
    "tuned_full_finetune": ("steps: 5,", f"steps: {ENDLESS},", 0),
    "evaluation": ("evaluation: {workers: 2,", "evaluation: {workers: 2, episodes: 10000,", 2),
    "report": ("bootstrap: 50", "bootstrap: 51", 1),
}
"""Stage -> a change of params.yaml that gives it much to do, and the processes it starts for that."""


@pytest.mark.parametrize(("stage", "name"), [*((stage, "SIGTERM") for stage in STAGES), ("evaluation", "SIGINT")])
def test_every_stage_ends_within_seconds_and_leaves_no_process(
    whole: Path, tmp_path: Path, stage: str, name: str
) -> None:
    root = tmp_path / "project"
    shutil.copytree(whole, root)
    old, new, count = STAGES[stage]
    change(root, old, new)
    before = {path: path.read_bytes() for path in (root / "data" / stage).rglob("*") if path.is_file()}
    process = start(root, "pd-pipeline", "run", stage, "--force", "--no-record")
    work = root / ".work" / stage
    deadline, begun = time.monotonic() + 60, time.monotonic()
    children: list[psutil.Process] = []
    # half a second into the work, at a moment at which its workers are there: evaluation starts them for every round
    while time.monotonic() < deadline and (len(children) < count or time.monotonic() < begun + 0.5):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
        begun = begun if any(work.glob("*/*")) else time.monotonic()  # `work` itself stays when work is done
        children = descendants(process)
    assert len(children) >= count, process.communicate(timeout=SECONDS)[0]
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=SECONDS)
    _, alive = psutil.wait_procs(children, timeout=SECONDS)
    assert not alive
    assert process.returncode == 128 + getattr(signal, name), output
    assert "Traceback" not in output
    assert {path: path.read_bytes() for path in before} == before, "the old out is kept"


def test_a_signal_while_modules_are_imported_gives_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def interrupted(name: str, *arguments: Any, **rest: Any) -> Any:
        if name == "pd_pipeline.cli":
            raise KeyboardInterrupt
        return real(name, *arguments, **rest)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 128 + signal.SIGINT


def test_a_signal_that_is_held_back_is_handled_at_the_end() -> None:
    done: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def work() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            done.append("inside")
        done.append("after")

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["inside"]


def asked_to_stop(*signals: signal.Signals) -> None:
    """Signals arrive in a loop that never checks for them."""
    with terminated() as stop:
        for number in signals:
            os.kill(os.getpid(), number)
            assert stop()
        time.sleep(30)


def test_a_loop_that_does_not_check_for_signals_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(Interrupted):
        asked_to_stop(signal.SIGTERM)
    assert time.monotonic() - began < SECONDS


def test_a_second_signal_interrupts_at_once() -> None:
    with pytest.raises(Interrupted) as caught:
        asked_to_stop(signal.SIGINT, signal.SIGINT)
    assert caught.value.code == 128 + signal.SIGINT


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    with terminated() as stop:
        assert not stop()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
