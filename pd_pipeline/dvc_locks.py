"""DVC's own lock file, read without DVC: which processes hold locks, and whether they still can.

`.dvc/tmp/rwlock` names processes by pid and command line. If the pid has gone to another program since, as after a
restart of a container, nobody will ever release the lock.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RWLOCK = Path(".dvc/tmp/rwlock")


@dataclass(frozen=True)
class Holder:
    """A process that the lock file names, if a process with that pid exists."""

    pid: int
    command: str
    """The command line in the lock file."""
    running: str
    """The command line of the process that has this pid now."""

    @property
    def plausible(self) -> bool:
        """Whether the process with that pid may be the one that took the lock."""
        words = self.command.split()
        return not words or Path(words[0]).name in self.running


def holders(root: Path) -> list[Holder]:
    """The existing processes that DVC's lock file names; none where it is missing or unreadable."""
    try:
        held = json.loads((root / RWLOCK).read_bytes())
        entries = [
            *held.get("write", {}).values(),
            *(info for infos in held.get("read", {}).values() for info in infos),
        ]
        named = {(int(entry["pid"]), str(entry["cmd"])) for entry in entries if entry}
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return []
    return [Holder(pid, command, running) for pid, command in sorted(named) if (running := _running(pid)) is not None]


def remove_stale(root: Path) -> list[Holder]:
    """Remove the entries of processes that cannot hold them from DVC's lock file; returns those processes."""
    stale = [holder for holder in holders(root) if not holder.plausible]
    if not stale:
        return []
    gone = {(holder.pid, holder.command) for holder in stale}

    def is_kept(info: dict[str, Any]) -> bool:
        return (info.get("pid"), info.get("cmd")) not in gone

    held = json.loads((root / RWLOCK).read_bytes())
    left = {
        "write": {path: info for path, info in held.get("write", {}).items() if is_kept(info)},
        "read": {
            path: kept for path, infos in held.get("read", {}).items() if (kept := [i for i in infos if is_kept(i)])
        },
    }
    temporary = (root / RWLOCK).with_name(".rwlock.tmp")
    temporary.write_text(json.dumps(left))
    temporary.replace(root / RWLOCK)
    return stale


def _running(pid: int) -> str | None:
    """The command line of a process, or its name where it has none; None where there is no such process."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None
    return " ".join(word.decode(errors="replace") for word in words if word) or name
