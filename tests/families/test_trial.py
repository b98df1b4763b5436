"""Mistakes in a user's environment are found before any work, in one line; one that works is tried once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pd_pipeline import graph, lineage, preflight
from pd_pipeline.errors import PipelineError
from pd_pipeline.families import border, trial
from pd_pipeline.families.base import Family
from pd_pipeline.piece import run_piece
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from tests.dvc_project import make_project, start

POLICY = "tests.families.custom_family:toward"
LINE: dict[str, Any] = {
    "entry_point": "tests.families.custom_family:LineEnv",
    "horizon": 8,
    "tasks": [{"goal": -1.0}, {"goal": 0.5}, {"goal": 1.0}],
    "test_tasks": [1],
    "behaviors": {"expert": {"entry_point": POLICY}},
}
PENDULUM = {
    "gymnasium": "Pendulum-v1",
    "horizon": 8,
    "tasks": [{"g": 4.0}, {"g": 9.0}],
    "test_tasks": [1],
    "behaviors": {"expert": {"random": True}},
}
FAMILY = {"entry_point": "tests.families.custom_family:Line", "horizon": 6}


def project(root: Path, environment: dict[str, Any], patience: float = 60.0, **blocks: Any) -> graph.Graph:
    """A project whose second family is the user's."""
    episodes = {"expert": {"train": 2, "test": 1}}
    mine = {"environment": environment, "trajectories": {"workers": 1, "patience": patience, "episodes": episodes}}
    values = {
        "run": {"families": ["point_robot", "mine"], "methods": ["prompt_dt"]},
        "families": {"mine": mine | {"prompts": {"length": 2}, "target": {"few_shot": 1}} | blocks},
    }
    (root / "params.yaml").write_text(json.dumps(values))
    return graph.load(root)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "id": (PENDULUM | {"gymnasium": "Pendulun-v1"}, r"\.gymnasium: 'Pendulun-v1' is not registered: .*`Pendulum`"),
    "version of an id": (PENDULUM | {"gymnasium": "Pendulum-v9"}, r"\.gymnasium: 'Pendulum-v9' is not .*\[ `v1` \]"),
    "module of an id": (
        PENDULUM | {"gymnasium": "nowhere:X-v0"},
        r": no module 'nowhere' next to params\.yaml",
    ),
    "meta_world": ({"meta_world": "psuh-v3"}, r"\.meta_world: 'psuh-v3' is not a task .*did you mean 'push-v3'"),
    "module": (FAMILY | {"entry_point": "nowhere:Line"}, r"\.entry_point: cannot import 'nowhere'"),
    "class": (LINE | {"entry_point": "tests.families.custom_family:Lin"}, r"\.entry_point: .*has no 'Lin'"),
    "parameter": (LINE | {"horizn": 8}, r"\.horizn: no such parameter: did you mean 'horizon'"),
    "argument of an id": (PENDULUM | {"tasks": [{"g": 4.0}, {"h": 9.0}]}, r"\.tasks\.1: Pendulum-v1.*argument 'h'"),
    "argument": (LINE | {"tasks": [{"goal": 1.0}, {"goal": 2.0}, {"gaol": 3.0}]}, r"\.tasks\.2: .*argument 'gaol'"),
    "options": (LINE | {"options": {"speed": 1}}, r"\.tasks\.0: .*unexpected keyword argument 'speed'"),
    "space": (
        LINE | {"entry_point": "tests.families.custom_family:WideActionEnv"},
        r": the action space .*finite bounds",
    ),
    "constructor": (
        LINE | {"entry_point": "tests.families.broken:Raising"},
        r"\.tasks\.0: .*FileNotFoundError: meshes",
    ),
    "reset": (LINE | {"entry_point": "tests.families.broken:RaisingLater"}, r": .*reset .*RuntimeError: no license"),
    "policy": (
        LINE | {"behaviors": {"expert": {"entry_point": POLICY + "s"}}},
        r"\.behaviors\.entry_point: cannot load",
    ),
    "action": (
        LINE | {"behaviors": {"expert": {"entry_point": "tests.families.broken:two_numbers"}}},
        r"\.behaviors: .*two_numbers returned an action of shape \(2,\), expected \(1,\)",
    ),
    "task of a class": (
        FAMILY | {"entry_point": "tests.families.broken:LineWithoutTaskThree"},
        r": family 'mine': making the environment of task 3 raised KeyError: 3",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found_before_any_work(tmp_path: Path, mistake: str) -> None:
    environment, message = MISTAKES[mistake]
    with pytest.raises(PipelineError, match=r"^params\.yaml: families\.mine\.environment" + message):
        preflight.check(project(tmp_path, environment))
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / preflight.MARK).exists()


def test_an_environment_that_ends_its_process_is_named(tmp_path: Path) -> None:
    environment = LINE | {"entry_point": "tests.families.broken:Crashing"}
    with pytest.raises(PipelineError, match=r"^params\.yaml: families\.mine: one of its processes died"):
        preflight.check(project(tmp_path, environment))


def test_an_environment_that_hangs_is_named_with_its_line(tmp_path: Path) -> None:
    environment = LINE | {"entry_point": "tests.families.broken:Hanging"}
    message = r"^params\.yaml: families\.mine: .*not returned for 5 seconds \(.*broken\.py, line \d+\)"
    with pytest.raises(PipelineError, match=message):
        preflight.check(project(tmp_path, environment, patience=5.0))


def test_a_policy_that_params_yaml_describes_is_tried_too(tmp_path: Path) -> None:
    levels = {"expert": {"arguments": {"gian": 2.0}}}
    with pytest.raises(PipelineError, match=r"families\.mine\.behavior_policies\.levels\.expert: .*argument 'gian'"):
        preflight.check(project(tmp_path, LINE, behavior_policies={"levels": levels}))


@pytest.mark.parametrize(
    ("environment", "noted"), [(PENDULUM, True), (PENDULUM | {"success": False}, False), (LINE, False), (FAMILY, False)]
)
def test_an_environment_that_does_not_tell_success_is_noted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], environment: dict[str, Any], noted: bool
) -> None:
    preflight.check(project(tmp_path, environment))
    said = "families.mine.environment: its first step has neither info['success'] nor info['is_success']"
    assert (said in capfd.readouterr().err) == noted


def test_the_command_makes_nothing_for_other_families_either(tmp_path: Path) -> None:
    project(tmp_path, PENDULUM | {"gymnasium": "Pendulun-v1"})
    process = start(tmp_path, "pd-pipeline", "run", "all")
    output, _ = process.communicate()
    assert process.returncode == 1
    assert output.startswith("error: params.yaml: families.mine.environment.gymnasium: 'Pendulun-v1' is not registered")
    assert len(output.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The families that are tried from now on."""
    tried, real = [], trial.qualities

    def counted(name: str, *rest: Any) -> list[str]:
        tried.append(name)
        return real(name, *rest)

    monkeypatch.setattr(trial, "qualities", counted)
    return tried


@pytest.mark.parametrize("environment", [LINE, PENDULUM, FAMILY])
def test_what_works_is_tried_once_until_it_changes(
    tmp_path: Path, trials: list[str], environment: dict[str, Any]
) -> None:
    preflight.check(project(tmp_path, environment))
    assert trials == ["mine"], "built-in families need no trial"
    preflight.check(project(tmp_path, environment, plm={"steps": 7}))
    assert trials == ["mine"], "other parameters"
    preflight.check(project(tmp_path, environment | {"horizon": 7}))
    assert trials == ["mine"] * 2


def test_where_a_policy_was_described_since_there_is_a_trial(tmp_path: Path, trials: list[str]) -> None:
    made = project(tmp_path, LINE)
    for stage in ("behavior_policies", "trajectories"):
        run_piece(made, stage, Key("mine"), silent)
    preflight.check(project(tmp_path, LINE, behavior_policies={"levels": {"expert": {"noise": 0.1}}}))
    assert trials == ["mine"]


@pytest.mark.parametrize("checked_out", [False, True])
def test_there_is_no_trial_where_the_trajectories_are_up_to_date(
    tmp_path: Path, trials: list[str], checked_out: bool
) -> None:
    """The simulator may not even be installed where only the report is made."""
    made = project(make_project(tmp_path) if checked_out else tmp_path, LINE)
    for stage in ("behavior_policies", "trajectories"):
        lineage.run(made, stage, Key("mine"), silent)
    if checked_out:  # `dvc checkout` restores outs, not their records
        shutil.rmtree(tmp_path / "data/records")
    preflight.check(made)
    assert trials == []
    preflight.check(project(tmp_path, LINE | {"horizon": 7}))
    assert trials == ["mine"]


@pytest.mark.parametrize(("seconds", "tasks"), [(60.0, [0, 2, 1]), (0.0, [0])])
def test_as_many_tasks_are_tried_as_there_is_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, tasks: list[int]
) -> None:
    made, real = [], border.make

    def counted(family: Family, task: int) -> Any:
        made.append(task)
        return real(family, task)

    monkeypatch.setattr(border, "make", counted)
    monkeypatch.setattr(trial, "SECONDS", seconds)
    assert trial._trial("mine", LINE, tmp_path)({}) == ["expert"]
    assert made == tasks


def test_policies_that_are_trained_later_are_not_tried(tmp_path: Path) -> None:
    block = {"entry_point": "tests.families.broken:OwnCheetah"}
    assert trial._trial("mine", block, tmp_path)({}) == ["expert", "medium", "random"]
