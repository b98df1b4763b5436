"""`pd-pipeline init`: create a project that is ready to run."""

import subprocess
from pathlib import Path

from pd_pipeline import graph, rendering
from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.dvc_repo import init_dvc
from pd_pipeline.errors import PipelineError

TEMPLATE = Path(__file__).with_name("project.yaml")
IGNORED = {
    # ?*: for DVC, * alone would ignore data/ itself, and it would not find what `dvc add` writes there
    ".gitignore": ["/data/?*", "!/data/*.dvc", "/.work/", "/digests.json", "/dvc_plots/", "__pycache__/"],
    ".dvcignore": ["__pycache__", ".*.tmp", ".*.old"],
}


def begin(root: Path) -> list[Path]:
    """Create a project in the folder `root`, which may contain other files. Returns the files written.

    Raises PipelineError if there is a project already.
    """
    if (root / PARAMS_FILE).exists():
        raise PipelineError(f"{root / PARAMS_FILE}: already exists: edit this file instead")
    root.mkdir(parents=True, exist_ok=True)
    if not rendering.is_project(root):
        init_dvc(root, git_top(root))
    if not (root / ".dvc/.gitignore").exists():  # outside git DVC writes none, and git may come later
        (root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    for name, lines in IGNORED.items():
        present = (root / name).read_text().splitlines() if (root / name).is_file() else []
        (root / name).write_text("\n".join([*present, *(line for line in lines if line not in present)]) + "\n")
    (root / PARAMS_FILE).write_text(TEMPLATE.read_text())
    rendering.write(graph.load(root))
    return [root / name for name in (PARAMS_FILE, rendering.DVC_FILE, *IGNORED)]


def git_top(root: Path) -> Path | None:
    """The top folder of the git repository that contains a folder; None outside git."""
    try:
        command = ["git", "rev-parse", "--show-toplevel"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None
