"""Error messages: one printable line of bounded length."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_pipeline.errors import MAX_MESSAGE, PipelineError, closest, described, one_line, suggestion


@given(st.text(max_size=5000))
def test_a_message_is_one_printable_line_of_bounded_length(text: str) -> None:
    message = str(PipelineError(text))
    assert len(message) <= MAX_MESSAGE
    assert message.isprintable()


def test_a_short_message_is_unchanged() -> None:
    assert str(PipelineError("params.yaml: run.seeds: [0, 0]")) == "params.yaml: run.seeds: [0, 0]"


def test_of_a_long_message_both_ends_are_kept() -> None:
    message = one_line("begin " + "x" * 5_000_000 + " end: remove it")
    assert message.startswith("begin x")
    assert message.endswith("x end: remove it")
    assert " ... " in message


def test_control_characters_are_escaped() -> None:
    assert one_line("a\x1b[2Jb\tc\nd") == "a\\x1b[2Jb\\tc; d"


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("stepz", ["width", "steps"], "did you mean 'steps'?"),
        ("other", ["width", "steps", "width"], "choose one of width, steps"),
        ("other", [], "choose one of none"),
    ],
)
def test_for_an_unknown_name_the_closest_is_suggested_or_else_all(name: str, known: list[str], words: str) -> None:
    assert suggestion(name, known) == words
    assert suggestion(name, iter(known)) == words


def test_how_similar_the_closest_name_must_be() -> None:
    assert closest("tuned_mine", ["tuned_lora"]) == "tuned_lora"
    assert closest("tuned_mine", ["tuned_lora"], similarity=0.9) is None
    assert closest("tuned_lroa", ["tuned_lora"], similarity=0.9) == "tuned_lora"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PipelineError("as it is"), "as it is"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            "/data/x: No space left on device: free some space",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), "make it writable"),
        (MemoryError(), "out of memory: use a smaller batch"),
        (RecursionError("maximum depth"), "nested too deeply"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
    ],
)
def test_errors_of_the_machine_are_described(error: BaseException, words: str) -> None:
    assert words in described(error)
