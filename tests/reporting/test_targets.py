"""What the page shows of targets with accepted data, and of the policies in use."""

import re
import shutil
from pathlib import Path

import pytest

from pd_pipeline import graph, made_from
from pd_pipeline.decisions import Decision, folders, write_decision
from pd_pipeline.piece import is_made, run_piece
from pd_pipeline.progress import silent
from pd_pipeline.reporting.formatting import moment, number
from pd_pipeline.reporting.targets import in_use
from pd_pipeline.stage import Key
from pd_pipeline.stages import REPORT, TARGET_EVALUATION
from pd_pipeline.storage import read_json, write_json
from tests.accepted import accept

FIRST = Decision(
    outcome="promoted",
    version=1,
    against=None,
    reason="it is the first one",
    decided="2026-07-14T09:30:05+00:00",
    family="point_robot",
    task=57,
    seed=0,
    method="prompt_dt",
)
pytestmark = pytest.mark.xdist_group("report_targets")  # the project is made once
REFUSED = FIRST.model_copy(
    update={
        "outcome": "refused",
        "version": None,
        "against": 1,
        "reason": "better by -0.33; not above minus the margin of 0.12",
        "decided": "2026-07-15T11:00:00+02:00",
        "measure": "action_loss",
        "count": 5,
        "candidate": 0.9,
        "in_use": 0.57,
        "better_by": (-0.33, -0.52, -0.14),
        "margin": 0.0114,
    }
)


def decide(root: Path, *made: Decision) -> None:
    for number_, decision in enumerate(made, 1):
        write_decision(root / f"data/promoted/{decision.family}-{decision.task}", decision, number_)


@pytest.fixture(scope="module")
def root(reported_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One target of the family and two new ones got data, which is too little for one of these."""
    root = tmp_path_factory.mktemp("with_targets") / "project"
    shutil.copytree(reported_project, root)
    accept(root, 4, episodes=2)
    accept(root, 58, episodes=1)
    project = accept(root, 57, episodes=8)
    tuned = [stage for stage in project.stages if stage.startswith("tuned_")]
    for stage in ("target_data", *tuned, TARGET_EVALUATION):
        for key in (key for key in project.keys(stage) if key.task in (4, 57, 58)):
            run_piece(project, stage, key, silent)
    decide(root, FIRST, REFUSED)
    run_piece(project, REPORT, Key(), silent)
    return root


@pytest.fixture(scope="module")
def shown(root: Path) -> str:
    return (root / "data/reports/index.html").read_text()


def card(page: str, target: str) -> str:
    """The card of a target, on one line."""
    found = re.search(rf'<div class="card" id="target-{target}">.*?(?=<div class="card"|</section>)', page, re.DOTALL)
    assert found, target
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split())


def test_without_accepted_data_nothing_is_added(page: str, reported_project: Path) -> None:
    assert "Targets with new data" not in page
    assert "Policies in use" not in page
    assert read_json(reported_project / "data/reports/metrics.json").keys() == {"point_robot"}


def test_a_target_has_its_methods_scores_and_data(root: Path, shown: str) -> None:
    metrics = read_json(root / "data/target_evaluation/point_robot-0-new/57/metrics.json")["methods"]
    text = card(shown, "point_robot-57")
    assert "point_robot-57, a new target Accepted: 8 expert trajectories in 1 file, the last on 20" in text
    assert metrics.keys() == {*graph.load(root).params.run.methods}
    for method, values in metrics.items():
        low, high = (number(values[f"action_loss_{end}"], 4) for end in ("low", "high"))
        row = rf"{method} (in use )?PLM (frozen|tuned) {number(values['action_loss'], 4)} {low} to {high} "
        assert re.search(row, text), method
    assert "5 expert, drawn at random all of them accepted" in text
    assert "Scored offline on 3 trajectories that no method was given" in text
    assert "in use" not in text, "what is scored was refused"


def test_a_target_of_the_family_has_returns(root: Path, shown: str) -> None:
    values = read_json(root / "data/target_evaluation/point_robot-0/4/metrics.json")["methods"]["prompt_dt"]
    text = card(shown, "point_robot-4")
    assert "a new target" not in text
    assert "return, mean success" in text
    given = read_json(root / "data/tuned_prompt_dt/point_robot-0/4/summary.json")["few_shot_episodes"]
    (file,) = read_json(root / "data/target_data/point_robot/4/origin.json")["accepted"]
    accepted = len([episode for episode in given if episode >= file["first_episode"]])
    assert f"5 expert, drawn at random {accepted} of them accepted" in text
    assert values["return_mean_low"] <= values["return_mean"]
    assert str(values["return_mean"]) in shown


def test_what_waits_is_named(root: Path, shown: str) -> None:
    text = card(shown, "point_robot-58")
    methods = ", ".join(graph.load(root).params.run.methods)
    assert f"Waits for more data: {methods}: 1 of 5 trajectories of quality expert" in text
    assert '<tr><td>point_robot-58</td><td class="text">nothing</td>' in shown


def test_what_is_in_use_and_why(shown: str) -> None:
    section = shown[shown.index('<section id="in-use">') :]
    row = re.search(r"<tr><td>point_robot-57</td>.*?</tr>", section, re.DOTALL)
    assert row
    text = " ".join(re.sub(r"<[^>]+>", " ", row[0]).split())
    minus = "\N{MINUS SIGN}"
    assert text == (
        "point_robot-57 version 1 since 2026-07-14 09:30 UTC prompt_dt seed 0 refused 2026-07-15 09:00 UTC 0.9000 "
        f"action loss 0.5700 version 1 {minus}0.3300 {minus}0.5200 to {minus}0.1400 0.0114 5 trajectories"
    )
    assert REFUSED.reason in section
    assert "it is the first one" in section


def test_metrics_of_targets_are_beside_those_of_families(root: Path) -> None:
    found = read_json(root / "data/reports/metrics.json")
    assert found.keys() == {"point_robot", "point_robot-4", "point_robot-57"}
    assert found["point_robot-57"]["prompt_dt"].keys() == {"offline_action_loss"}
    assert found["point_robot-4"]["prompt_dt"].keys() == {"return_mean", "success_rate", "normalized"}


def test_a_decision_makes_the_report_out_of_date(root: Path, tmp_path: Path) -> None:
    copied = tmp_path / "project"
    shutil.copytree(root, copied)
    project = graph.load(copied)
    assert is_made(project, REPORT, Key())
    assert made_from.decision_folders(project, "evaluation") == []
    decide(copied, FIRST, REFUSED, REFUSED)
    assert not is_made(project, REPORT, Key())


def test_only_targets_of_these_families_with_a_decision_count(tmp_path: Path) -> None:
    (tmp_path / "data/promoted/point_robot-9/decisions").mkdir(parents=True)
    decide(tmp_path, FIRST, FIRST.model_copy(update={"task": 4}), FIRST.model_copy(update={"family": "other"}))
    assert [folder.parent.name for folder in folders(tmp_path, ["point_robot"])] == ["point_robot-4", "point_robot-57"]
    decide(tmp_path, FIRST, FIRST.model_copy(update={"outcome": "rolled back", "version": 3}))
    four, found = in_use(tmp_path, ("point_robot",))
    assert (four.name, found.name) == ("point_robot-4", "point_robot-57")
    assert found.current is not None
    assert found.current.version == 3
    home = tmp_path / "data/promoted/point_robot-57"
    for version, known in ((3, True), (4, False)):
        write_json(home / "current.json", {"version": version, "since": "2026-07-14T01:30:05+02:00"})
        _, found = in_use(tmp_path, ("point_robot",))
        assert (found.current is not None) is known, "not the version before, if the last decision was lost"
        assert found.written is not None
        assert found.written.version == version


def test_a_moment_is_that_of_utc() -> None:
    assert moment("2026-07-14T01:30:05+02:00") == "2026-07-13 23:30 UTC"
