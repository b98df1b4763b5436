"""Every block is checked before any work."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pd_pipeline import graph, preflight
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.point_robot import PointRobot
from tests.dvc_project import SMALL_PARAMS, start


def checked(root: Path, old: str = "", new: str = "") -> None:
    assert old in SMALL_PARAMS
    (root / "params.yaml").write_text(SMALL_PARAMS.replace(old, new) if old else SMALL_PARAMS)
    preflight.check(graph.load(root))


def test_valid_blocks_are_not_checked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked(tmp_path)
    monkeypatch.setattr(graph.Graph, "stage_params", None)
    preflight.check(graph.load(tmp_path))
    with pytest.raises(TypeError):
        checked(tmp_path, "stride: 1", "stride: 2")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "plm: {steps: 4",
            "plm: {stepz: 4",
            r"families\.point_robot\.plm\.stepz: no such parameter: did you mean 'steps'",
        ),
        ("plm: {", "plm: {heads: 3, ", r"plm: .*width 8 is not a multiple of heads 3"),
        ("diffusion: {steps: 4}", "diffusion: {stps: 4}", r"diffuser\.diffusion\.stps: .*did you mean 'steps'"),
        (
            "plm: {",
            "plm: {qualities: [expert, mediun], ",
            r"point_robot\.plm\.qualities: 'mediun' is not among the qualities of .*: choose one of expert",
        ),
        ("plm: {", "plm: {qualities: [../../x], ", r"plm\.qualities\.0: String should match pattern"),
        ("prompts: {length: 3", "prompts: {length: 30", r"prompts\.length: 30 steps, but an episode has at most 6"),
        ("plm: {", "plm: {quality: expert, ", r"plm\.quality: no such parameter: did you mean 'qualities'\?"),
        ("plm: {", "plm: {device: cpu, ", r"plm\.device: no such parameter: it is now `machine: "),
        ("tuned_prompt_dt: {", "tuned_prompt_dt: {few_shot: 2, ", r"few_shot: no such parameter: .*`target` block"),
        ("machine: {device: cpu}", "machine: {device: tpu}", r"machine\.device"),
        ("machine: {device: cpu}", "machine: {device: 'cuda:9'}", r"machine\.device: cuda:9, but"),
        (
            "tuned_prompt_dt: {}",
            "tuned_prompt_dt: {target: {few_shot: 9}}",
            r"tuned_prompt_dt\.target\.few_shot: 9 trajectories.*collects 6",
        ),
        (
            "{expert: {train: 3, test: 6}}",
            "{expert: {train: 1, test: 6}}",
            r"trajectories\.episodes\.expert\.train: 1, but \w+ learns from this quality .*: collect 2 or more",
        ),
        ("prompts: {length: 3", "evaluaton: {}\n    prompts: {length: 3", r"evaluaton: no such block: .*'evaluation'"),
        (
            "tuned_prompt_dt: {}",
            "tuned_prompt_td: {}",
            r"prompt_td: no such block: .*mean 'tuned_prompt_dt'",
        ),
        ("noise_prompt]", "nois_prompt]", r"run\.methods: 'nois_prompt' is not a method: did you mean 'noise_prompt'"),
        (
            "noise_prompt]",
            "again], variants: {again: prompt_dt}",
            r"families\.point_robot\.tuned_again: missing: a variant gets its parameters",
        ),
        ("seeds: [0]", "seeds: [-1]", r"run\.seeds\.0"),
        ("seeds: [0]", "seeds: [99999999999999999999]", r"run\.seeds\.0"),
        ("tasks: 4", "tasks: 100000000", r"environment\.tasks: Input should be less than or equal to 10000"),
    ],
)
def test_mistakes_are_found_before_any_work(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        checked(tmp_path, old, new)


def episodes(*qualities: str) -> dict[str, Any]:
    return {"trajectories": {"workers": 1, "episodes": {quality: {"train": 3, "test": 6} for quality in qualities}}}


def levels(**described: dict[str, float]) -> dict[str, Any]:
    return {"behavior_policies": {"levels": described}}


POLICIES, EPISODES = r"families\.point_robot\.behavior_policies", r"families\.point_robot\.trajectories\.episodes"
QUALITIES: dict[str, tuple[dict[str, Any], str]] = {
    "collected, without a policy": (
        episodes("expert", "mediun"),
        rf"^params\.yaml: {EPISODES}\.mediun: {POLICIES} has no policy of this quality: did you mean 'medium'\? "
        rf"\(or describe one in {POLICIES}\.levels\.mediun\)$",
    ),
    "described, not collected": (
        levels(slow={"gain": 0.1, "noise": 0.1}),
        rf"^params\.yaml: {POLICIES}\.levels\.slow: {EPISODES} does not name this quality: choose one of expert, "
        r"medium, random \(or add it there\)$",
    ),
    "misspelt where it is described": (
        levels(expret={"gain": 0.1}),
        rf"{POLICIES}\.levels\.expret: {EPISODES} does not name this quality: did you mean 'expert'\?",
    ),
    "described in part": (
        episodes("expert", "slow") | levels(slow={"gain": 0.1}),
        rf"{POLICIES}\.levels\.slow: family 'point_robot': a behaviour policy raised KeyError: 'noise'",
    ),
    "described with a misspelt value": (
        levels(expert={"nosie": 0.5}),
        rf"{POLICIES}\.levels\.expert: .*a policy has no value 'nosie': did you mean 'noise'\?",
    ),
    "of the PLM": (
        {"plm": {"qualities": ["medium"]}},
        rf"\.plm\.qualities: 'medium' is not among the qualities of {EPISODES}: choose one of expert \(or add it",
    ),
    "of prompts": (
        {"prompts": {"length": 3, "qualities": ["expert", "medium"]}},
        rf"\.prompts\.qualities: 'medium' is not among the qualities of {EPISODES}",
    ),
    "of the diffuser": (
        episodes("expert", "medium") | {"diffuser": {"qualities": ["medium"]}},
        r"\.diffuser\.qualities: 'medium' is not among the qualities of families\.point_robot\.prompts\.qualities",
    ),
    "of the target": (
        {"target": {"quality": "medium"}},
        rf"point_robot\.target\.quality: 'medium' is not among the qualities of {EPISODES}",
    ),
    "of the target, for one method": (
        {"tuned_prompt_dt": {"target": {"quality": "medium"}}},
        rf"point_robot\.tuned_prompt_dt\.target\.quality: 'medium' is not among the qualities of {EPISODES}",
    ),
}


def with_blocks(root: Path, blocks: dict[str, Any]) -> graph.Graph:
    """A project whose methods read the diffuser too."""
    values = YAML(typ="safe").load(SMALL_PARAMS)
    values["run"] |= {"families": ["point_robot"], "methods": ["prompt_dt", "prompt_diffuser"]}
    values["families"]["point_robot"] |= blocks
    (root / "params.yaml").write_text(json.dumps(values))
    return graph.load(root)


@pytest.mark.parametrize("case", QUALITIES)
def test_a_quality_that_one_block_names_and_another_lacks(tmp_path: Path, case: str) -> None:
    blocks, message = QUALITIES[case]
    with pytest.raises(PipelineError, match=message):
        preflight.check(with_blocks(tmp_path, blocks))
    assert not (tmp_path / "data").exists()


def test_what_is_asked_of_a_diffuser_that_is_not_told(tmp_path: Path) -> None:
    asking = {"tuned_prompt_diffuser": {"ask": {"effort": 0.0}}}
    message = r"point_robot\.tuned_prompt_diffuser\.ask: the diffuser is not told 'effort': add it to .*conditions"
    for told in ({}, {"diffuser": {"conditions": ["phase", "task"]}}):
        with pytest.raises(PipelineError, match=message):
            preflight.check(with_blocks(tmp_path, told | asking))
    preflight.check(with_blocks(tmp_path, {"diffuser": {"conditions": ["effort"]}} | asking))


def test_tasks_that_are_not_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = with_blocks(tmp_path, {"diffuser": {"conditions": ["task"]}})
    preflight.check_blocks(told)
    monkeypatch.setattr(PointRobot, "goal", lambda self, task: {})
    with pytest.raises(PipelineError, match=r"point_robot\.diffuser\.conditions: task: .*equally many numbers"):
        preflight.check_blocks(told)


@pytest.mark.parametrize(
    "blocks",
    [
        levels(expert={"gain": 0.5}),
        levels(medium={"gain": 0.5}),
        episodes("expert", "slow") | levels(slow={"gain": 0.1, "noise": 0.1}),
    ],
)
def test_qualities_that_fit(tmp_path: Path, blocks: dict[str, Any]) -> None:
    preflight.check(with_blocks(tmp_path, blocks))
    assert (tmp_path / preflight.MARK).is_file()


def test_a_mistake_prevents_all_work(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(SMALL_PARAMS.replace("diffuser: {steps: 4", "diffuser: {stepz: 4"))
    process = start(tmp_path, "pd-pipeline", "run", "all")
    output, _ = process.communicate()
    assert process.returncode == 1
    assert output.startswith("error: params.yaml: families.point_robot.diffuser.stepz")
    assert len(output.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"behavior_policies": {"learning": {"batch": 1000}}}, r"learning\.batch: 1000 does not divide a round's 32 x"),
        ({"behavior_policies": {"learning": {"steps": 6400}}}, r"learning\.steps: 6400 is one round of 32 x 200 steps"),
        (
            {"target": {"few_shot": 50}},
            r"target\.few_shot: 50 trajectories .* but trajectories\.episodes\.expert\.train collects 40 per target",
        ),
    ],
)
def test_a_family_whose_policies_and_targets_are_trained(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    values = {"run": {"families": ["cheetah_dir"], "methods": ["prompt_dt"]}, "families": {"cheetah_dir": changes}}
    (tmp_path / "params.yaml").write_text(json.dumps(values))
    with pytest.raises(PipelineError, match=rf"families\.cheetah_dir\..*{message}"):
        preflight.check(graph.load(tmp_path))
