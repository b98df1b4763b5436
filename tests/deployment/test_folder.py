"""The policy folder and the versions of a target: how they are found, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pd_pipeline import load_policy
from pd_pipeline.deployment.folder import current_policy, describe, locate
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import read_json, write_json


@pytest.fixture
def policy(written: Path, tmp_path: Path) -> Path:
    """A private copy of a policy folder."""
    return Path(shutil.copytree(written, tmp_path / "policy"))


@pytest.fixture
def promoted(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two versions of the policy of reach-5, the second in use."""
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "data/promoted/reach-5"
    for version in ("0001", "0002"):
        shutil.copytree(written, target / version)
    write_json(target / "current.json", {"version": 2})
    return target


def test_a_target_is_its_version_in_use(promoted: Path) -> None:
    assert locate("reach-5").resolve() == promoted / "0002"
    assert locate(promoted) == current_policy(promoted) == promoted / "0002"
    assert locate(promoted / "0001") == promoted / "0001"
    write_json(promoted / "current.json", {"version": 1})
    assert locate("reach-5").resolve() == promoted / "0001"
    assert load_policy("reach-5").description == describe(promoted / "0001")


def test_a_folder_here_comes_before_a_target_of_its_name(promoted: Path, written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "reach-5")
    assert locate("reach-5") == Path("reach-5")
    assert locate(str(promoted)) == promoted / "0002"


@pytest.mark.parametrize("version", [3, 0, -1, "2", None, True, 1.0])
def test_a_version_in_use_that_is_not_there_is_refused(promoted: Path, version: object) -> None:
    write_json(promoted / "current.json", {"version": version})
    with pytest.raises(PipelineError, match=r"current.json: (names version 3, but|damaged: .*writes it again)"):
        locate("reach-5")


def test_a_missing_folder_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"^data/promoted/reach-5: no such folder: no policy of target reach-5"):
        load_policy("reach-5")
    with pytest.raises(PipelineError, match=r"^some/where: no such folder: name a policy folder, or a target"):
        load_policy("some/where")
    (tmp_path / "empty-1").mkdir()
    with pytest.raises(PipelineError, match=r"empty-1/policy.json: no such file: empty-1 is not a policy folder"):
        load_policy("empty-1")
    (tmp_path / "data/promoted/reach-5").mkdir(parents=True)
    with pytest.raises(PipelineError, match=r"reach-5/policy.json: no such file: .* is not a policy folder"):
        load_policy("reach-5")
    with pytest.raises(PipelineError, match=r"reach-5/current.json: no such file: no policy of this target is in use"):
        current_policy(tmp_path / "data/promoted/reach-5")


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_format_version_is_refused(policy: Path, version: object) -> None:
    values = read_json(policy / "policy.json") | {"format": version}
    (policy / "policy.json").write_text(json.dumps(values))
    with pytest.raises(PipelineError, match=rf"policy.json: format version {version}, but this .* reads 1: write"):
        load_policy(policy)


FILES = ("plm/config.json", "plm/policy.safetensors", "plm/normalization.safetensors", "prefix.safetensors")


@pytest.mark.parametrize("name", [*FILES, "sample.safetensors"])
def test_a_damaged_file_is_named(policy: Path, name: str) -> None:
    assert name in describe(policy).files
    path = policy / name
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1  # one bit
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=f"{name}: damaged: not the file that was written: copy the whole"):
        load_policy(policy)
    path.write_bytes(content[:-3])
    with pytest.raises(PipelineError, match=f"{name}: damaged"):
        load_policy(policy)
    path.unlink()
    with pytest.raises(PipelineError, match=f"{name}: no such file: copy the whole policy folder again"):
        load_policy(policy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 13}, "policy.json is not that of the PLM beside it"),
        ({"target_return": None}, "policy.json: target_return: "),
        ({"action_low": [-1.0]}, "action_low and action_high need action_size numbers each"),
        ({"speed": 1}, "policy.json: speed: no such parameter"),
    ],
)
def test_a_description_that_was_edited_is_refused(policy: Path, change: dict[str, object], message: str) -> None:
    write_json(policy / "policy.json", read_json(policy / "policy.json") | change)
    with pytest.raises(PipelineError, match=message):
        load_policy(policy)
    (policy / "policy.json").write_text("{")
    with pytest.raises(PipelineError, match=r"policy.json: not valid JSON"):
        load_policy(policy)


def test_the_device_is_checked(written: Path) -> None:
    with pytest.raises(PipelineError, match=r"load_policy.device: .* \(found 'gpu'\)"):
        load_policy(written, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(PipelineError, match="there is no CUDA device: use auto or cpu"):
            load_policy(written, device="cuda")
