"""A policy is put in use, kept, refused or taken back; at every instant one whole policy is in use."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pd_pipeline import graph, load_policy
from pd_pipeline.cli import app
from pd_pipeline.decisions import decisions
from pd_pipeline.deployment import promotion
from pd_pipeline.deployment.candidates import in_use, versions
from pd_pipeline.deployment.folder import describe
from pd_pipeline.deployment.promotion import promote, roll_back
from pd_pipeline.deployment.scoring import PairedScores, paired_scores
from pd_pipeline.deployment.writing import write_policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph
from pd_pipeline.incoming.standing import Status, status
from pd_pipeline.stage import Key
from pd_pipeline.storage import read_json
from tests.conftest import run_stages
from tests.training.test_stages import set_params

TARGET = "point_robot-4"


@pytest.fixture
def root(project: Path) -> Path:
    run_stages(project, "tuned_prompt_dt")
    (project / "params.yaml").write_text("promotion: {method: prompt_dt}\n" + (project / "params.yaml").read_text())
    return project


def retuned(root: Path, prompts: int) -> Graph:
    """The policy tuned again, with another number of prompts."""
    before = "tuned_prompt_dt: {}" if prompts == 3 else f"tuned_prompt_dt: {{prompts: {prompts - 1}}}"
    set_params(root, before, f"tuned_prompt_dt: {{prompts: {prompts}}}")
    run_stages(root, "tuned_prompt_dt")
    return graph.load(root)


def given(monkeypatch: pytest.MonkeyPatch, candidate: list[float], incumbent: list[float]) -> None:
    found = PairedScores("return", 1, np.array(candidate), np.array(incumbent))
    monkeypatch.setattr(promotion, "paired_scores", lambda *arguments: found)


def test_the_first_policy_is_put_in_use(root: Path) -> None:
    decision = promote(graph.load(root), TARGET)
    assert decision is not None
    assert (decision.outcome, decision.version, decision.against) == ("promoted", 1, None)
    assert in_use(root, TARGET) == (1, decision.decided)
    policy = load_policy(root / "data/promoted" / TARGET)
    assert (policy.description.method, policy.description.task) == ("prompt_dt", 4)
    assert decisions(root, TARGET) == [decision]
    given = read_json(root / "data/tuned_prompt_dt/point_robot-0/4/summary.json")
    assert decision.used_episodes == {"expert": tuple(given["few_shot_episodes"])}


def test_nothing_new_changes_nothing(root: Path) -> None:
    promote(graph.load(root), TARGET)
    before = sorted(path.name for path in (root / "data/promoted" / TARGET).rglob("*"))
    assert promote(graph.load(root), TARGET) is None
    assert sorted(path.name for path in (root / "data/promoted" / TARGET).rglob("*")) == before


@pytest.mark.parametrize(
    ("candidate", "outcome"),
    [
        ([10.0, 11.0, 12.0, 13.0], "promoted"),  # equal
        ([10.1, 11.2, 12.0, 13.1], "promoted"),  # better
        ([9.9, 10.9, 11.9, 12.9], "promoted"),  # worse by less than the margin of 2 % of 11.5
        ([9.5, 10.5, 11.5, 12.5], "refused"),  # worse by more
        ([5.0, 20.0, 5.0, 20.0], "refused"),  # better on average, but nobody knows
    ],
)
def test_a_new_policy_is_refused_unless_the_whole_interval_is_above_the_margin(
    candidate: list[float], outcome: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(graph.load(root), TARGET)
    given(monkeypatch, candidate, [10.0, 11.0, 12.0, 13.0])
    alerts: list[tuple[str, ...]] = []
    monkeypatch.setattr(promotion, "alert", lambda _, *said: alerts.append(said))
    project = retuned(root, 3)
    decision = promote(project, TARGET)
    assert decision is not None
    assert decision.outcome == outcome
    now = 2 if outcome == "promoted" else 1
    assert in_use(root, TARGET) == (now, decisions(root, TARGET)[now - 1].decided)
    assert versions(root / "data/promoted" / TARGET) == list(range(1, now + 1))
    assert (decision.against, decision.measure, decision.count, decision.margin) == (
        1,
        "return",
        4,
        pytest.approx(0.23),
    )
    assert decision.candidate == np.mean(candidate)
    assert decision.better_by is not None
    difference = np.array(candidate) - [10.0, 11.0, 12.0, 13.0]
    assert decision.better_by[0] == pytest.approx(difference.mean())
    assert promote(project, TARGET) is None, "a refused policy is not compared again"
    assert alerts == ([("refusal", TARGET, decision.reason)] if outcome == "refused" else [])


def test_the_same_policy_scores_the_same_in_the_same_episodes(root: Path, tmp_path: Path) -> None:
    project, key = graph.load(root), Key("point_robot", 4, 0)
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        write_policy(project, "prompt_dt", key, folder)
    found = paired_scores(project, key, *folders, [], lambda text: None)
    assert (found.measure, found.sign, len(found.candidate)) == ("return", 1, 20)
    np.testing.assert_array_equal(found.candidate, found.in_use)


def test_status_says_what_is_in_use_and_what_is_newer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(status(graph.load(root))) == []
    decision = promote(graph.load(root), TARGET)
    assert decision is not None
    (found,) = status(graph.load(root))
    assert found == Status(TARGET, f"version 1 since {decision.decided}", "", "", "", "")
    set_params(root, "tuned_prompt_dt: {}", "tuned_prompt_dt: {prompts: 3}")
    (one,) = status(graph.load(root))
    assert one.newer == (
        f"tuned_prompt_dt is out of date: `pd-pipeline run tuned_prompt_dt --key {TARGET}-0`, "
        f"then `pd-pipeline promote {TARGET}`"
    )
    run_stages(root, "tuned_prompt_dt")
    (one,) = status(graph.load(root))
    assert one.newer == f"a tuned policy that nothing was decided on: `pd-pipeline promote {TARGET}`"
    given(monkeypatch, [1.0, 1.0], [2.0, 2.0])
    refused = promote(graph.load(root), TARGET)
    assert refused is not None
    (found,) = status(graph.load(root))
    assert (found.in_use, found.newer, found.refused) == (f"version 1 since {decision.decided}", "", refused.reason)


def test_back_to_the_version_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(graph.load(root), TARGET)
    given(monkeypatch, [2.0, 2.0], [1.0, 1.0])
    promote(retuned(root, 3), TARGET)
    promote(retuned(root, 4), TARGET)
    assert in_use(root, TARGET) == (3, decisions(root, TARGET)[-1].decided)
    assert roll_back(root, TARGET).version == 2
    decision = roll_back(root, TARGET)
    assert (decision.outcome, decision.version, decision.against) == ("rolled back", 1, 2)
    assert in_use(root, TARGET) == (1, decision.decided)
    assert (
        describe(root / "data/promoted" / TARGET / "0001").actor_losses
        == load_policy(root / "data/promoted" / TARGET).description.actor_losses
    )
    with pytest.raises(PipelineError, match="version 1 is the oldest one: there is nothing to go back to"):
        roll_back(root, TARGET)
    (found,) = status(graph.load(root))
    assert found.rolled_back == "version 2, by hand"
    assert promote(graph.load(root), TARGET) is None, "what was taken back by hand is not promoted again"
    set_params(root, "prompts: 4", "prompts: 3")
    run_stages(root, "tuned_prompt_dt")
    assert promote(graph.load(root), TARGET) is None, "nor the one before it, when it is tuned again"


def test_a_person_may_put_a_refused_policy_in_use(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(graph.load(root), TARGET)
    given(monkeypatch, [1.0, 1.0], [2.0, 2.0])
    project = retuned(root, 3)
    refused = promote(project, TARGET)
    assert refused is not None
    assert refused.outcome == "refused"
    monkeypatch.chdir(root)
    said = CliRunner().invoke(app, ["promote", TARGET])
    assert said.exit_code == 1
    assert said.stdout.endswith(f"{TARGET}: refused: {refused.reason}\n"), "decided earlier, and still so"
    monkeypatch.setattr(promotion, "paired_scores", interrupted)
    decision = promote(project, TARGET, force=True)
    assert decision is not None
    assert (decision.outcome, decision.version, decision.against) == ("promoted", 2, 1)
    assert decision.reason == "by hand, without a comparison"
    assert promote(project, TARGET, force=True) is None, "it is in use already"
    said = CliRunner().invoke(app, ["promote", TARGET])
    assert said.exit_code == 0
    both = CliRunner().invoke(app, ["promote", TARGET, "--force", "--rollback"])
    assert "exclude each other" in both.stderr


@pytest.mark.parametrize("file", ["0001/plm/policy.safetensors", "0001/policy.json", "0001"])
def test_a_damaged_policy_in_use_has_a_way_out(file: str, root: Path) -> None:
    promote(graph.load(root), TARGET)
    project, home = retuned(root, 3), root / "data/promoted" / TARGET
    damaged = home / file
    damaged.rename(home / "moved") if damaged.is_dir() else damaged.write_bytes(b"{}")
    with pytest.raises(PipelineError, match=r"nothing can be compared with it: .* --force puts the tuned policy"):
        promote(project, TARGET)
    assert in_use(root, TARGET) == (1, decisions(root, TARGET)[0].decided)
    assert promote(project, TARGET, force=True) is not None
    assert load_policy(home).description.made_from == decisions(root, TARGET)[-1].made_from
    assert in_use(root, TARGET) == (2, decisions(root, TARGET)[1].decided)
    with pytest.raises(PipelineError, match="0001"):
        roll_back(root, TARGET)


def test_damage_has_a_way_out_though_nothing_was_tuned_since(root: Path) -> None:
    promote(graph.load(root), TARGET)
    (root / "data/promoted" / TARGET / "0001/plm/policy.safetensors").write_bytes(b"gone")
    assert promote(graph.load(root), TARGET) is None
    decision = promote(graph.load(root), TARGET, force=True)
    assert decision is not None
    assert in_use(root, TARGET) == (2, decision.decided)
    load_policy(root / "data/promoted" / TARGET)
    assert promote(graph.load(root), TARGET, force=True) is None, "what is in use is whole"


def test_back_means_to_what_was_in_use_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to a version that was taken back itself."""
    promote(graph.load(root), TARGET)
    given(monkeypatch, [2.0, 2.0], [1.0, 1.0])
    project = retuned(root, 3)
    promote(project, TARGET)
    roll_back(root, TARGET)
    again = promote(project, TARGET, force=True)
    assert again is not None
    assert (again.version, again.against) == (3, 1)
    assert roll_back(root, TARGET).version == 1


@pytest.mark.parametrize("content", [None, "", "{}", '{"version": "x"}'])
def test_a_lost_note_of_what_is_in_use_is_written_again(content: str | None, root: Path) -> None:
    first = promote(graph.load(root), TARGET)
    assert first is not None
    note = root / "data/promoted" / TARGET / "current.json"
    before = note.read_text()
    note.unlink() if content is None else note.write_text(content)
    assert promote(graph.load(root), TARGET) is None
    assert note.read_text() == before


def test_a_decision_that_is_lost_costs_no_other_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged one is named, with what to do; the next one gets a number that none has had."""
    promote(graph.load(root), TARGET)
    given(monkeypatch, [2.0, 2.0], [1.0, 1.0])
    promote(retuned(root, 3), TARGET)
    kept = decisions(root, TARGET)[1]
    folder = root / "data/promoted" / TARGET / "decisions"
    (folder / "0001.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"0001\.json.*: bring it back from a copy, or remove it: then it is forg"):
        promote(graph.load(root), TARGET)
    (folder / "0001.json").unlink()
    project = retuned(root, 4)
    third = promote(project, TARGET)
    assert decisions(root, TARGET) == [kept, third]
    assert sorted(path.name for path in folder.iterdir()) == ["0002.json", "0003.json"]
    (folder / "0003.json").unlink()
    again = promote(project, TARGET)
    assert decisions(root, TARGET) == [kept, again]
    assert sorted(path.name for path in folder.iterdir()) == ["0002.json", "0004.json"]
    (folder / "0004.json").unlink()
    assert roll_back(root, TARGET).version == 3, "the one below, as nobody knows any more which one was replaced"


def test_after_a_rollback_a_new_policy_is_compared_on_what_neither_was_tuned_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(graph.load(root), TARGET)
    given(monkeypatch, [2.0, 2.0], [1.0, 1.0])
    promote(retuned(root, 3), TARGET)
    roll_back(root, TARGET)
    seen: list[list[dict[str, set[int]]]] = []

    def watched(*arguments: object) -> PairedScores:
        seen.append(arguments[4])  # type: ignore[arg-type]
        return PairedScores("return", 1, np.ones(2), np.ones(2))

    monkeypatch.setattr(promotion, "paired_scores", watched)
    promote(retuned(root, 4), TARGET)
    episodes = set(read_json(root / "data/tuned_prompt_dt/point_robot-0/4/summary.json")["few_shot_episodes"])
    assert seen == [[{"expert": episodes}, {"expert": episodes}]], "both were tuned on the same few"


def test_a_version_that_was_never_in_use_is_not_gone_back_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(graph.load(root), TARGET)
    given(monkeypatch, [2.0, 2.0], [1.0, 1.0])
    project = retuned(root, 3)
    with monkeypatch.context() as patched:
        patched.setattr(promotion, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            promote(project, TARGET)
    assert versions(root / "data/promoted" / TARGET) == [1, 2], "a kill came before the decision was written"
    promote(project, TARGET)
    assert in_use(root, TARGET) == (3, decisions(root, TARGET)[-1].decided)
    assert roll_back(root, TARGET).version == 1


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_decision_that_a_kill_kept_from_taking_effect_takes_effect(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(graph.load(root), TARGET)
    given(monkeypatch, [2.0, 2.0], [1.0, 1.0])
    project = retuned(root, 3)
    with monkeypatch.context() as patched:
        patched.setattr(promotion, "_use", interrupted)
        with pytest.raises(KeyboardInterrupt):
            promote(project, TARGET)
    assert in_use(root, TARGET) == (1, decisions(root, TARGET)[0].decided)
    assert promote(project, TARGET) is None, "it was decided before the kill"
    assert in_use(root, TARGET) == (2, decisions(root, TARGET)[1].decided)


def test_without_news_no_policy_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(graph.load(root), TARGET)
    monkeypatch.setattr(promotion, "write_policy", interrupted)
    assert promote(graph.load(root), TARGET) is None


@pytest.mark.parametrize("step", ["write_policy", "paired_scores", "_write"])
def test_a_kill_leaves_the_old_policy_in_use(step: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(graph.load(root), TARGET)
    given(monkeypatch, [2.0, 2.0], [1.0, 1.0])
    project = retuned(root, 3)
    with monkeypatch.context() as patched:
        patched.setattr(promotion, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            promote(project, TARGET)
    assert in_use(root, TARGET) == (1, decisions(root, TARGET)[0].decided)
    load_policy(root / "data/promoted" / TARGET)
    decision = promote(project, TARGET)
    assert decision is not None
    assert decision.outcome == "promoted"
    current = json.loads((root / "data/promoted" / TARGET / "current.json").read_text())
    assert current["version"] == decision.version == versions(root / "data/promoted" / TARGET)[-1]


@pytest.mark.parametrize(
    ("target", "params", "message"),
    [
        ("point_robot-9", "", "'point_robot-9' is no target, or has too few trajectories: did you mean"),
        (TARGET, "promotion: {method: prompt_td}\n", "promotion.method: 'prompt_td': did you mean 'prompt_dt'"),
        (TARGET, "promotion: {seed: 7}\n", "promotion.seed: 7 is not among run.seeds"),
        (TARGET, "promotion: {}\n", "tuned_prompt_diffuser"),  # not tuned yet; preferred where it runs
        (TARGET, "promotion: {method: noise_prompt}\n", "tuned_noise_prompt"),
    ],
)
def test_what_cannot_be_promoted(target: str, params: str, message: str, root: Path) -> None:
    set_params(root, "promotion: {method: prompt_dt}\n", params or "promotion: {method: prompt_dt}\n")
    with pytest.raises(PipelineError, match=message):
        promote(graph.load(root), target)
    assert not (root / "data/promoted" / target / "current.json").exists()
