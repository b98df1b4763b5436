"""An exported policy acts as the policy folder does, in onnxruntime and without this package."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from pd_pipeline import graph, load_policy
from pd_pipeline.cli import app
from pd_pipeline.deployment import onnx_export
from pd_pipeline.deployment.folder import FILE, PLM, PREFIX, describe
from pd_pipeline.deployment.onnx_export import Exported, export_onnx
from pd_pipeline.deployment.policy import read_policy
from pd_pipeline.deployment.writing import write_policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.saved_policy import save_policy
from pd_pipeline.records import listing
from pd_pipeline.storage import load_arrays, read_json, read_model, save_arrays, write_json
from tests.builders import policy as made_policy
from tests.deployment.conftest import TARGET

pytestmark = pytest.mark.xdist_group("onnx")  # the policy is translated once
EXAMPLE = Path(__file__).parents[2] / "docs/examples/act_with_onnx.py"
HORIZON = 12


@pytest.fixture
def quick(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is exported, the model is the one of `exported`: translating one takes seconds."""
    monkeypatch.setattr(onnx_export, "_write_model", lambda loaded, path: shutil.copy(exported / "policy.onnx", path))


def acted_without_this_package(folder: Path, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Actions of the example (T, d_a), in a process that cannot import this package or PyTorch."""
    steps = [{"observation": o.tolist(), "reward": float(r)} for o, r in zip(observations, rewards, strict=True)]
    del steps[0]["reward"]
    blocked = "import runpy, sys; sys.modules['pd_pipeline'] = sys.modules['torch'] = None; "
    run = f"sys.argv = ['example', {str(folder)!r}]; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    lines = "".join(json.dumps(step) + "\n" for step in steps)
    done = subprocess.run(
        [sys.executable, "-c", blocked + run], input=lines, capture_output=True, text=True, check=True
    )
    return np.array([json.loads(line) for line in done.stdout.splitlines()])


def episode(size: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(HORIZON, size)), rng.normal(size=HORIZON)


def test_the_example_acts_as_the_policy_does(written: Path, exported: Path) -> None:
    observations, rewards = episode()
    policy = load_policy(written)
    policy.reset()
    expected = [policy.act(o, None if i == 0 else rewards[i]) for i, o in enumerate(observations)]
    found = acted_without_this_package(exported, observations, rewards)
    assert found.shape == (HORIZON, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert len(EXAMPLE.read_text().splitlines()) < 36


def test_an_unusual_policy_too(written: Path, tmp_path: Path) -> None:
    """A window of one step, no prefix at all, several heads, bf16, and bounds that are not symmetric."""
    folder = Path(shutil.copytree(written, tmp_path / "policy"))
    loaded = read_policy(written)
    plm = made_policy(observation_size=2, max_timestep=HORIZON, acting_context=1, heads=2)
    mean, std = loaded.normalization.mean.copy(), loaded.normalization.std.copy()
    mean[2:4], std[2:4] = (0.25, 5.0), (0.5, 2.0)
    save_policy(folder / PLM, plm, replace(loaded.normalization, mean=mean, std=std))
    arrays, _ = load_arrays(folder / PREFIX)
    save_arrays(folder / PREFIX, {name: array[:0] for name, array in arrays.items()})
    about = describe(written).model_dump(mode="json")
    files = {name: digest for name, digest in listing(folder).items() if name != FILE}
    bounds = {"action_low": [-0.25, 3.0], "action_high": [0.75, 7.0]}
    write_json(folder / FILE, about | bounds | {"precision": "bf16", "acting_context": 1, "files": files})
    out, about = export_onnx(folder, tmp_path / "out")
    assert about.window == 1
    assert about.inputs[1].shape == ("batch", 1, 2)
    observations, rewards = episode()
    policy = load_policy(folder)
    policy.reset()
    expected = [policy.act(o, None if i == 0 else rewards[i]) for i, o in enumerate(observations)]
    found = acted_without_this_package(out, observations, rewards)
    np.testing.assert_allclose(found, expected, atol=0.1, rtol=0, err_msg="bf16 has three digits")
    assert found.min(0)[1] >= 3
    assert np.ptp(found, axis=0).min() > 0.01


def test_the_description_says_how_to_act(written: Path, exported: Path) -> None:
    about, of_policy = read_model(exported / "policy.onnx.json", Exported), describe(written)
    assert (about.family, about.task, about.method) == ("point_robot", TARGET.task, "prompt_dt")
    assert (about.target_return, about.window, about.horizon) == (of_policy.target_return, 6, HORIZON)
    assert about.checked_windows == HORIZON, "one per step of the few-shot trajectory"
    assert 0 < about.largest_difference < about.tolerance == 1e-5
    session = onnxruntime.InferenceSession(exported / "policy.onnx")
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64"}
    for ports, found in ((about.inputs, session.get_inputs()), (about.outputs, session.get_outputs())):
        assert [(p.name, p.type, list(p.shape)) for p in ports] == [(f.name, kinds[f.type], f.shape) for f in found]


def test_several_windows_at_once(written: Path, exported: Path) -> None:
    loaded = read_policy(written)
    session = onnxruntime.InferenceSession(exported / "policy.onnx")
    generator = torch.Generator().manual_seed(0)
    for count, length in ((1, 1), (3, 2), (5, 6)):
        shapes = (count, length), (count, length, 2), (count, length, 2)
        values = [torch.randn(shape, generator=generator) for shape in shapes]
        window = [*values, torch.arange(length).repeat(count, 1)]
        expected = onnx_export._Network(loaded)(*window)
        given = {name: part.numpy() for name, part in zip(onnx_export.INPUTS, window, strict=True)}
        (found,) = session.run(["action"], given)
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def test_the_file_says_nothing_of_where_it_was_written(exported: Path) -> None:
    content = (exported / "policy.onnx").read_bytes()
    assert str(Path(onnx_export.__file__).parents[1]).encode() not in content
    assert b".py" not in content
    assert {path.name for path in exported.iterdir()} == {"policy.onnx", "policy.onnx.json"}


@pytest.mark.usefixtures("quick")
def test_a_model_that_acts_otherwise_is_not_exported(tuned_project: Path, tmp_path: Path) -> None:
    write_policy(graph.load(tuned_project), "full_finetune", TARGET, tmp_path / "policy")
    with pytest.raises(
        PipelineError, match=r"differ from those of PyTorch by .*, more than 1e-05: nothing is exported"
    ):
        export_onnx(tmp_path / "policy", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.usefixtures("quick")
def test_an_action_that_is_no_number_is_not_exported(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime.InferenceSession.run

    def run(session: onnxruntime.InferenceSession, *arguments: object) -> list[np.ndarray]:
        (found,) = real(session, *arguments)
        return [found * np.nan] if len(found) == 1 else [found]

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)
    with pytest.raises(PipelineError, match="by nan, more than"):
        export_onnx(written, tmp_path / "out")


@pytest.mark.usefixtures("quick")
def test_the_command(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(written, "data/promoted/point_robot-4/0001")
    write_json(Path("data/promoted/point_robot-4/current.json"), {"version": 1})
    result = CliRunner().invoke(app, ["export-policy", "point_robot-4"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["point_robot-4-onnx/policy.onnx", "point_robot-4-onnx/policy.onnx.json"]
    assert "largest difference to PyTorch on 12 real windows: " in lines[2]
    assert read_json(Path(lines[1]))["method"] == "prompt_dt"
    assert CliRunner().invoke(app, ["export-policy", "point_robot-4"]).exit_code == 0, "an export is replaced"
    refused = CliRunner().invoke(app, ["export-policy", "point_robot-4", "--out", "."])
    assert refused.exit_code == 1
    assert refused.stderr == "error: .: holds data, and would be replaced as a whole: name another folder\n"
    assert CliRunner().invoke(app, ["export-policy", "point_robot-4", "--format", "tflite"]).exit_code == 2


def test_a_missing_package_is_named(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PipelineError, match=r"the package onnxscript: pip install 'pd-pipeline\[onnx\]'"):
        export_onnx(written, tmp_path / "out")
