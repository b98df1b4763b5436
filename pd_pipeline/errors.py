"""Errors that are the user's to mend, each one line; everything else is a defect of the program."""

import errno

LONGEST_MESSAGE = 1000  # characters; what a broken file holds must not fill a terminal


class PipelineError(ValueError):
    """Says what was wrong, where, and what to do; the command line prints it without a traceback.

    Its text is one printable line of bounded length, whatever names and values of broken input went into it.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """`text` on one line, what cannot be printed escaped, the middle left out where it is too long."""
    head, tail = text[: 2 * longest], text[-longest:] if len(text) > 2 * longest else ""
    half = longest // 2
    head, tail = _printable(head), _printable(tail)
    if not tail and len(head) <= longest:
        return head
    return f"{head[: longest - half - 5].rstrip()} ... {(tail or head)[-half:].lstrip()}"


def _printable(text: str) -> str:
    lines = "; ".join(part for part in (line.strip() for line in text.splitlines()) if part)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in lines)


EXPECTED = (PipelineError, OSError, UnicodeDecodeError, RecursionError, MemoryError)
"""What a machine, its files and their contents may do to a command: a message to the user, never a traceback."""


def described(error: BaseException) -> str:
    """One line that says what went wrong, and where it is known, what to do."""
    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller batch, fewer workers, or a machine with more of it"
    if isinstance(error, RecursionError):
        return "something is nested too deeply: a broken file among the inputs, perhaps (`pd-pipeline validate`)"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        advice = _ADVICE.get(error.errno or 0, "")
        return one_line(f"{place}{error.strerror or error}{advice}")
    return one_line(str(error))


_ADVICE = {
    errno.ENOSPC: ": make room and run again: work goes on where it stopped",
    errno.EDQUOT: ": make room and run again: work goes on where it stopped",
    errno.EROFS: ": it cannot be written: make it writable and run again",
    errno.EACCES: ": it may not be read or written: change its permissions and run again",
    errno.EPERM: ": it may not be read or written: change its permissions and run again",
}
