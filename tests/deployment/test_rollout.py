"""A policy tried in its environment, and its video."""

import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from pd_pipeline import load_policy
from pd_pipeline.cli import app
from pd_pipeline.deployment import video
from pd_pipeline.deployment.rollout import roll_out
from pd_pipeline.deployment.video import write_video
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.point_robot import PointRobotEnv
from pd_pipeline.reporting.replay import Replay
from tests.conftest import TINY_PARAMS
from tests.deployment.conftest import TARGET


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the params.yaml of the tiny project, and nothing else."""
    (tmp_path / "params.yaml").write_text(TINY_PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_episode_is_the_one_that_was_scored(root: Path, written: Path, tuned_project: Path) -> None:
    policy = load_policy(written, batch=3)
    episodes = roll_out(policy, root, 3)
    scores = pl.read_parquet(tuned_project / "data/evaluation/point_robot-0/scores.parquet")
    scored = scores.filter(
        pl.col("method") == "prompt_dt",
        pl.col("task") == TARGET.task,
        pl.col("prompt") == policy.description.actor,
    ).to_dicts()[0]
    assert episodes[0].episode_return == scored["return"]
    assert episodes[0].success == scored["success"]
    assert len({episode.episode_return for episode in episodes}) == 3, "each begins elsewhere"
    assert {episode.actions.shape for episode in episodes} == {(12, 2)}


def test_an_episode_that_ends_early_is_over(root: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = roll_out(load_policy(written, batch=2), root, 2)
    step = PointRobotEnv.step

    def ending(self: PointRobotEnv, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, bool]]:
        observation, reward, _, truncated, info = step(self, action)
        return observation, reward, bool(observation[0] == whole[0].observations[5, 0]), truncated, info

    monkeypatch.setattr(PointRobotEnv, "step", ending)
    first, second = roll_out(load_policy(written, batch=2), root, 2)
    assert (len(first.actions), len(second.actions)) == (5, 12)
    np.testing.assert_array_equal(first.observations, whole[0].observations[:5])
    assert first.episode_return > whole[0].episode_return
    assert second.episode_return == whole[1].episode_return


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("horizon: 12", "horizon: 20", r"families.point_robot.environment: observation size, .* are \(2, 2, 20\)"),
        ("tasks: 6, test_tasks: [1, 4]", "tasks: 4, test_tasks: [1]", "has no task 4, which the policy was tuned for"),
    ],
)
def test_another_environment_is_refused(root: Path, written: Path, old: str, new: str, message: str) -> None:
    text = (root / "params.yaml").read_text()
    assert old in text
    (root / "params.yaml").write_text(text.replace(old, new))
    with pytest.raises(PipelineError, match=message):
        roll_out(load_policy(written, batch=1), root, 1)


def test_a_family_that_is_not_there_is_refused(root: Path, written: Path) -> None:
    policy = load_policy(written, batch=1)
    policy.description = policy.description.model_copy(update={"family": "maze"})
    with pytest.raises(PipelineError, match=r"params.yaml: no family 'maze', which the policy was tuned for"):
        roll_out(policy, root, 1)


def test_the_command_draws_a_video(root: Path, written: Path) -> None:
    result = CliRunner().invoke(app, ["rollout", str(written), "--video", "episodes.gif", "--episodes", "1"])
    assert result.exit_code == 0, result.output
    first = roll_out(load_policy(written, batch=1), root, 1)[0]
    outcome = f"episode 1: return {first.episode_return:.3f}, no success, 12 steps"
    assert result.stdout.splitlines() == [outcome, "episodes.gif"]
    with Image.open("episodes.gif") as made:
        assert made.n_frames == 12
        assert made.size == (240, 262), "the plane and a caption"
        first_frame = np.array(made.convert("RGB"))
        made.seek(11)
        assert np.abs(np.array(made.convert("RGB")).astype(int) - first_frame).max() > 100, "it moves"
    assert {path.name for path in root.iterdir()} == {"params.yaml", "episodes.gif"}


def test_without_a_video_it_only_says_how_it_went(root: Path, written: Path) -> None:
    result = CliRunner().invoke(app, ["rollout", str(written), "--episodes", "2"])
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["episode 1", "episode 2"]
    assert [path.name for path in root.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_both_kinds_of_video_can_be_read_again(name: str, tmp_path: Path) -> None:
    colors = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    write_video(tmp_path / name, [Image.new("RGB", (65, 47), color) for color in colors])
    if name.endswith("gif"):
        with Image.open(tmp_path / name) as made:
            assert made.n_frames == 3
        return
    frames = imageio_ffmpeg.read_frames(str(tmp_path / name))
    about = next(frames)
    assert (about["size"], about["fps"]) == ((64, 46), 20.0), "H.264 has even sizes"
    found = [np.frombuffer(frame, np.uint8).reshape(46, 64, 3).mean((0, 1)) for frame in frames]
    np.testing.assert_allclose(found, colors, atol=25)


def test_what_cannot_be_drawn_is_said_before_anything_runs(
    root: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str) -> str:
        result = CliRunner().invoke(app, ["rollout", str(written), "--video", name])
        assert result.exit_code == 1
        assert not result.stdout
        return result.stderr

    assert refused("a.avi") == "error: a.avi: unknown kind of video: name a file that ends in .mp4 or .gif\n"
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "a.mp4: MP4 needs the package imageio-ffmpeg: pip install 'pd-pipeline[video]'" in refused("a.mp4")
    (root / "b.gif").mkdir()
    assert "b.gif: is a folder" in refused("b.gif")


def test_a_family_without_pictures_says_so(root: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "replay", lambda *_: Replay(missing="This family draws no pictures."))
    result = CliRunner().invoke(app, ["rollout", str(written), "--video", "a.gif"])
    assert result.exit_code == 1
    assert result.stdout.startswith("episode 1: return ")
    assert result.stderr == "error: family 'point_robot': This family draws no pictures.\n"
    assert not (root / "a.gif").exists()
