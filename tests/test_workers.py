"""Worker processes: shares, answers in order, and errors where one dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.workers import CORES, Answer, Workers, _Heartbeat, beat, cores, shares


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


class Closes:
    """What a process leaves open, until it ends."""

    def __init__(self, file: Path):
        self.file = file

    def __call__(self, message: Any) -> Any:
        return message

    def close(self) -> None:
        self.file.write_text("closed")
        raise RuntimeError("by a user's environment, after the work")


def test_a_process_closes_what_it_holds_before_it_ends(tmp_path: Path) -> None:
    with Workers(Closes, [(tmp_path / "a",), (tmp_path / "b",)], "test", "no advice") as workers:
        workers.send([1, 2])
        assert workers.gather() == [1, 2]
    assert [(tmp_path / name).read_text() for name in "ab"] == ["closed", "closed"]


def test_a_signal_to_the_whole_group_is_left_to_the_parent() -> None:
    with Workers(scaled, [(2,)], "test", "no advice") as workers:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(workers._processes[0].pid, number)
        workers.send([4])
        assert workers.gather() == [8]


def test_a_process_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    """A script without a guard runs again in its own process, which waits for what the first one holds."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "if __name__ == '__mp_main__':\n"
        "    time.sleep(60)\n"
        "from pd_pipeline import workers\n"
        "from tests.test_workers import scaled\n"
        "workers.START_SECONDS = 1.0\n"
        "workers.Workers(scaled, [(2,)], 'evaluation', '', patience=1.0)\n"
    )
    done = subprocess.run([sys.executable, script], timeout=50, check=False, capture_output=True, text=True)
    assert "evaluation: one of its processes has not started within 1 seconds: if a script of yours" in done.stderr


def test_processes_that_nobody_ended_do_not_hold_up_the_end() -> None:
    program = "from tests.test_workers import Workers, scaled\nkept = Workers(scaled, [(2,)], 'test', 'no advice')"
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0


def test_a_process_that_dies_is_an_error_that_says_where() -> None:
    workers = Workers(scaled, [(2,), (10,)], "evaluation", "lower evaluation.workers")
    workers.send([1, "die"])
    with pytest.raises(PipelineError, match=r"evaluation: one of its processes died.*lower evaluation\.workers"):
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


HANGS = Path(__file__).read_text().split("(" + "[60])")[0].count("\n") + 1


def moody(name: str) -> Answer:
    def answer(message: Any) -> Any:
        if message == "hang":
            np.vectorize(time.sleep)([60])  # in compiled code of a library
        if message == "slow":  # but with heartbeats
            for _ in range(30):
                time.sleep(0.2)
                beat()
        if message == "leave":
            raise SystemExit(0)
        if message == "refuse":
            raise PipelineError("test: as it is")
        return name, message

    return answer


def test_a_hung_process_is_killed_after_its_patience() -> None:
    began = time.monotonic()
    some = Workers(moody, [("a",), ("b",)], "test", "", patience=5)
    some.send(["x", "hang"])
    with pytest.raises(PipelineError, match=rf"not returned for 5 seconds \({__file__}, line {HANGS}\), so its"):
        some.gather()
    some.kill()
    assert time.monotonic() - began < 30
    assert all(process.exitcode is not None for process in some._processes)


def test_a_slow_process_with_heartbeats_is_waited_for() -> None:
    with Workers(moody, [("a",)], "test", "", patience=5) as some:
        some.send(["slow"])
        assert some.gather() == [("a", "slow")]
        assert list(some.spread(["slow"])) == [("a", "slow")]


@pytest.mark.parametrize(
    ("message", "words"), [("leave", "SystemExit.*test_workers.py"), ("refuse", "^test: as it is$")]
)
def test_errors_in_a_process_become_one_line(message: str, words: str) -> None:
    with Workers(moody, [("a",)], "test", "") as some:
        some.send([message])
        with pytest.raises(PipelineError, match=words):
            some.gather()


def test_jobs_go_to_free_processes() -> None:
    with Workers(moody, [("a",), ("b",)], "test", "") as some:
        found = list(some.spread(range(20)))
    assert sorted(number for _, number in found) == list(range(20))
    assert {name for name, _ in found} == {"a", "b"}


def test_spreading_ends_at_the_first_error_or_hang() -> None:
    with pytest.raises(PipelineError, match="as it is"), Workers(moody, [("a",), ("b",)], "test", "") as some:
        list(some.spread(["x", "refuse", "x"]))
    began = time.monotonic()
    with (
        pytest.raises(PipelineError, match="has not returned"),
        Workers(moody, [("a",)], "test", "", patience=3) as some,
    ):
        list(some.spread(["x", "hang"]))
    assert time.monotonic() - began < 30


def test_in_the_main_process_a_heartbeat_does_nothing() -> None:
    beat()
    assert _Heartbeat.pipe is None


def test_a_variable_limits_the_cores_that_a_piece_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CORES, "3")
    assert cores() == 3
    monkeypatch.delenv(CORES)
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert cores() == 1, "as taskset and jobs of a cluster ask for"
