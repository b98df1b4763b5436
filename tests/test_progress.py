"""Progress as lines: the first, the last, and those that are due."""

import pytest

from pd_pipeline import progress
from pd_pipeline.progress import BarProgress, LineProgress, console, silent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_show_rate_and_time_left(clock: list[float]) -> None:
    lines: list[str] = []
    report = LineProgress(lines.append, every_seconds=10)
    for done in range(0, 101, 5):
        report("training", done, 100, "loss 0.5")
        clock[0] += 1
    assert lines[0] == "training: 0 of 100, loss 0.5"
    assert lines[1] == "training: 50 of 100, 5.0/s, 10 s left, loss 0.5"
    assert lines[-1] == "training: 100 of 100, 5.0/s, 0 s left, loss 0.5"
    assert len(lines) == 3


def test_rate_counts_from_where_it_was_resumed(clock: list[float]) -> None:
    lines: list[str] = []
    report = LineProgress(lines.append, every_seconds=1)
    report("training", 900, 1000)
    clock[0] += 10
    report("training", 910, 1000)
    assert lines[-1] == "training: 910 of 1,000, 1.0/s, 1 min 30 s left"


def test_a_new_task_resets_the_rate(clock: list[float]) -> None:
    lines: list[str] = []
    report = LineProgress(lines.append, every_seconds=1000)
    report("one", 1, 2)
    report("two", 0, 2)
    assert lines == ["one: 1 of 2", "two: 0 of 2"]


def test_bar_draws_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    bar = BarProgress()
    bar("collecting", 0, 2)
    bar("collecting", 2, 2, "9 steps/s")
    bar.close()
    captured = capsys.readouterr()
    assert "collecting" in captured.err
    assert captured.out == ""


def test_console_writes_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console() as report:
        report("collecting", 1, 1)
    assert "collecting: 1 of 1" in capsys.readouterr().err


def test_console_restores_the_terminal_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[BarProgress] = []

    class Watched(BarProgress):
        def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "BarProgress", Watched)
    with pytest.raises(ValueError, match="half way"), console() as report:
        raise ValueError("half way")
    assert closed == [report]


def test_silent_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent("x", 1, 2)
    assert capsys.readouterr() == ("", "")
