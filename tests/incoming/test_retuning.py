"""From a file in the drop zone to a policy in use, by one command."""

import json
from pathlib import Path

import pytest

from pd_pipeline import load_policy
from pd_pipeline.storage import read_json
from pd_pipeline.trajectories.reading import write
from tests.builders import columns, metadata
from tests.dvc_project import SMALL_PARAMS, call, make_project, start

NEW = 57
LIKE_THE_FAMILY = {"observation_size": 2, "action_low": (-1.0, -1.0), "action_high": (1.0, 1.0), "horizon": 6}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_project(
        tmp_path, SMALL_PARAMS.replace("    tuned_prompt_dt", "    target: {few_shot: 2}\n    tuned_prompt_dt")
    )
    call(root, "pd-pipeline", "run", "all")
    return root


def drop(root: Path, task: int, seed: int, episodes: int = 4) -> None:
    path = root / f"data/incoming/other/{task}/{seed}.parquet"
    about = LIKE_THE_FAMILY | {"family": "other", "goals": {task: {"position": [0.5]}}}
    write(path, metadata(**about), [columns(tasks=(task,), d_s=2, seed=seed, episodes=episodes)])
    path.with_name(path.name + ".done").touch()


def out_of_date(root: Path) -> list[str]:
    """The pieces that DVC names as stale."""
    return sorted(json.loads(call(root, "dvc", "status", "--json")))


def test_a_new_target_and_then_more_data_of_it(root: Path) -> None:
    drop(root, NEW, 1)
    text = call(root, "pd-pipeline", "ingest")
    assert "data/incoming/other/57/1.parquet: accepted: data/ingested/other/57/0001-expert.parquet: 4 episodes" in text
    assert "target_data other-57: done" in text
    assert "tuned_prompt_dt other-57-0: done" in text
    assert "plm" not in text
    assert "evaluation" not in text
    assert "other-57: promoted: it is the first one" in text
    assert load_policy(root / "data/promoted/other-57").description.task == NEW
    assert out_of_date(root) == ["report"], "DVC knows the new target and its work; the report is another matter"
    assert "tuned_prompt_dt@other-57-0" in (root / "dvc.lock").read_text()
    assert "other-57: version 1 since" in call(root, "pd-pipeline", "status")

    quiet = call(root, "pd-pipeline", "ingest")
    assert "done" not in quiet
    assert "promoted" not in quiet

    drop(root, NEW, 2)
    text = call(root, "pd-pipeline", "ingest")
    assert "0002-expert.parquet: 4 episodes" in text
    assert "action loss on" in text, "nothing can simulate this target"
    decision = read_json(root / "data/promoted/other-57/decisions/0002.json")
    assert decision["measure"] == "action_loss"
    assert decision["outcome"] in ("promoted", "refused")
    assert f"other-57: {decision['outcome']}: " in text
    call(root, "dvc", "repro", "--quiet")
    assert "up to date" in call(root, "dvc", "status")


def test_too_little_data_waits(root: Path) -> None:
    drop(root, NEW, 1, episodes=1)
    text = call(root, "pd-pipeline", "ingest")
    assert "other-57: waits: 1 of 2 trajectories of quality expert" in text
    status = call(root, "pd-pipeline", "status")
    assert "other-57: nothing in use" in status
    assert "waits: 1 of 2 trajectories of quality expert" in status
    assert out_of_date(root) == ["target_data@other-57"], "nothing is made of it yet"


def test_more_data_of_a_benchmark_target_tunes_for_it_alone(root: Path) -> None:
    drop(root, 3, 1)
    text = call(root, "pd-pipeline", "ingest")
    done = {line.removesuffix(": done") for line in text.splitlines() if line.endswith(": done")}
    assert {piece.split()[1].split("-")[1] for piece in done} == {"3"}
    assert "target_data other-3" in done
    assert "other-3: promoted: it is the first one" in text


def test_a_bad_file_is_quarantined_and_the_good_one_goes_on(root: Path) -> None:
    drop(root, NEW, 1)
    bad = root / "data/incoming/other/58/bad.parquet"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"nothing")
    bad.with_name("bad.parquet.done").touch()
    process = start(root, "pd-pipeline", "ingest")
    text, _ = process.communicate()
    assert process.returncode == 1
    assert "bad.parquet: quarantined: not a readable Parquet file" in text
    assert "other-57: promoted" in text
    assert (root / "data/quarantine/other/58/bad.parquet.reason.txt").is_file()
