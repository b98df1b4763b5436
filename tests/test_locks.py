"""One process per piece of work."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pd_pipeline import dvc_locks, locks

HOLD = """\
import sys, time
from pathlib import Path
from pd_pipeline import locks
with locks.held(Path(sys.argv[1]), "plm", "x-0"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_waits_logs_for_whom_and_continues(
    tmp_path: Path, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SAY_AFTER_SECONDS", 0.2)
    assert not locks.is_free(tmp_path, "plm", "x-0")

    def end_holder() -> None:
        deadline = time.monotonic() + 60
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)  # long enough to be logged twice
        holder.kill()  # the kernel frees the lock with its process

    threading.Thread(target=end_holder, daemon=True).start()
    with locks.held(tmp_path, "plm", "x-0") as lock:
        assert lock.waited
    assert f"plm x-0: waiting for process {holder.pid} (" in caplog.text
    assert len(caplog.records) == 1, "logged once a minute"


def test_other_pieces_are_not_waited_for(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with locks.held(tmp_path, "plm", "x-1") as lock:
        assert not lock.waited
    assert locks.is_free(tmp_path, "plm", "x-1")


def test_a_released_lock_is_taken_by_the_process_that_waits(tmp_path: Path) -> None:
    with locks.held(tmp_path, "plm", "x-0") as lock:
        lock.release()
        assert locks.is_free(tmp_path, "plm", "x-0")
        lock.acquire()
        assert not locks.is_free(tmp_path, "plm", "x-0")


def written(root: Path, pid: int, command: str) -> None:
    (root / ".dvc/tmp").mkdir(parents=True, exist_ok=True)
    entry = {"pid": pid, "cmd": command}
    (root / dvc_locks.RWLOCK).write_text(json.dumps({"write": {"/out": entry}, "read": {"/in": [entry]}}))


def test_dvc_locks_of_living_dead_and_other_processes(tmp_path: Path) -> None:
    assert dvc_locks.holders(tmp_path) == []
    written(tmp_path, 2**22 + 1, "/bin/dvc repro")
    assert dvc_locks.holders(tmp_path) == [], "DVC itself ignores dead processes"
    own = f"{Path(sys.executable).name} -m pytest"
    written(tmp_path, os.getpid(), own)
    assert [holder.plausible for holder in dvc_locks.holders(tmp_path)] == [True]
    assert dvc_locks.remove_stale(tmp_path) == []
    written(tmp_path, os.getpid(), "/bin/some-dvc repro")
    (holder,) = dvc_locks.holders(tmp_path)
    assert (holder.pid, holder.plausible) == (os.getpid(), False)
    assert dvc_locks.remove_stale(tmp_path) == [holder]
    assert json.loads((tmp_path / dvc_locks.RWLOCK).read_text()) == {"write": {}, "read": {}}


@pytest.mark.parametrize("text", ["", "[]", '{"write": 3}', '{"read": {"/in": [{"pid": "x"}]}}', "\xff"])
def test_an_unreadable_lock_file_names_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / dvc_locks.RWLOCK).write_text(text, encoding="latin-1")
    assert dvc_locks.holders(tmp_path) == []
