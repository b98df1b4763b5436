"""The pieces of the accelerator's benchmark, in small on the CPU; what is measured before is not measured again."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import correctness, gpu
from benchmarks.common import at_least, share_of
from pd_pipeline.storage import read_json

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench() -> gpu.Bench:
    return gpu.Bench.on(CPU, quick=True)


def test_the_cpu_computes_what_the_cpu_does(bench: gpu.Bench) -> None:
    figures = correctness.differences(bench)
    off = {figure.what: figure.ours for figure in figures}
    half = off.pop("PLM loss in bf16, against float32, relative difference from the CPU")
    assert 0 < half < 0.02, "bf16 rounds"
    assert set(off.values()) == {0}
    assert all(figure.met for figure in figures)


@pytest.mark.parametrize(
    ("function", "missed"),
    [("sample", {"generated prompts", "guidance gradient through the chain"}), ("policy_loss", {"PLM loss"})],
)
def test_a_device_that_computes_something_else_is_seen(
    function: str, missed: set[str], bench: gpu.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(correctness, function), list[torch.Tensor]()

    def drifting(*given: Any) -> torch.Tensor:
        calls.append(real(*given))
        return calls[-1] * (1 + 0.01 * (len(calls) - 1))

    monkeypatch.setattr(correctness, function, drifting)
    monkeypatch.setattr(correctness, "_resumed", lambda *given: 0.0)  # it trains, and calls neither of them
    figures = correctness.differences(bench)
    found = {figure.what.removesuffix(", relative difference from the CPU") for figure in figures if not figure.met}
    assert missed <= found


@pytest.mark.parametrize("piece", ["plm_128x3", "tuning", "acting"])
def test_a_piece_has_figures(piece: str, bench: gpu.Bench) -> None:
    figures, _ = gpu.PIECES[piece](bench)
    assert figures
    assert all(figure.ours >= 0 and figure.reference > 0 for figure in figures)


def test_what_was_measured_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"fast": 0, "slow": 0}

    def measured(name: str, met: bool) -> gpu.Measured:
        counts[name] += 1
        return [at_least(name, 1.0 + met, 2.0, "x", goal=1), share_of("share", 1.0, 2.0, "x")], {"count": counts[name]}

    pieces = {"fast": lambda bench: measured("fast", True), "slow": lambda bench: measured("slow", False)}
    monkeypatch.setattr(gpu, "PIECES", pieces)

    def go(*names: str, again: bool = False, quick: bool = False, minutes: float = 9.0) -> bool:
        return gpu.run(CPU, list(names), tmp_path, again=again, quick=quick, minutes=minutes)

    assert go("fast", quick=True)
    assert not list(tmp_path.iterdir()), "quick writes no result"
    assert go("fast")
    assert not go("fast", "slow"), "a missed goal is a failure"
    assert counts == {"fast": 2, "slow": 1}
    saved = read_json(tmp_path / "cpu.json")
    assert saved.keys() == {"fast", "slow"}
    assert saved["slow"]["figures"][0]["met"] is False
    assert saved["slow"]["machine"]["device"] == "cpu"
    assert go("fast", again=True)
    assert read_json(tmp_path / "cpu.json")["fast"]["details"] == {"count": 3}
    assert go("fast", again=True, minutes=0.0)
    assert counts["fast"] == 3
    assert "left for the next time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "expected"), [("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"), ("A/B (C)", "a-b-c")]
)
def test_a_card_names_its_file(name: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert gpu.card(torch.device("cuda")) == expected
    assert gpu.card(CPU) == "cpu"


def test_it_needs_no_simulator_no_dagster_and_no_dvc() -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(('dagster', 'dvc', 'mujoco', 'metaworld')))"
    subprocess.run(
        [sys.executable, "-c", f"{absent}; import benchmarks.gpu"], check=True, cwd=Path(__file__).parents[2]
    )
