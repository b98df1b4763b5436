"""Writing a policy folder: which actor, from what, and what it replaces."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pd_pipeline import graph, records
from pd_pipeline.deployment import writing
from pd_pipeline.deployment.folder import describe
from pd_pipeline.deployment.policy import read_policy
from pd_pipeline.deployment.writing import actor_losses, write_policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prompting import prompt_tensors
from pd_pipeline.piece import stage_context
from pd_pipeline.progress import silent
from pd_pipeline.stage import Key
from pd_pipeline.storage import digest, load_arrays
from pd_pipeline.tuning import adaptation, summary
from pd_pipeline.tuning.protocol import prompt_losses
from tests.conftest import run_stages
from tests.deployment.conftest import TARGET
from tests.training.test_stages import set_params
from tests.tuning.tiny import few_shot_of, pretrained, tuned


@pytest.mark.parametrize("method", ["prompt_dt", "full_finetune", "lora", "prompt_diffuser"])
def test_the_losses_are_those_that_select_candidates(method: str, tmp_path: Path) -> None:
    plm = pretrained(acting_context=4)
    few_shot = few_shot_of(plm)
    left = tuned(method, plm, few_shot, tmp_path)
    actors = left.actors(plm)
    x0, y = prompt_tensors(left.prompts, plm.normalization)
    expected = prompt_losses(replace(plm, policy=actors.policy), few_shot, x0, y, seed=3)
    found = actor_losses(actors, few_shot.windows, seed=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(set(np.round(found, 7))) == 4, "the prompts differ"
    assert not np.allclose(actor_losses(actors, few_shot.windows, seed=4), found, rtol=1e-5)


def test_it_is_the_actor_with_the_lowest_loss(tuned_project: Path, written: Path) -> None:
    about = describe(written)
    assert len(about.actor_losses) == 8
    assert about.actor == int(np.argmin(about.actor_losses))
    assert about.chosen_by == "the lowest action loss on the few-shot trajectories"
    project = graph.load(tuned_project)
    context = stage_context(project, "tuned_prompt_dt", TARGET, written, written, silent)
    plm = writing.Pretrained.load(context.inputs["plm"], None, torch.device("cpu"))
    left = adaptation.load(context.module, tuned_project / "data/tuned_prompt_dt/point_robot-0/4", plm)
    keys, values = left.actors(plm).started().before[-1]
    found_keys, found_values = read_policy(written).prefix[-1]
    np.testing.assert_array_equal(found_keys[0], keys[about.actor])
    np.testing.assert_array_equal(found_values[0], values[about.actor])


def test_candidates_that_were_selected_stay_in_their_order(tuned_project: Path, tmp_path: Path) -> None:
    about = write_policy(graph.load(tuned_project), "prompt_diffuser", TARGET, tmp_path / "policy")
    assert about.actor == 0
    assert list(about.actor_losses) == sorted(about.actor_losses), "the windows are those of the selection"


def test_it_says_what_it_is_and_what_it_was_made_from(tuned_project: Path, written: Path) -> None:
    about = describe(written)
    given = summary.load(tuned_project / "data/tuned_prompt_dt/point_robot-0/4")
    assert (about.family, about.task, about.seed, about.method, about.varies) == (
        "point_robot",
        4,
        0,
        "prompt_dt",
        "prompt_dt",
    )
    assert about.module == "pd_pipeline.tuning.prompt_dt"
    assert (about.observation_size, about.action_size, about.horizon, about.acting_context) == (2, 2, 12, 6)
    assert (about.action_low, about.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert about.target_return == given.target_return
    assert (about.frozen, about.requires_grad, about.precision) == (True, False, "float32")
    assert about.versions.keys() == {"pd_pipeline", "python", "torch", "numpy"}
    made = {}
    for out in ("data/plm/point_robot-0", "data/tuned_prompt_dt/point_robot-0/4"):
        made |= {f"{out}/{name}": value for name, value in records.listing(tuned_project / out).items()}
    assert about.made_from == made
    assert about.files == {name: value for name, value in records.listing(written).items() if name != "policy.json"}
    assert str(tuned_project) not in (written / "policy.json").read_text(), "it is the same wherever it was written"


def test_the_sample_is_a_whole_few_shot_trajectory(written: Path) -> None:
    arrays, _ = load_arrays(written / "sample.safetensors")
    assert arrays["observations"].shape == (12, 2)
    assert arrays["rewards"].shape == (12,)


def test_writing_again_gives_equal_files(tuned_project: Path, written: Path, tmp_path: Path) -> None:
    write_policy(graph.load(tuned_project), "prompt_dt", TARGET, tmp_path / "policy")
    assert digest(tmp_path / "policy") == digest(written)
    write_policy(graph.load(tuned_project), "no_prompt", TARGET, tmp_path / "policy")
    assert describe(tmp_path / "policy").method == "no_prompt", "a policy folder is replaced"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_failure_leaves_what_was_there(tuned_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "policy"
    write_policy(graph.load(tuned_project), "prompt_dt", TARGET, folder)
    before = digest(folder)

    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(writing, "save_arrays", broken)
    for name in ("policy", "another"):
        with pytest.raises(OSError, match="no space left"):
            write_policy(graph.load(tuned_project), "no_prompt", TARGET, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert digest(folder) == before


def test_other_files_are_not_replaced(tuned_project: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(PipelineError, match=r"mine: holds notes.txt, and would be replaced as a whole"):
        write_policy(graph.load(tuned_project), "prompt_dt", TARGET, tmp_path / "mine")
    with pytest.raises(PipelineError, match=r"notes.txt: not a folder"):
        write_policy(graph.load(tuned_project), "prompt_dt", TARGET, tmp_path / "mine/notes.txt")
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_what_is_not_there_is_named(project: Path, tmp_path: Path) -> None:
    loaded = graph.load(project)
    with pytest.raises(PipelineError, match="unknown stage 'tuned_best'"):
        write_policy(loaded, "best", TARGET, tmp_path / "policy")
    with pytest.raises(PipelineError, match="has no key 'point_robot-2-0'"):
        write_policy(loaded, "prompt_dt", Key("point_robot", 2, 0), tmp_path / "policy")
    missing = (
        "data/tuned_prompt_dt/point_robot-0/4: missing: run `pd-pipeline run tuned_prompt_dt --key point_robot-4-0`"
    )
    with pytest.raises(PipelineError, match=missing):
        write_policy(loaded, "prompt_dt", TARGET, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_an_adaptation_of_other_trajectories_is_refused(project: Path, tmp_path: Path) -> None:
    run_stages(project, "tuned_prompt_dt")
    set_params(project, "tuned_prompt_dt: {}", "tuned_prompt_dt: {target: {few_shot: 3}}")
    with pytest.raises(
        PipelineError, match=r"tuned with other few-shot trajectories .* run `pd-pipeline run tuned_pro"
    ):
        write_policy(graph.load(project), "prompt_dt", TARGET, tmp_path / "policy")


def test_an_adaptation_to_another_plm_is_refused(project: Path, tmp_path: Path) -> None:
    """Prompts are not worth much to a policy that they were not tuned with."""
    run_stages(project, "tuned_prompt_dt")
    set_params(project, "plm: {steps: 60,", "plm: {steps: 61,")
    run_stages(project, "plm")
    with pytest.raises(PipelineError, match=r"tuned with another plm@point_robot-0 than .* `pd-pipeline run tuned_"):
        write_policy(graph.load(project), "prompt_dt", TARGET, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
    run_stages(project, "tuned_prompt_dt")
    assert write_policy(graph.load(project), "prompt_dt", TARGET, tmp_path / "policy").method == "prompt_dt"


def test_a_variant_is_named_with_what_it_varies(project: Path, tmp_path: Path) -> None:
    line = "  methods: [prompt_dt_few]\n  variants: {prompt_dt_few: prompt_dt}"
    text = re.sub(r"^  methods: .*$", line, (project / "params.yaml").read_text(), count=1, flags=re.MULTILINE)
    (project / "params.yaml").write_text(text + "    tuned_prompt_dt_few: {prompts: 2, target: {few_shot: 2}}\n")
    run_stages(project, "tuned_prompt_dt_few")
    shutil.rmtree(project / "data/diffuser")
    about = write_policy(graph.load(project), "prompt_dt_few", TARGET, tmp_path / "policy")
    assert (about.method, about.varies, len(about.actor_losses)) == ("prompt_dt_few", "prompt_dt", 2)
