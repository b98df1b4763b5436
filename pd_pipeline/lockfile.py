"""dvc.lock as text: replaces or picks entries without parsing the others.

DVC rewrites the whole file with a YAML parser that keeps comments, in pure Python: recording one of the seven hundred
pieces of the published benchmark took 19 seconds that way. Entries are blocks of lines, so finding or replacing one
needs no parser, and takes as long as reading and writing the file.
"""

import re
from collections.abc import Collection

LOCK_FILE = "dvc.lock"
HEAD = "schema: '2.0'\nstages:\n"
_FEW = 20
"""Entries that are searched for one by one; more of them in one pass."""
_FOLLOWING = re.compile(r"^  \S", re.MULTILINE)


def only(text: str, names: Collection[str]) -> str:
    """The text of dvc.lock with the entries of `names` alone; all of it where it has an unexpected layout."""
    if not _is_plain(text):
        return text
    if len(names) <= _FEW:
        spans = sorted(span for name in names if (span := _span(text, name)))
        return HEAD + "".join(text[begin:end] for begin, end in spans)
    blocks = re.split(r"^(?=  \S)", text[len(HEAD) :], flags=re.MULTILINE)
    return HEAD + "".join(block for block in blocks if block.split(":\n", 1)[0].strip(" '\"") in names)


def with_entry(text: str, entry: str) -> str | None:
    """The text of dvc.lock with `entry` in place of the entry of the same name, or at the end.

    `entry` is a whole file with that entry alone, as DVC writes it. None where either has an unexpected layout: then
    DVC must write the file.
    """
    text = text or HEAD
    if not (_is_plain(text) and _is_plain(entry)):
        return None
    block = entry[len(HEAD) :]
    span = _span(text, block.split(":\n", 1)[0].strip(" '\""))
    found = text + block if span is None else text[: span[0]] + block + text[span[1] :]
    return found if " &id" not in block or _is_plain(found) else None


def _is_plain(text: str) -> bool:
    """Whether there is nothing but entries, each a block of indented lines, and none refers to another.

    Anchors, which DVC takes over from params.yaml, are all in the entry of digests.json.
    """
    if not (text.startswith(HEAD) and text.endswith("\n")):
        return False
    after = len(HEAD) - 1  # the end of the line `stages:`; each line from there on is indented
    if text.count("\n", after) - 1 != text.count("\n  ", after):
        return False
    first = text.find(" &id")  # an alias comes after its anchor
    return first < 0 or not _FOLLOWING.search(text, first, max(text.rfind(" &id"), text.rfind(" *id")))


def _span(text: str, name: str) -> tuple[int, int] | None:
    """Where the entry of a name begins and ends."""
    for written in (name, f"'{name}'", f'"{name}"'):
        if (before := text.find(f"\n  {written}:\n")) >= 0:
            following = _FOLLOWING.search(text, before + 4)
            return before + 1, following.start() if following else len(text)
    return None
