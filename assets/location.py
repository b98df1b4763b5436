"""The code location that `dagster dev -w workspace.yaml` loads."""

from assets.definitions import build
from assets.project import root

defs = build(root())
