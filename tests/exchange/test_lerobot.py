"""Data sets in the layouts of LeRobot, as its documentation describes them; the package itself is not needed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange import lerobot_writing
from pd_pipeline.trajectories.reading import read, read_metadata
from tests.exchange.builders import ALL, every, exported, imported, trajectory_file
from tests.exchange.test_d4rl import plain

FEATURES: dict[str, Any] = {
    "observation.images.top": {"dtype": "video", "shape": [96, 96, 3], "names": ["height", "width", "channel"]},
    "observation.force": {"dtype": "float64", "shape": [1], "names": None},
    "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
    "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "next.success": {"dtype": "bool", "shape": [1], "names": None},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
LENGTHS, TASKS = (4, 6, 3), (0, 1, 0)
WORDS = ("push the T", "pull the T")


def frames(episode: int) -> dict[str, Any]:
    """The columns of an episode."""
    length, rng = LENGTHS[episode], np.random.default_rng(episode)
    last = np.arange(length) == length - 1
    return {
        "observation.force": rng.normal(size=length),
        "observation.state": rng.normal(size=(length, 2)).astype(np.float32).tolist(),
        "action": rng.uniform(0, 512, (length, 2)).astype(np.float32).tolist(),
        "next.reward": rng.normal(size=length).astype(np.float32),
        "next.done": last,
        "next.success": last & (episode != 1),
        "timestamp": (np.arange(length) / 10).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": sum(LENGTHS[:episode]) + np.arange(length),
        "task_index": np.full(length, TASKS[episode]),
        "action.arm": rng.normal(size=(length, 2)).astype(np.float32).tolist(),
        "action.grip": rng.normal(size=length),
    }


def version_2(root: Path, features: dict[str, Any] = FEATURES, version: str = "v2.1") -> Path:
    """A file per episode, and JSON lines."""
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    names = [name for name in features if features[name]["dtype"] != "video"]
    for episode in range(3):
        table = pa.table({name: frames(episode)[name] for name in names})
        pq.write_table(table, root / f"data/chunk-000/episode_{episode:06d}.parquet")
    info = {"codebase_version": version, "fps": 10, "total_episodes": 3, "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = [json.dumps({"task_index": i, "task": words}) for i, words in enumerate(WORDS)]
    (root / "meta/tasks.jsonl").write_text("\n".join(tasks) + "\n")
    return root


def version_3(root: Path) -> Path:
    """All episodes in one file whose row groups do not end with them, and tables, written by pandas."""
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    table = pa.concat_tables([pa.table({n: v for n, v in frames(episode).items()}) for episode in range(3)])
    pq.write_table(table, root / "data/chunk-000/file-000.parquet", row_group_size=5)
    info = {"codebase_version": "v3.0", "fps": 10, "features": FEATURES}
    (root / "meta/info.json").write_text(json.dumps(info))
    pd.DataFrame({"task_index": [0, 1]}, index=pd.Index(WORDS, name="task")).to_parquet(root / "meta/tasks.parquet")
    return root


@pytest.mark.parametrize("layout", [version_2, version_3])
def test_both_layouts(tmp_path: Path, layout: Any) -> None:
    (made,), said = imported(tmp_path, layout(tmp_path / "pusht"))
    data, steps = read(made), every(made)
    assert data.task_id.tolist() == [0, 0, 1]
    assert data.lengths.tolist() == [4, 3, 6]
    assert read_metadata(made).goals == {0: {"task": "push the T"}, 1: {"task": "pull the T"}}
    expected = [frames(episode) for episode in (0, 2, 1)]
    state = np.concatenate([np.float32(e["observation.state"]) for e in expected])
    force = np.concatenate([np.float32(e["observation.force"]) for e in expected])[:, None]
    np.testing.assert_array_equal(steps.observation, np.concatenate((state, force), axis=1))
    np.testing.assert_array_equal(steps.action, np.concatenate([np.float32(e["action"]) for e in expected]))
    np.testing.assert_array_equal(steps.reward, np.concatenate([e["next.reward"] for e in expected]))
    np.testing.assert_array_equal(steps.success, np.concatenate([e["next.success"] for e in expected]))
    assert np.flatnonzero(steps.terminated).tolist() == [3, 6, 12]
    for line in ("observation: observation.state [2] + observation.force [1], as float32",
                 "left out: observation.images.top (video)", "next.done -> terminated", "(read off the actions)",
                 "task 1 -> task 1 of robot, quality expert {'task': 'pull the T'}"):  # fmt: skip
        assert line in said


def test_a_task_that_the_family_has_is_known_by_its_words(tmp_path: Path) -> None:
    imported(tmp_path, version_2(tmp_path / "one"))
    more = version_3(tmp_path / "two")
    pd.DataFrame({"task_index": [0, 1]}, index=["pull the T", "lift"]).to_parquet(more / "meta/tasks.parquet")
    (made,), _ = imported(tmp_path, more)
    metadata = read_metadata(made)
    assert metadata.goals == {1: {"task": "pull the T"}, 2: {"task": "lift"}}
    data = read(made)
    assert data.episode_id[data.task_id == 1].tolist() == [1, 2]


def test_parts_may_be_left_out_and_rewards_missing(tmp_path: Path) -> None:
    features = {name: feature for name, feature in FEATURES.items() if not name.startswith("next.")}
    source = version_2(tmp_path / "bare", features)
    with pytest.raises(PipelineError, match="holds no rewards: --reward 0 gives every step the same; without"):
        imported(tmp_path, source)
    (made,), said = imported(tmp_path, source, reward=0, without=("observation.force",))
    assert every(made).observation.shape == (13, 2)
    assert "the last row -> truncated" in said
    assert every(made).truncated.sum() == 3


def test_an_action_is_action_alone_or_all_its_parts(tmp_path: Path) -> None:
    beside = FEATURES | {"action.grip": FEATURES["observation.force"]}
    _, said = imported(tmp_path / "beside", version_2(tmp_path / "a", beside))
    assert "action: 2 numbers" in said
    assert "left out: action.grip (float64)" in said
    parts = {name: feature for name, feature in FEATURES.items() if name != "action"}
    parts |= {"action.grip": FEATURES["observation.force"], "action.arm": FEATURES["action"]}
    (made,), said = imported(tmp_path / "parts", version_2(tmp_path / "b", parts))
    assert "action.arm [2] + action.grip [1] -> action" in said
    assert every(made).action.shape == (13, 3)


def test_vectors_of_one_number_are_exported_as_numbers(tmp_path: Path) -> None:
    """As LeRobot keeps them; they come back as they were."""
    one = plain(tmp_path / "a.hdf5", observations=np.arange(10.0)[:, None], actions=np.linspace(-1, 1, 10)[:, None])
    (made,), _ = imported(tmp_path, one)
    out = exported("lerobot", tmp_path, made)
    (data,) = (out / "data").rglob("*.parquet")
    types = pq.read_schema(data)
    assert {types.field(name).type for name in ("observation.state", "action")} == {pa.float32()}
    (back,), _ = imported(tmp_path / "other", out)
    np.testing.assert_array_equal(every(back).action, every(made).action)
    np.testing.assert_array_equal(every(back).observation, every(made).observation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("action", {"dtype": "int64", "shape": [1]}), r"actions are action \(int64 \[1\]\): this pipeline learns"),
        (("observation.state", {"dtype": "image", "shape": [9, 9, 3]}), "no observation is a vector of numbers"),
        (("observation.state", {"dtype": "float32", "shape": [3]}), "observation.state: 8 numbers in 4 rows, but 3 in"),
    ],
)
def test_what_cannot_be_imported_is_said(tmp_path: Path, change: Any, message: str) -> None:
    features = {n: f for n, f in FEATURES.items() if n != "observation.force"} | dict([change])
    with pytest.raises(PipelineError, match=message):
        imported(tmp_path, version_2(tmp_path / "le", features))


def values(name: str, found: list[Any]) -> Any:
    """Changes a column of a file with six rows."""
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(found))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *((lambda table, name=name: table.drop_columns([name]), rf"episode_000001\.parquet: no column {name}")
          for name in ("task_index", "episode_index", "next.reward", "action", "observation.state")),
        (values("episode_index", [1, 1, None, 1, 1, 1]), "must be whole numbers, none of them empty"),
        (values("task_index", ["a"] * 6), "must be whole numbers, none of them empty"),
        (values("next.reward", [1.0, None, 1.0, 1.0, 1.0, 1.0]), "episode 1: empty values in next.reward"),
        (values("next.reward", ["good"] * 6), "le: damaged, or not as its format says it is: ValueError"),
        (values("action", [1] * 6), "le: damaged, or not as its format says it is: "),
    ],
)  # fmt: skip
def test_columns_that_are_not_as_stated_are_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    path = version_2(tmp_path / "le") / "data/chunk-000/episode_000001.parquet"
    pq.write_table(damage(pq.read_table(path)), path)
    with pytest.raises(PipelineError, match=message):
        imported(tmp_path, tmp_path / "le")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON .*: not a LeRobot data set that can be read"),
        ('{"codebase_version": "v2.1", "features": {"action": 3}}', "lists no features"),
        ('{"codebase_version": "v2.1", "features": {"action": {"dtype": "float32", "shape": ["x"]}}}', "damaged, or"),
    ],
)
def test_a_damaged_description_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (version_2(tmp_path / "le") / "meta/info.json").write_text(text)
    with pytest.raises(PipelineError, match=message) as caught:
        imported(tmp_path, tmp_path / "le")
    assert "run its stage again" not in str(caught.value), "it is the user's own"


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"codebase_version is v1\.6: v2\.0, v2\.1 and v3\.0 can be imported"):
        imported(tmp_path, version_2(tmp_path / "old", version="v1.6"))
    broken = version_2(tmp_path / "broken")
    (broken / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(PipelineError, match=r"episode_000001\.parquet: damaged, or not LeRobot data"):
        imported(tmp_path, broken)
    twice = version_2(tmp_path / "twice")
    data = twice / "data/chunk-000"
    (data / "episode_000007.parquet").write_bytes((data / "episode_000001.parquet").read_bytes())
    with pytest.raises(PipelineError, match="an episode_index appears twice"):
        imported(tmp_path, twice)
    empty = version_2(tmp_path / "empty")
    path = empty / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    (made,), _ = imported(tmp_path, empty)
    assert read(made).lengths.tolist() == [4, 3], "a file without rows has no episode"
    gap = version_2(tmp_path / "gap")
    path = gap / "data/chunk-000/episode_000001.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(PipelineError, match="episode 1: its frame_index does not count from 0 on"):
        imported(tmp_path, gap)


def test_an_export_has_the_documented_layout(tmp_path: Path) -> None:
    """Files, features, types and tables of v3.0."""
    root = exported("lerobot", tmp_path, trajectory_file(tmp_path / "medium.parquet"))
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (5, 26, 2, 10)
    assert info["splits"] == {"train": "0:5"}
    assert info["video_path"] is None
    path = root / info["data_path"].format(chunk_index=0, file_index=0)
    schema = pq.read_schema(path)
    assert set(schema.names) == set(info["features"])
    for name, feature in info["features"].items():
        assert "/" not in name
        (size,) = feature["shape"]
        kind = schema.field(name).type
        plain = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
        assert str(plain).replace("float", "float32") in (feature["dtype"], "float32", "bool")
        assert (kind.list_size if pa.types.is_fixed_size_list(kind) else 1) == size
    table = pq.read_table(path)
    assert table["index"].to_pylist() == list(range(26))
    assert table["episode_index"].to_pylist() == [e for e, steps in enumerate(ALL) for _ in steps.step]
    assert table["frame_index"].to_pylist() == [int(step) for steps in ALL for step in steps.step]
    assert table["task_index"].to_pylist() == [0] * 15 + [1] * 11
    assert table["timestamp"].to_pylist()[:3] == pytest.approx([0, 0.1, 0.2])
    assert table["next.done"].to_pylist().count(True) == 5
    tasks = pd.read_parquet(root / "meta/tasks.parquet")
    assert tasks.index.name == "task"
    assert tasks["task_index"].tolist() == [0, 1]
    assert tasks.iloc[1].name == 'point_robot task 5: {"words": "stack"}'


def test_the_table_of_episodes_says_where_their_rows_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_writing, "FILE_MEGABYTES", 0)
    monkeypatch.setattr(lerobot_writing, "FILES_PER_CHUNK", 2)
    monkeypatch.setattr(lerobot_writing, "EPISODES_PER_FLUSH", 2)
    root = exported("lerobot", tmp_path, trajectory_file(tmp_path / "medium.parquet"))
    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    info = json.loads((root / "meta/info.json").read_text())
    assert [(row["data/chunk_index"], row["data/file_index"]) for row in episodes] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]  # fmt: skip
    for number, (row, steps) in enumerate(zip(episodes, ALL, strict=True)):
        path = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        table = pq.read_table(root / path)
        assert row["episode_index"] == number
        assert row["length"] == len(steps.step) == table.num_rows
        assert table["index"].to_pylist() == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        np.testing.assert_allclose(row["stats/observation.state/max"], steps.observation.max(0))
        np.testing.assert_allclose(row["stats/action/std"], steps.action.std(0), rtol=1e-5, atol=1e-7)
        assert row["stats/action/count"] == [len(steps.step)]
    assert read(imported(tmp_path, root)[0][0]).episode_id.tolist() == [0, 7, 8, 0, 3]


def test_statistics_are_those_of_all_rows(tmp_path: Path) -> None:
    root = exported("lerobot", tmp_path, trajectory_file(tmp_path / "medium.parquet"))
    stats = json.loads((root / "meta/stats.json").read_text())
    rows = np.concatenate([steps.observation for steps in ALL]).astype(np.float64)
    found = stats["observation.state"]
    for name, expected in (("mean", rows.mean(0)), ("std", rows.std(0)), ("min", rows.min(0)), ("max", rows.max(0))):
        np.testing.assert_allclose(found[name], expected, rtol=1e-9)
    assert found["count"] == [26]
