"""Names of files in dvc.yaml and in digests, which do not depend on where things are."""

import os
from pathlib import Path

from pd_pipeline.sources import PACKAGE


def in_checkout(root: Path) -> bool:
    """Whether the project is this package's checkout, or a folder in it."""
    return PACKAGE.parent == root or PACKAGE.parent in root.parents


def relative(path: Path, root: Path) -> str:
    """The path of a file in dvc.yaml: relative to the project, so a checkout can be moved."""
    return path.relative_to(root).as_posix() if root in path.parents else Path(os.path.relpath(path, root)).as_posix()


def code_name(path: Path, root: Path) -> str:
    """A name for a code file that does not depend on where this package is installed."""
    base = PACKAGE.parent if PACKAGE in path.parents and not in_checkout(root) else root
    return relative(path, base)
