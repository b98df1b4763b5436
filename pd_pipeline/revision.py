"""The git revision of a project."""

import subprocess
from pathlib import Path

from pd_pipeline.config import PARAMS_FILE

UNCOMMITTED = " with uncommitted changes"
UNKNOWN = "unknown"


def git_revision(root: Path) -> str:
    """Commit of the project at `root`, and whether code or parameters differ from it; "unknown" outside git."""
    revision = _git(root, "rev-parse", "HEAD")
    if not revision:
        return UNKNOWN
    changed = _git(root, "status", "--porcelain", "--", "*.py", PARAMS_FILE, "studies/*.yaml")
    return f"{revision.strip()}{UNCOMMITTED if changed else ''}"


def first_commit_with(root: Path, file: str, text: str) -> str | None:
    """The earliest commit in which a file of the project contains a text; None if there is none, or outside git."""
    found = _git(root, "log", "--reverse", "--format=%H", f"-S{text}", "--", file)
    return found.split("\n", 1)[0] or None


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""
