"""How a table is printed; apart, so that the command line imports nothing heavy for it."""

from enum import StrEnum


class Layout(StrEnum):
    """How a table is printed."""

    TEXT = "text"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
