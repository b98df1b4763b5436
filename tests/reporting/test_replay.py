import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pd_pipeline import graph
from pd_pipeline.progress import silent
from pd_pipeline.reporting import replay as module
from pd_pipeline.reporting import stage
from pd_pipeline.reporting.replay import animation, filmstrip, replay
from pd_pipeline.reporting.rollouts import Episode, read_episodes
from pd_pipeline.reporting.shown import Params
from pd_pipeline.stage import Key, StageContext

BLOCK = {"horizon": 12, "tasks": 6, "test_tasks": [1, 4]}


def reach_episode() -> Episode:
    return Episode("prompt_dt", 5, 0, np.zeros((2, 39), np.float32), np.zeros((2, 4), np.float32), 0.0, False)


def test_recorded_actions_give_the_recorded_observations(reported_project: Path, tmp_path: Path) -> None:
    episodes = read_episodes(reported_project / "data/evaluation/point_robot-0")[:2]
    made = replay(episodes, "point_robot", BLOCK, reported_project, tmp_path)
    assert not made.missing
    assert made.drift < 1e-5
    assert made.frames.shape[:2] == (2, 12)
    moving = Image.open(io.BytesIO(animation(made)))
    assert moving.n_frames > 1
    assert moving.size[0] > 2 * made.frames.shape[3]
    assert Image.open(io.BytesIO(filmstrip(made))).size[1] > 2 * made.frames.shape[2]


@pytest.mark.parametrize("frames", [3, 12, 500])
def test_as_many_frames_are_drawn_as_are_asked_for(frames: int, reported_project: Path, tmp_path: Path) -> None:
    episodes = read_episodes(reported_project / "data/evaluation/point_robot-0")[:1]
    made = replay(episodes, "point_robot", BLOCK, reported_project, tmp_path, frames=frames)
    assert made.frames.shape[1] == min(frames, 12)


def test_without_opengl_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(module, "BACKENDS", ("nonsense",))
    made = replay([reach_episode()], "reach", {}, tmp_path, tmp_path)
    assert "no off-screen OpenGL" in made.missing
    assert "nonsense: " in made.missing
    assert not made.frames.size


def test_mujoco_is_pictured_where_it_can_be(tmp_path: Path) -> None:
    made = replay([reach_episode()], "reach", {}, tmp_path, tmp_path)
    if made.missing:
        assert "no off-screen OpenGL" in made.missing
    else:
        assert made.frames.shape == (1, 2, 240, 320, 3)
        assert made.frames.std() > 10


def test_page_stands_without_pictures(reported_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_try", lambda job, backend: "no GL here")
    monkeypatch.setattr(
        stage, "family_figures", lambda context, results, bars: defaultdict(list)
    )  # drawn in other tests
    project = graph.load(reported_project)
    inputs = {need: reported_project / "data" / need for need in project.stages["report"].needs}
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    key, params = Key(), Params()
    stage.run(
        StageContext(
            root=reported_project,
            stage="report",
            key=key,
            params=params,
            module=stage.__name__,
            modules=project.modules,
            environment={},
            inputs=inputs,
            out=out,
            work=work,
            logs=work,
            progress=silent,
            params_file=project.params,
        )
    )
    page = (out / "index.html").read_text()
    assert "no off-screen OpenGL was found on this machine" in page
    assert "no GL here" in page
    assert "data:image/webp" not in page
    assert page.count("<tr data-method=") == len(project.params.run.methods)
