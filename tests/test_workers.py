"""Worker processes: shares, answers in order, and what a dead one becomes."""

import os
from typing import Any

import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.workers import Answer, Workers, shares


def scaled(factor: int) -> Answer:
    def answer(message: Any) -> Any:
        if message == "die":
            os._exit(1)
        return factor * message

    return answer


def test_shares_cover_everything_once() -> None:
    for count, workers in ((7, 3), (3, 8), (1, 1), (32, 2)):
        parts = shares(count, workers)
        assert [i for part in parts for i in range(count)[part]] == list(range(count))
        assert len(parts) == min(count, workers)
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_each_process_answers_its_own_messages_in_order() -> None:
    workers = Workers(scaled, [(2,), (10,)], "test", "no advice")
    workers.send([1, 2])
    assert workers.gather() == [2, 20]
    workers.send([3, 0])
    assert workers.gather() == [6, 0]
    workers.close()
    assert [process.exitcode for process in workers._processes] == [0, 0]


def test_a_process_that_dies_is_an_error_that_says_where() -> None:
    workers = Workers(scaled, [(2,), (10,)], "evaluation", "lower evaluation.workers")
    workers.send([1, "die"])
    with pytest.raises(PipelineError, match=r"evaluation: a process .* died.*lower evaluation\.workers"):
        workers.gather()
    workers._processes[1].join()
    with pytest.raises(PipelineError, match="died"):  # asked again, the pipe itself is broken
        workers.send([1, 1])
    workers.close()


def fails() -> Answer:
    os._exit(1)


def test_a_process_that_dies_at_once_leaves_none_behind() -> None:
    with pytest.raises(PipelineError, match="died"):
        Workers(fails, [()], "test", "no advice")


def threads(name: str) -> Answer:
    return lambda message: os.environ[name]


def test_processes_compute_on_one_thread_each_and_the_parent_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    workers = Workers(threads, [("OMP_NUM_THREADS",), ("OPENBLAS_NUM_THREADS",)], "test", "no advice")
    workers.send([0, 0])
    assert workers.gather() == ["1", "1"]
    workers.close()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ
