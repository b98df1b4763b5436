"""Copies of episodes are known by what they hold, however they are numbered, cut into row groups or named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pd_pipeline.trajectories.copies import episode_digests, first_seen
from pd_pipeline.trajectories.reading import write
from tests.builders import changed, columns, metadata


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, 19)), shift=st.integers(0, 1000))
def test_row_groups_and_numbers_do_not_matter(cuts: set[int], shift: int, tmp_path: Path) -> None:
    made = columns()
    write(tmp_path / "whole.parquet", metadata(), [made])
    other = replace(made, episode_id=made.episode_id + shift)
    parts = [other.select(rows) for rows in np.split(np.arange(20), sorted(cuts))]
    write(tmp_path / "cut.parquet", metadata(), parts)
    whole = list(episode_digests(tmp_path / "whole.parquet"))
    assert len({*whole}) == 4
    assert list(episode_digests(tmp_path / "cut.parquet")) == whole


@pytest.mark.parametrize("name", ["observation", "action", "reward"])
def test_a_single_other_number_makes_another_episode(name: str, tmp_path: Path) -> None:
    made, about = columns(tasks=(0,)), metadata(goals={0: {"position": [0.0]}})
    other = changed(made, name, 7, 0.25)
    if name == "reward":
        sums = np.cumsum(other.reward[5:][::-1], dtype=np.float64)[::-1]
        other = changed(other, "return_to_go", slice(5, 10), sums.astype(np.float32))
    for file, content in (("a", made), ("b", other)):
        write(tmp_path / f"{file}.parquet", about, [content])
    before, after = (list(episode_digests(tmp_path / f"{file}.parquet")) for file in "ab")
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_only_the_first_of_equal_episodes_is_new() -> None:
    found = first_seen({Path("a"): [b"1", b"2", b"1"], Path("b"): [b"2", b"3", b"0"], Path("c"): []}, [b"0"])
    assert {path.name: new.tolist() for path, new in found.items()} == {
        "a": [True, True, False],
        "b": [False, True, False],
        "c": [],
    }
