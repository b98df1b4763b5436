"""The one error that is the user's to mend; everything else is a defect of the program."""

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
