"""The two pre-training stages on point_robot: what they write, and that a kill changes none of the bytes."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.saved_diffuser import load_diffuser
from pd_pipeline.models.saved_policy import load_policy
from pd_pipeline.records import find
from pd_pipeline.storage import digest
from pd_pipeline.training import loop
from tests.conftest import run_stages

CHILD = """
import sys, time
from pathlib import Path
from pd_pipeline import graph
from pd_pipeline.piece import run_piece
from pd_pipeline.training import loop

save = loop.Trainer._save
def slow_save(self):  # so that the parent finds the process alive
    save(self)
    time.sleep(0.03)
loop.Trainer._save = slow_save

project = graph.load(Path(sys.argv[1]))
stage, key = sys.argv[2:]
run_piece(project, stage, project.key(stage, key), lambda *_: print("step", flush=True))
"""


def child(root: Path, stage: str, key: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(root), stage, key], stdout=subprocess.PIPE, text=True)


def checkpoints(root: Path, stage: str, key: str) -> list[Path]:
    return sorted((root / ".work" / stage / key).rglob("step-*.safetensors"))


def set_params(root: Path, old: str, new: str) -> None:
    path = root / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def kill_at(root: Path, stage: str, key: str, step: int, folder: str = "") -> None:
    """Run a stage in a separate process and kill it with SIGKILL once it has done `step` steps."""
    process = child(root, stage, key)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        found = [path for path in checkpoints(root, stage, key) if folder in str(path)]
        if found and int(found[-1].stem.removeprefix("step-")) >= step:
            break
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was killed before it was done"
    assert checkpoints(root, stage, key)


@pytest.mark.parametrize(("stage", "logged"), [("plm", "log_every: 10"), ("diffuser", "log_every: 20")])
def test_killed_at_a_random_step_and_run_again_the_bytes_are_the_same(
    trained_project: Path, project: Path, stage: str, logged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = project / f"data/{stage}/point_robot-0"
    reference = digest(out)
    assert reference == digest(trained_project / f"data/{stage}/point_robot-0")
    set_params(project, logged, f"{logged}, checkpoint_seconds: 0")
    stood = out.stat().st_ino
    step = random.randint(1, 40)
    kill_at(project, stage, "point_robot-0", step)
    assert (out.stat().st_ino, digest(out)) == (stood, reference), "the old out stays until the new one is complete"
    resumed: list[int] = []
    take = loop.Trainer._restore

    def watched(self: loop.Trainer, found: loop.Checkpoint) -> None:
        resumed.append(found.step)
        take(self, found)

    monkeypatch.setattr(loop.Trainer, "_restore", watched)
    run_stages(project, stage)
    assert digest(out) == reference, f"killed at step {step}"
    assert out.stat().st_ino != stood
    assert resumed[0] >= step, "it resumed where it had stopped"
    assert not (project / ".work" / stage / "point_robot-0").exists()


def test_sigterm_saves_once_and_exits_with_143(project: Path) -> None:
    set_params(project, "plm: {steps: 60", "plm: {checkpoint_seconds: 1000, steps: 200000")
    process = child(project, "plm", "point_robot-0")
    assert process.stdout is not None
    assert process.stdout.readline() == "step\n"
    process.terminate()
    assert process.wait(60) == 143
    assert len(checkpoints(project, "plm", "point_robot-0")) == 1


def test_files_written_by_the_plm_stage(trained_project: Path) -> None:
    out = trained_project / "data/plm/point_robot-0"
    names = {path.name for path in out.iterdir()}
    assert names == {"policy.safetensors", "config.json", "normalization.safetensors", "losses.csv"}
    policy, normalization = load_policy(out)
    assert not policy.training
    assert not any(p.requires_grad for p in policy.parameters())
    assert (policy.config.prompt_length, policy.config.context, policy.config.max_timestep) == (3, 6, 12)
    assert normalization.horizon == 12
    header, *rows = (out / "losses.csv").read_text().splitlines()
    assert header.split(",") == ["step", "loss", "learning_rate", "validation_loss"]
    losses = [float(row.split(",")[1]) for row in rows]
    assert len(rows) == 6
    assert losses[-1] < 0.8 * losses[0], "it learns"
    assert list((trained_project / "data/tensorboard/plm/point_robot-0").iterdir())


def test_files_written_by_the_diffuser_stage(trained_project: Path) -> None:
    out = trained_project / "data/diffuser/point_robot-0"
    names = {path.name for path in out.iterdir()}
    assert names == {"denoiser.safetensors", "config.json", "losses.csv"}
    denoiser, diffusion = load_diffuser(out)
    assert (denoiser.config.channels, denoiser.config.prompt_length, diffusion.steps) == (5, 3, 8)
    losses = [float(row.split(",")[1]) for row in (out / "losses.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]


def test_the_record_names_device_and_precision(trained_project: Path) -> None:
    for stage in ("plm", "diffuser"):
        record = find(trained_project, stage, "point_robot-0")
        assert record is not None
        assert record.device == "cpu"
        assert record.precision == ("bf16" if loop.use_bf16("auto", torch.device("cpu")) else "float32")


def test_a_quality_without_prompts_is_refused(project: Path) -> None:
    set_params(project, "{steps: 80,", "{qualities: [random], steps: 80,")
    with pytest.raises(PipelineError, match=r"diffuser\.qualities: there are no prompts of 'random': add it"):
        run_stages(project, "diffuser")


def test_results_depend_on_the_seed_and_global_generators_are_untouched(project: Path) -> None:
    out = project / "data/plm/point_robot-0"
    reference = digest(out)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run_stages(project, "plm")
    assert digest(out) == reference
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    set_params(project, "seeds: [0]", "seeds: [1]")
    run_stages(project, "plm")
    other = project / "data/plm/point_robot-1"
    assert (other / "policy.safetensors").read_bytes() != (out / "policy.safetensors").read_bytes()


def test_weights_beside_another_config_are_refused(project: Path) -> None:
    config = project / "data/plm/point_robot-0/config.json"
    config.write_text(config.read_text().replace('"width": 16', '"width": 32'))
    with pytest.raises(PipelineError, match=r"policy\.safetensors: these weights do not fit"):
        load_policy(config.parent)


def test_missing_inputs_are_named(project: Path) -> None:
    (project / "data/prompts/point_robot").rename(project / "elsewhere")
    with pytest.raises(PipelineError, match=r"data/prompts/point_robot: missing: run `pd-pipeline run prompts"):
        run_stages(project, "diffuser")
