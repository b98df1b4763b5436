"""Pieces side by side: in the order of their needs, never more than allowed, and nothing new after an error."""

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_pipeline.engines.order import Piece, side_by_side
from pd_pipeline.stage import Key

Needs = dict[Piece, list[Piece]]


def piece(number: int) -> Piece:
    return f"stage_{number}", Key()


def run(needs: Needs, work: Callable[[str, Key], object], at_once: int, stop: Callable[[], object] = bool) -> None:
    for _ in side_by_side(list(needs), lambda stage, key: needs[stage, key], work, at_once, stop):
        pass


@st.composite
def graphs(draw: st.DrawFn) -> Needs:
    """Pieces that need some of those before them, and one that is not among them."""
    count = draw(st.integers(0, 12))
    return {
        piece(number): [piece(earlier) for earlier in range(number) if draw(st.booleans())] + [piece(99)]
        for number in range(count)
    }


@given(graphs(), st.integers(1, 5))
def test_each_piece_runs_once_after_those_that_it_needs(needs: Needs, at_once: int) -> None:
    begun, ended, lock = list[Piece](), set[Piece](), threading.Lock()
    most = [0]

    def work(stage: str, key: Key) -> None:
        with lock:
            assert {need for need in needs[stage, key] if need in needs} <= ended
            begun.append((stage, key))
            most[0] = max(most[0], len(begun) - len(ended))
        time.sleep(0)
        with lock:
            ended.add((stage, key))

    run(needs, work, at_once)
    assert sorted(begun) == sorted(needs)
    assert most[0] <= at_once


def test_pieces_that_need_nothing_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)  # broken unless both wait at it
    arrived: list[int] = []
    run({piece(0): [], piece(1): []}, lambda *_: arrived.append(both.wait()), 2)
    assert sorted(arrived) == [0, 1]


def test_after_an_error_running_pieces_end_and_no_other_starts() -> None:
    failed, ended = threading.Event(), []

    def work(stage: str, key: Key) -> None:
        if stage == "stage_0":
            failed.set()
            raise ValueError("broken")
        assert failed.wait(10)
        time.sleep(0.05)
        ended.append(stage)

    with pytest.raises(ValueError, match="broken"):
        run({piece(0): [], piece(1): [], piece(2): [], piece(3): [piece(1)]}, work, 2)
    assert ended == ["stage_1"]


def test_an_interruption_stops_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pd_pipeline.engines.order.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run({piece(0): []}, lambda *_: stopped.wait(10), 1, stopped.set)
    assert stopped.is_set()


def test_results_come_as_they_are_there_and_a_caller_that_wants_no_more_stops_the_rest() -> None:
    first, stopped = threading.Event(), []

    def work(stage: str, key: Key) -> str:
        if stage == "stage_1":
            assert first.wait(10), "the result of the other one was there before"
        return stage

    pieces = [piece(0), piece(1), piece(2)]
    found = side_by_side(
        pieces, lambda stage, key: [piece(1)] * (stage == "stage_2"), work, 2, lambda: stopped.append(1)
    )
    assert next(found) == "stage_0"
    first.set()
    assert next(found) == "stage_1"
    assert not stopped
    found.close()  # type: ignore[attr-defined]
    assert stopped == [1]
