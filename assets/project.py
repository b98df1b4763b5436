"""The project folder that the assets use."""

import os
from pathlib import Path

from pd_pipeline.config import PARAMS_FILE

ROOT_VARIABLE = "PD_PIPELINE_ROOT"


def root() -> Path:
    """The folder with params.yaml: PD_PIPELINE_ROOT, else the working directory, else this repository."""
    if named := os.environ.get(ROOT_VARIABLE):
        return Path(named).resolve()
    here = Path.cwd()
    return here if (here / PARAMS_FILE).is_file() else Path(__file__).parent.parent
