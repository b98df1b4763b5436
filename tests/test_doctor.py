"""What the doctor says of torch and the accelerator; the rest of it is in test_cli.py, through the command."""

from pathlib import Path

import pytest
import torch

from pd_pipeline.doctor import accelerator

NONE = Path("/nonexistent")


def said(driver: Path) -> str:
    (finding,) = accelerator(driver)
    return str(finding)


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA\n")
    return file


def built_for(monkeypatch: pytest.MonkeyPatch, cuda: str | None, available: bool = False) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0+" + (f"cu{cuda.replace('.', '')}" if cuda else "cpu"))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")


def test_a_build_for_cpus(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    built_for(monkeypatch, None)
    assert said(NONE) == "ok      torch 2.13.0+cpu trains on the CPU"
    found = said(driver)
    assert found.startswith("note    there is an NVIDIA driver, but torch 2.13.0+cpu is a build for CPUs")
    assert "install the build of 2.13.0 for CUDA" in found


def test_a_build_for_cuda(monkeypatch: pytest.MonkeyPatch, driver: Path) -> None:
    built_for(monkeypatch, "13.0", available=True)
    assert said(driver) == "ok      torch 2.13.0+cu130 trains on a card (cuda)"
    built_for(monkeypatch, "13.0")
    assert said(driver).startswith("problem torch 2.13.0+cu130 is built for CUDA 13.0 but finds no GPU: update")
    assert "there is no NVIDIA driver: it trains on the CPU" in said(NONE)
