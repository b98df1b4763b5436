"""What a family without a simulator lacks is found before any work."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pd_pipeline import graph, preflight
from pd_pipeline.errors import PipelineError
from pd_pipeline.trajectories.reading import read, write
from tests.recorded_project import (
    FAMILY,
    FOLDER,
    RECORDED_PARAMS,
    columns_of,
    metadata_of,
    record_project,
    short_episodes,
)


@pytest.fixture
def root(trained_project: Path, tmp_path: Path) -> Path:
    return record_project(trained_project, tmp_path / "recorded")


@pytest.fixture
def expert(trained_project: Path) -> Path:
    return trained_project / "data/trajectories/point_robot/expert.parquet"


def checked(root: Path, old: str = "", new: str = "") -> None:
    assert old in RECORDED_PARAMS
    (root / "params.yaml").write_text(RECORDED_PARAMS.replace(old, new, 1) if old else RECORDED_PARAMS)
    preflight.check(graph.load(root))


def test_valid_parameters_pass(root: Path) -> None:
    checked(root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "methods: [prompt_dt,",
            "methods: [prompt_bandit,",
            r"run\.methods: prompt_bandit runs episodes in a simulator, and family 'my_robot' has none",
        ),
        ("    target:", "    trajectories: {workers: 1}\n    target:", r"my_robot\.trajectories: nothing is collected"),
        (
            "    target:",
            "    behavior_policies: {levels: {expert: {gain: 1}}}\n    target:",
            r"my_robot\.behavior_policies: nothing is collected",
        ),
        (
            "plm: {",
            "plm: {qualities: [medium], ",
            r"my_robot\.plm: quality 'medium' is in no file of .*: found expert, rand",
        ),
        ("{few_shot: 3}", "{quality: medium}", r"tuned_prompt_dt: quality 'medium' is in no file"),
        ("evaluation: {", "evaluation: {offline: {quality: bad}, ", r"evaluation: quality 'bad' is in no file"),
        (
            "{few_shot: 3}",
            "{few_shot: null}",
            r"my_robot\.target\.few_shot: null leaves no trajectories to be scored on",
        ),
        (
            "{few_shot: 3}",
            "{few_shot: 6}",
            r"target\.few_shot: 6 trajectories of quality 'expert' and two others .* holds 7 of task 1",
        ),
        (
            "    tuned_full_finetune: {",
            "    tuned_full_finetune: {target: {quality: random, few_shot: 3}, ",
            r"tuned_full_finetune\.target\.few_shot: 3 trajectories of quality 'random', but .* holds 2 of task 1",
        ),
        (
            "    tuned_full_finetune: {",
            "    tuned_full_finetune: {target: {choose: best, few_shot: 3}, ",
            r"my_robot: methods get different trajectories .* \(3 'random' and 3 'best'\), .* holds 7 of task",
        ),
        (
            "{few_shot: 3}",
            "{few_shot: 3, prompt_quality: random}",
            r"my_robot\.target\.few_shot: 3 trajectories of quality 'random', but .* holds 2 of task 1",
        ),
        ("prompts: {length: 3", "prompts: {length: 30", r"prompts\.length: 30 steps, but an episode has at most 12"),
        ("targets: [1, 4]", "targets: [1, 9]", r"holds 0 of task 9"),
        ("targets: [1, 4]", "targets: [1], train_tasks: [0, 7]", r"task 7 has 0 trajectories of quality 'expert'"),
        (
            "diffuser: {",
            "diffuser: {qualities: [random], ",
            r"diffuser\.qualities: 'random' is not among prompts\.qualities",
        ),
    ],
)
def test_mistakes_are_found_before_any_work(root: Path, old: str, new: str, message: str) -> None:
    params = RECORDED_PARAMS.replace("noise_prompt]", "noise_prompt, prompt_diffuser]")
    (root / "params.yaml").write_text(params)
    preflight.check(graph.load(root))
    assert old in params
    (root / "params.yaml").write_text(params.replace(old, new, 1))
    with pytest.raises(PipelineError, match=message):
        preflight.check(graph.load(root))


def test_a_training_task_needs_one_long_episode_to_train_on_and_one_held_out(root: Path, expert: Path) -> None:
    whole = columns_of(read(expert))
    last = (whole.task_id == 2) & (whole.episode_id == 5)
    for rows in (last, (whole.task_id == 2) & ~last):
        short = short_episodes(whole.select(rows), 2)
        parts = [whole.select(whole.task_id < 2), *_in_order(short, whole.select((whole.task_id == 2) & ~rows))]
        path = root / FOLDER / "expert.parquet"
        write(path, metadata_of(expert), [*parts, whole.select(whole.task_id > 2)])
        count = len(np.unique(short.episode_id))
        with pytest.raises(PipelineError, match=f"task 2 has 6 trajectories .*, of which {6 - count} have the 3 steps"):
            checked(root)


def _in_order(*parts):  # type: ignore[no-untyped-def]
    return sorted(parts, key=lambda part: part.episode_id[0])


def test_a_change_of_the_files_is_checked_again(root: Path, expert: Path) -> None:
    checked(root)
    few = columns_of(read(expert, [0, 1]))
    write(root / FOLDER / "expert.parquet", metadata_of(expert, [0, 1]), [few])
    with pytest.raises(PipelineError, match="task 2 has 0 trajectories of quality 'expert'"):
        checked(root)


def test_files_where_the_pipeline_writes_are_refused(root: Path) -> None:
    shutil.copytree(root / FOLDER, root / f"data/trajectories/{FAMILY}")
    with pytest.raises(PipelineError, match=r"data: .* is where stage trajectories writes: move your files"):
        checked(root, FOLDER, f"data/trajectories/{FAMILY}")


def test_a_study_needs_a_simulator(root: Path) -> None:
    (root / "studies").mkdir()
    (root / "studies/few.yaml").write_text("title: Few\ngrid: {target.few_shot: [2, 3]}\n")
    with pytest.raises(PipelineError, match=r"few\.yaml, point few_shot 2: family 'my_robot' has no simulator"):
        checked(root, "machine:", "  studies: [few]\nmachine:")
