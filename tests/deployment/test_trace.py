"""`pd-pipeline lineage`: the promoted policy's past, on this machine or another, and whether the files are the same."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from pd_pipeline import graph
from pd_pipeline.cli import app
from pd_pipeline.deployment.ancestry import Ancestry, Piece, Source
from pd_pipeline.deployment.promotion import decisions, promote, roll_back
from pd_pipeline.deployment.trace import STATES, Check, Trace, checked, few_shot_of, trace
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import write_json
from tests.conftest import run_stages
from tests.deployment.test_promotion import TARGET, given, retuned
from tests.docs.pages import ROOT

HOME = Path("data/promoted") / TARGET
TUNED = "tuned_prompt_dt@point_robot-4-0"


@pytest.fixture
def root(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a promoted policy, as the working directory."""
    run_stages(project, "tuned_prompt_dt")
    (project / "params.yaml").write_text("promotion: {method: prompt_dt}\n" + (project / "params.yaml").read_text())
    promote(graph.load(project), TARGET)
    monkeypatch.chdir(project)
    return project


def called(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["lineage", *arguments])


def parameters_of(found: Trace) -> dict[str, Any]:
    values = found.lineage.pieces[0].parameters
    assert values is not None
    return values


def test_the_policy_in_use_and_those_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = trace(TARGET)
    assert (first.folder, first.version, first.in_use) == (f"{HOME}/0001", 1, True)
    assert first.decision == decisions(root, TARGET)[0]
    assert first.since == first.decision.decided
    given(monkeypatch, [2.0, 2.0], [1.0, 1.0])
    promote(retuned(root, 3), TARGET)
    second = trace(TARGET)
    assert (second.version, second.in_use, second.decision) == (2, True, decisions(root, TARGET)[1])
    assert parameters_of(second)["prompts"] == 3
    before = trace(TARGET, 1)
    assert (before.version, before.in_use, before.since) == (1, False, None)
    assert before.lineage == first.lineage, "it is that of the promoted policy, not of what is tuned now"
    assert parameters_of(before)["prompts"] == 8
    for path in (HOME / "0001", root / HOME / "0001"):
        assert trace(str(path)).lineage == first.lineage
    monkeypatch.chdir(HOME / "0001")
    assert (trace(".").version, trace(".").decision) == (1, first.decision)
    monkeypatch.chdir(root)
    roll_back(root, TARGET)
    again = trace(TARGET)
    assert (again.version, again.decision) == (1, first.decision), "by which it was promoted"
    assert again.since == decisions(root, TARGET)[2].decided


def test_everything_is_the_same_after_promotion(root: Path) -> None:
    check = checked(trace(TARGET), root).check
    assert check is not None
    assert check.good
    assert {*check.policy.values(), *check.pieces.values(), *check.sources.values()} == {"same"}
    assert check.policy.keys() == {file.relative_to(HOME / "0001").as_posix() for file in files_of(HOME / "0001")}
    assert len(check.pieces) == 6
    assert check.sources.keys() == {f"data/trajectories/point_robot/{q}.parquet" for q in ("expert", "random")}


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_changed_upstream_is_named_and_does_not_decide(root: Path) -> None:
    retuned(root, 3)
    (root / "data/plm/point_robot-0/losses.csv").write_text("edited\n")
    shutil.rmtree(root / "data/prompts")
    (root / "data/trajectories/point_robot/random.parquet").write_bytes(b"edited")
    check = checked(trace(TARGET), root).check
    assert check is not None
    assert check.pieces == {
        TUNED: "made again",
        "target_data@point_robot-4": "same",
        "plm@point_robot-0": "changed",
        "prompts@point_robot": "not here",
        "trajectories@point_robot": "changed",
        "behavior_policies@point_robot": "same",
    }
    assert check.sources["data/trajectories/point_robot/random.parquet"] == "changed"
    assert check.good
    result = called(TARGET, "--check")
    assert result.exit_code == 0
    assert f"{TUNED}: data/tuned_prompt_dt/point_robot-0/4 [made again since]" in result.stdout
    assert "\n  plm@point_robot-0: data/plm/point_robot-0 [changed since]\n" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.endswith("upstream: 3 the same files, 3 changed since, 1 made again since, 1 not here")


@pytest.mark.parametrize("file", ["prefix.safetensors", "plm/policy.safetensors", "plm/config.json"])
@pytest.mark.parametrize("state", ["changed", "not here"])
def test_a_file_of_the_policy_that_differs_is_an_error(file: str, state: str, root: Path) -> None:
    path = HOME / "0001" / file
    if state == "changed":
        path.write_bytes(path.read_bytes() + b" ")
    else:
        path.unlink()
    result = called(TARGET, "--check", "--json")
    assert result.exit_code == 1
    check = json.loads(result.stdout)["check"]
    assert not check["good"]
    assert {name: found for name, found in check["policy"].items() if found != "same"} == {file: state}
    shown = called(TARGET, "--check")
    assert shown.exit_code == 1
    assert f"{file} [{STATES[state]}]" in shown.stdout  # type: ignore[index]
    assert "the policy is not the one that was written" in shown.stdout
    assert called(TARGET).exit_code == 0, "without --check its past is shown all the same"


@pytest.mark.parametrize("where", ["policy.json", "decisions/0001.json"])
def test_a_policy_json_that_does_not_agree_is_an_error(where: str, root: Path) -> None:
    path = HOME / where if "/" in where else HOME / "0001" / where
    values = json.loads(path.read_text())
    name = sorted(values["made_from"])[0]
    write_json(path, values | {"made_from": values["made_from"] | {name: "0" * 64}})
    check = checked(trace(TARGET), root).check
    assert check is not None
    assert [file for file, state in check.policy.items() if state != "same"] == ["policy.json"]
    result = called(TARGET, "--check")
    assert result.exit_code == 1
    assert "policy.json does not agree with lineage.json or with the decision" in result.stdout


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text("{}"), r"lineage.json: damaged: not the file that was written: copy the whole"),
        (lambda path: path.unlink(), r"lineage.json: no such file: copy the whole policy folder again"),
    ],
)
def test_a_damaged_lineage_is_refused(damage: Any, message: str, root: Path) -> None:
    damage(HOME / "0001/lineage.json")
    with pytest.raises(PipelineError, match=message):
        trace(TARGET)


def test_it_goes_with_the_folder_to_another_machine(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = trace(TARGET)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(root / HOME, elsewhere / "robot")
    shutil.copytree(root / HOME / "0001", elsewhere / "alone")
    shutil.rmtree(root)
    monkeypatch.chdir(elsewhere)
    whole, alone = trace("robot"), trace("alone")
    assert whole == here.model_copy(update={"folder": "robot/0001"})
    assert alone.lineage == here.lineage
    assert (alone.version, alone.in_use, alone.since, alone.decision) == (None, None, None, None)
    for name in ("robot", "alone"):
        result = called(name, "--check")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1].endswith("upstream: 8 not here")


def test_the_text_has_every_digest_once(root: Path) -> None:
    found = trace(TARGET)
    result = called(TARGET)
    assert result.exit_code == 0
    text = result.stdout
    assert re.match(rf"{TARGET}: version 1, in use since {re.escape(str(found.since))}\n  promoted .*first one\n", text)
    for digest in found.policy.files.values():
        assert text.count(digest) == 1
    for piece in found.lineage.pieces:
        assert piece.digest is not None
        assert text.count(piece.digest) == 1
        assert text.count(f"{piece.name}: {piece.out}\n") == 1
        assert f"code {piece.code}" in text
        for source in piece.sources:
            assert f"digest {source.digest}" in text
    assert text.count("trajectories@point_robot: see above\n") == 2
    assert "parameters: context=6, layers=2, log_every=10, steps=60, width=16; else the defaults\n" in text
    assert "environment of point_robot: horizon=12, tasks=6, test_tasks=[1, 4]; else the defaults\n" in text
    assert "expert: data/trajectories/point_robot/expert.parquet, collected with seed 0\n" in text
    assert "few-shot episodes of target_data: expert " in text


def test_json_is_the_whole_trace(root: Path) -> None:
    result = called(TARGET, "--json")
    assert result.exit_code == 0
    assert Trace.model_validate_json(result.stdout) == trace(TARGET)
    assert json.loads(result.stdout)["check"] is None


def test_what_cannot_be_traced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: str) -> str:
        result = called(*arguments)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        return result.stderr

    assert refused("point_robt-4").endswith("either: did you mean 'point_robot-4'?\n")
    assert refused("point_robot4").endswith("or a target such as reach-5: did you mean 'point_robot-4'?\n")
    assert refused(TARGET, "--version", "3") == f"error: --version 3: {HOME}: choose one of 1\n"
    shutil.copytree(HOME / "0001", "alone")
    assert "--version 1: alone is a policy folder and not a target with versions" in refused("alone", "--version", "1")
    monkeypatch.chdir(root / "data/plm")
    assert refused(TARGET).endswith("there is no policy folder point_robot-4 either\n"), "nothing to suggest"


def test_few_shot_episodes_of_an_accepted_file() -> None:
    values = {"kind": "accepted", "quality": "expert", "file": None, "digest": None}
    piece: dict[str, Any] = dict.fromkeys(Piece.model_fields)
    piece |= {"name": "a", "stage": "a", "key": "", "out": "a", "files": {}, "changed": {}, "environment_changed": {}}
    one = Piece.model_validate(piece | {"needs": (), "replaced": {}, "sources": ()})
    ancestry = Ancestry(revision="unknown", tuned_on={"expert": (2, 5, 6, 8)}, pieces=(one,))
    assert few_shot_of(Source(**values, first_episode=5, episodes=3), ancestry) == (5, 6)  # type: ignore[arg-type]
    assert few_shot_of(Source(**values), ancestry) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [Trace, Ancestry, Piece, Source, Check])
def test_the_page_has_every_field(model: type[BaseModel]) -> None:
    page = (ROOT / "docs/lineage.md").read_text()
    section = re.search(rf"^### `{model.__name__}`.*?\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    assert section is not None
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section[1], flags=re.MULTILINE)
    assert {name: text.strip() for name, text in rows} == {
        name: field.description or "" for name, field in model.model_fields.items()
    }
