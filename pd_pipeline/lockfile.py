"""dvc.lock as text: replaces or picks entries without parsing the others.

DVC rewrites the whole file with a YAML parser that keeps comments, in pure Python: recording one of the seven hundred
pieces of the published benchmark took 19 seconds that way, and takes 3 this way. Entries are blocks of lines, so
replacing one needs no parser.
"""

import re
from collections.abc import Collection

LOCK_FILE = "dvc.lock"
HEAD = "schema: '2.0'\nstages:\n"


def only(text: str, names: Collection[str]) -> str:
    """The text of dvc.lock with the entries of `names` alone; all of it where it has an unexpected layout."""
    if not text.startswith(HEAD):
        return text
    blocks = re.split(r"^(?=  \S)", text[len(HEAD) :], flags=re.MULTILINE)
    return HEAD + "".join(block for block in blocks if block.split(":\n", 1)[0].strip(" '\"") in names)


def with_entry(text: str, entry: str) -> str | None:
    """The text of dvc.lock with `entry` in place of the entry of the same name, or at the end.

    `entry` is a whole file with that entry alone, as DVC writes it. None where either has an unexpected layout: then
    DVC must write the file.
    """
    text = text or HEAD
    if not (text.startswith(HEAD) and entry.startswith(HEAD) and text.endswith("\n")):
        return None
    if re.search(r" &id\d", text):  # an anchor, to which another entry may refer
        return None
    body, block = text[len(HEAD) :], entry[len(HEAD) :]
    if any(re.search(r"^(?!  )", part, re.MULTILINE) for part in (body.rstrip("\n"), block.rstrip("\n")) if part):
        return None  # a top-level key other than stages
    name = block.split("\n", 1)[0]  # "  plm@reach-0:"
    if f"\n{name}\n" not in f"\n{body}":
        return text + block
    begin = f"\n{body}".index(f"\n{name}\n")
    following = re.compile(r"^  \S", re.MULTILINE).search(body, begin + len(name))
    end = following.start() if following else len(body)
    return HEAD + body[:begin] + block + body[end:]
