"""Errors of foreign code with their place, and time limits for code that hangs."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pd_pipeline import foreign
from pd_pipeline.errors import PipelineError
from pd_pipeline.foreign import error_text, place, time_limit

USERS = "/home/ada/robot.py"
LIBRARY = "/opt/env/lib/python3.11/site-packages/gymnasium/core.py"
OURS = foreign.__file__


def line_of(text: str) -> int:
    return 1 + next(i for i, line in enumerate(Path(__file__).read_text().splitlines()) if text in line)


@pytest.mark.parametrize(
    ("frames", "chosen"),
    [
        ([(LIBRARY, 7), (USERS, 12), (OURS, 3)], f" ({USERS}, line 12)"),
        ([("<string>", 1), (USERS, 4), (USERS, 12)], f" ({USERS}, line 4)"),
        ([(threading.__file__, 9), (USERS, 12)], f" ({USERS}, line 12)"),
        ([(OURS, 3), (LIBRARY, 7), (OURS, 5)], f" ({LIBRARY}, line 7)"),
        ([(OURS, 3), (threading.__file__, 9)], ""),
        ([("<string>", 1)], ""),
    ],
    ids=["below a library", "the innermost", "below the standard library", "only installed", "nobody else's", "none"],
)
def test_the_place_is_the_users_own_line(frames: list[tuple[str, int]], chosen: str) -> None:
    assert place(frames) == chosen


def test_an_error_is_described_by_type_message_and_place() -> None:
    with pytest.raises(ValueError, match="matmul") as caught:
        np.zeros((2, 3)) @ np.zeros(2)  # the user's line
    assert error_text(caught.value) == f"ValueError: {caught.value} ({__file__}, line {line_of('# the ' + 'user')})"
    with pytest.raises(SystemExit) as left:
        sys.exit()
    assert error_text(left.value).startswith(f"SystemExit ({__file__}, line ")


def test_a_call_that_hangs_is_interrupted_and_named() -> None:
    began = time.monotonic()
    with pytest.raises(PipelineError) as caught, time_limit("making 'Robot'", 0.3):
        time.sleep(30)  # it hangs here
    assert time.monotonic() - began < 25
    assert str(caught.value) == (
        f"making 'Robot' has not returned after 0.3 seconds ({__file__}, line {line_of('# it ' + 'hangs')}): fix it "
        "and run again"
    )


def test_a_call_that_returns_is_not_interrupted_and_nested_limits_do_nothing() -> None:
    with time_limit("outer", 20), time_limit("inner", 0.1):
        time.sleep(0.3)
    assert not foreign._Watch.on


def test_an_error_of_the_call_goes_through() -> None:
    with pytest.raises(ZeroDivisionError), time_limit("making it", 5):
        1 / 0  # noqa: B018
    assert not foreign._Watch.on


def test_other_threads_and_watched_processes_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def work() -> None:
        with time_limit("making it", 0.05):
            time.sleep(0.3)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    monkeypatch.setattr(foreign._Watch, "by_parent", True)
    work()
    assert ended == [True, True]


def test_compiled_code_that_never_returns_ends_the_process_with_the_line(tmp_path: Path) -> None:
    script = tmp_path / "robot.py"
    script.write_text(
        "import ctypes\n"
        "from pd_pipeline import foreign\n"
        "foreign.GRACE_SECONDS = 0.3\n"
        "lock = ctypes.create_string_buffer(64)\n"
        "with foreign.time_limit('making it', 0.3):\n"
        "    ctypes.CDLL(None).pthread_mutex_lock(lock)\n"
        "    ctypes.CDLL(None).pthread_mutex_lock(lock)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == (f"making it has not returned after 0.3 seconds ({script}, line 7): fix it and run again\n")
