"""`pd-pipeline export`: the trajectories of a family and quality in a format of another program."""

from pathlib import Path

from pd_pipeline import graph as graphs
from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.formats import WRITERS, module
from pd_pipeline.stage import Key
from pd_pipeline.trajectories.contents import contents
from pd_pipeline.trajectories.episodes import episodes
from pd_pipeline.trajectories.reading import read_metadata

FPS = 10
"""Steps per second that a LeRobot data set states, if none are given: trajectories hold no times."""


def send(root: Path, family: str, quality: str, named: str, out: Path, fps: int = FPS) -> tuple[int, int]:
    """Export what stage trajectories made of a family of the project; returns episodes and steps.

    Raises PipelineError if there are none, or something is at `out` already.
    """
    if named not in WRITERS:
        raise PipelineError(f"--format {named}: cannot be written: choose one of {', '.join(WRITERS)}")
    project = graphs.load(root)
    folder = root / project.out("trajectories", project.key("trajectories", family))
    path = folder / f"{quality}.parquet"
    if not path.is_file():
        found = ", ".join(file.stem for file in sorted(folder.glob("*.parquet")))
        missing = f"found {found}" if found else f"run `pd-pipeline run trajectories --key {Key(family)}` first"
        raise PipelineError(f"{path}: no trajectories of quality '{quality}': {missing}")
    if out.exists():
        raise PipelineError(f"{out}: is there already: choose another place, or move it away")
    metadata = read_metadata(path, project.family(family))
    module(WRITERS[named]).write(out, metadata, episodes(path), fps)
    lengths = contents(path).lengths.values()
    return sum(map(len, lengths)), sum(int(of_task.sum()) for of_task in lengths)
