"""The table of formats.

To add one, write its module, with `FORMAT`, `detect`, `open_sources` and `write`, and add its line.
"""

import importlib
from pathlib import Path
from typing import Any

from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.source import Source, reading
from pd_pipeline.storage import shown

FORMATS = {
    "lerobot": "a folder with meta/info.json",
    "minari": "a folder with data/metadata.json, or the id of a data set",
    "d4rl": "an HDF5 file with observations, actions, rewards, terminals and timeouts",
    "parquet": "a trajectory file of this pipeline, or a folder of them",
}
"""Name, which is also that of its module, -> what it is known by; in the order in which they are tried."""

WRITERS = {"minari": "minari", "lerobot": "lerobot_writing", "d4rl": "d4rl"}
"""Format that can be written -> the module that does."""


def module(name: str) -> Any:
    """The module of a format, or of its writer."""
    return importlib.import_module(f"pd_pipeline.exchange.{name}")


def open_sources(source: str, named: str | None, without: tuple[str, ...]) -> list[Source]:
    """The data sets of a source, whose format is recognised unless it is named. Raises PipelineError."""
    if named is not None and named not in FORMATS:
        raise PipelineError(f"--format {named}: no such format: choose one of {', '.join(FORMATS)}")
    found = named or next((name for name in FORMATS if module(name).detect(source)), None)
    if found is None or not (Path(source).exists() or module(found).detect(source)):
        known = "; ".join(f"{name}: {text}" for name, text in FORMATS.items() if named in (None, name))
        raise PipelineError(f"{source}: not found, or of no known format ({known})")
    with reading(source):
        sources: list[Source] = module(found).open_sources(source, without)
    for one in sources:
        one.name = str(shown(Path(one.name)))
    if not sources:
        raise PipelineError(f"{source}: holds no {found} data ({FORMATS[found]})")
    for name in without:
        if not all(name in one.removed for one in sources):
            parts = ", ".join(str(part) for part in sources[0].observation)
            raise PipelineError(f"--without {name}: no such part of an observation: it has {parts}")
    return sources
