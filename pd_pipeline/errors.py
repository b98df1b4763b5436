"""Errors that the user can fix, each one line; everything else is a bug in the program."""

import errno
from collections.abc import Iterable
from difflib import get_close_matches

MAX_MESSAGE = 1000  # characters; the contents of a broken file must not fill a terminal


class PipelineError(ValueError):
    """Says what was wrong, where, and what to do; the command line prints it without a traceback.

    Its text is one printable line of bounded length, whatever names and values of broken input it contains.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str, longest: int = MAX_MESSAGE) -> str:
    """`text` on one line, with unprintable characters escaped, and the middle left out where it is too long."""
    head, tail = text[: 2 * longest], text[-longest:] if len(text) > 2 * longest else ""
    half = longest // 2
    head, tail = _printable(head), _printable(tail)
    if not tail and len(head) <= longest:
        return head
    return f"{head[: longest - half - 5].rstrip()} ... {(tail or head)[-half:].lstrip()}"


def _printable(text: str) -> str:
    lines = "; ".join(part for part in (line.strip() for line in text.splitlines()) if part)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in lines)


def closest(name: str, known: Iterable[str], similarity: float = 0.6) -> str | None:
    """The known name that is most like `name`; None if none is at least so similar (0 to 1)."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=similarity)), None)


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to do about an unknown name: "did you mean 'x'?", or "choose one of" all known names in their order."""
    names = list(dict.fromkeys(known))
    close = closest(name, names)
    return f"choose one of {', '.join(names) or 'none'}" if close is None else f"did you mean '{close}'?"


EXPECTED = (PipelineError, OSError, UnicodeDecodeError, RecursionError, MemoryError)
"""Errors of the machine, its files and their contents: shown to the user as a message, never as a traceback."""


def described(error: BaseException) -> str:
    """One line that says what went wrong and, where known, what to do."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller batch, fewer workers, or a machine with more memory"
    if isinstance(error, RecursionError):
        return "something is nested too deeply: perhaps an input file is broken (`pd-pipeline validate`)"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        advice = _ADVICE.get(error.errno or 0, "")
        return one_line(f"{place}{error.strerror or error}{advice}")
    return one_line(str(error))


_ADVICE = {
    errno.ENOSPC: ": free some space and run again: work resumes where it stopped",
    errno.EDQUOT: ": free some space and run again: work resumes where it stopped",
    errno.EROFS: ": it cannot be written: make it writable and run again",
    errno.EACCES: ": it may not be read or written: change its permissions and run again",
    errno.EPERM: ": it may not be read or written: change its permissions and run again",
}
