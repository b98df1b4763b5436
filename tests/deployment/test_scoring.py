"""Two policies of a target that no environment knows, compared on its held-out trajectories."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pd_pipeline import graph
from pd_pipeline.deployment import scoring
from pd_pipeline.deployment.policy import Loaded, read_policy
from pd_pipeline.deployment.scoring import actor_of, paired_scores
from pd_pipeline.deployment.used import digests_used, numbers_used
from pd_pipeline.deployment.writing import write_policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.enough import TooFew
from pd_pipeline.stage import Key
from pd_pipeline.training.policy_data import PolicyData
from pd_pipeline.trajectories.reading import Trajectories, read, read_metadata, stream, write
from pd_pipeline.tuning.action_losses import action_losses
from tests.conftest import run_stages
from tests.reporting.test_targets import FIRST
from tests.training.test_stages import set_params
from tests.trajectories.test_target_data import NEW, bring

KEY = Key("point_robot", NEW, 0)


@pytest.fixture
def root(project: Path) -> Path:
    """A project with two policies of a new target, `a` and `b`, which has 6 expert and 3 demo trajectories."""
    set_params(project, "tuned_prompt_dt: {}", "target: {few_shot: 2}\n    tuned_prompt_dt: {}")
    bring(project, NEW, seed=1, episodes=6)
    bring(project, NEW, seed=2, episodes=3, quality="demo")
    run_stages(project, "target_data", "tuned_prompt_dt", "tuned_noise_prompt")
    for name, method in (("a", "prompt_dt"), ("b", "noise_prompt")):
        write_policy(graph.load(project), method, KEY, project / name)
    return project


def held_out(root: Path, quality: str) -> Trajectories:
    return read(root / f"data/target_data/point_robot-new/{NEW}/{quality}.parquet")


def losses(loaded: Loaded, data: Trajectories, steps: int | None) -> np.ndarray:
    return action_losses(actor_of(loaded), PolicyData(data, loaded.normalization), steps)[0]


@pytest.mark.parametrize(
    ("offline", "quality", "steps"),
    [
        ("", "expert", 50),
        ("offline: {steps: 2}, ", "expert", 2),
        ("offline: {quality: demo, steps: null}, ", "demo", None),
    ],
)
def test_quality_and_steps_are_those_of_offline_evaluation(
    offline: str, quality: str, steps: int | None, root: Path
) -> None:
    set_params(root, "evaluation: {", "evaluation: {" + offline)
    found = paired_scores(graph.load(root), KEY, root / "a", root / "b", [{quality: {0}}], lambda _: None)
    assert (found.measure, found.sign) == ("action_loss", -1)
    data = held_out(root, quality)
    left = data.select(np.arange(1, len(data.task_id)))
    for name, scores in (("a", found.candidate), ("b", found.in_use)):
        np.testing.assert_array_equal(scores, losses(read_policy(root / name), left, steps))
    assert (found.candidate != losses(read_policy(root / "a"), left, 1)).all(), "the number of steps matters"


def with_changes(loaded: Loaded, std: np.ndarray, **changes: int) -> Loaded:
    """A policy whose actions have other units, and which is of other sizes."""
    scaled = replace(loaded.normalization, std=std)
    return replace(loaded, normalization=scaled, description=loaded.description.model_copy(update=changes))


def test_losses_are_in_the_units_of_the_policy_in_use(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bounds four times as wide, an error would else be a sixteenth."""
    in_use = read_policy(root / "a")
    std = in_use.normalization.std.copy()
    std[in_use.normalization.observation_size : -1] *= np.array([4, 2], np.float32)
    wide = with_changes(in_use, std)
    monkeypatch.setattr(scoring, "read_policy", lambda folder: wide if folder.name == "b" else in_use)
    found = paired_scores(graph.load(root), KEY, root / "b", root / "a", [], lambda _: None)
    np.testing.assert_array_equal(found.in_use, losses(in_use, held_out(root, "expert"), 50))
    data = PolicyData(held_out(root, "expert"), wide.normalization)
    own = action_losses(actor_of(wide), data, 50)[0]
    each = [action_losses(actor_of(wide), data, 50, units=np.eye(2)[i])[0] for i in (0, 1)]
    np.testing.assert_allclose(own, each[0] + each[1], rtol=1e-5)
    np.testing.assert_allclose(found.candidate, 16 * each[0] + 4 * each[1], rtol=1e-5)


def test_a_longer_horizon_matters_only_to_longer_trajectories(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_use = read_policy(root / "a")
    other = with_changes(in_use, in_use.normalization.std, horizon=100)
    monkeypatch.setattr(scoring, "read_policy", lambda folder: other if folder.name == "b" else in_use)
    found = paired_scores(graph.load(root), KEY, root / "b", root / "a", [], lambda _: None)
    np.testing.assert_array_equal(found.candidate, found.in_use)


@pytest.mark.parametrize("name", ["observation_size", "action_size", "horizon"])
def test_policies_of_other_sizes_are_not_compared(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_use = read_policy(root / "a")
    other = with_changes(in_use, in_use.normalization.std, **{name: 1})
    monkeypatch.setattr(scoring, "read_policy", lambda folder: other if folder.name == "b" else in_use)
    with pytest.raises(PipelineError, match=f"{name} is 1 for the new policy and .*`pd-pipeline promote .* --force`"):
        paired_scores(graph.load(root), KEY, root / "b", root / "a", [], lambda _: None)


def test_what_a_policy_was_tuned_on_is_known_when_episodes_have_other_numbers(root: Path) -> None:
    """As accepted ones get, when the family collects or imports more of the target."""
    used = {"expert": [1, 4], "demo": [2], "other": [0]}
    digests = digests_used(graph.load(root), KEY, used)
    assert [len(digests[quality]) for quality in used] == [2, 1, 0]
    path = root / f"data/target_data/point_robot-new/{NEW}/expert.parquet"
    steps = [batch for batch in stream(path)]
    write(path, read_metadata(path), [replace(batch, episode_id=batch.episode_id + 5) for batch in steps])
    decision = FIRST.model_copy(update={"used_digests": digests, "used_episodes": {"expert": (1, 4)}})
    assert numbers_used(graph.load(root), KEY, decision) == {"expert": {6, 9}, "demo": {2}, "other": set()}
    earlier = decision.model_copy(update={"used_digests": {}})
    assert numbers_used(graph.load(root), KEY, earlier) == {"expert": {1, 4}}


def test_two_trajectories_must_be_left(root: Path) -> None:
    used = [{"expert": {0, 1, 2}}, {"expert": {2, 3, 4}}]
    message = f"task {NEW}: 1 of the 2 trajectories of quality 'expert' that an interval needs are left"
    with pytest.raises(TooFew, match=message):
        paired_scores(graph.load(root), KEY, root / "a", root / "b", used, lambda _: None)
