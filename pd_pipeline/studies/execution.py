"""Doing a piece of work, called by the CLI, DVC and Dagster. For a study, its points are done first."""

from functools import partial

from pd_pipeline import lineage, preflight
from pd_pipeline.engines.engine import LOCAL, Engine
from pd_pipeline.graph import Graph
from pd_pipeline.lineage import Outcome
from pd_pipeline.piece import is_made
from pd_pipeline.progress import Progress
from pd_pipeline.stage import Key
from pd_pipeline.studies.definition import PREFIX
from pd_pipeline.studies.points import is_shared, pieces


def run(
    graph: Graph,
    stage: str,
    key: Key,
    progress: Progress,
    *,
    force: bool = False,
    record: bool = True,
    engine: Engine = LOCAL,
) -> Outcome:
    """Like `lineage.run`, but does the points of a study first, unless the study is up to date."""
    if stage.startswith(PREFIX) and stage in graph.stages:
        recorded = record and not force and lineage.is_recording(graph)
        if recorded and (data_version := lineage.up_to_date(graph, stage, key)):
            return Outcome({}, True, data_version)
        make_points(graph, stage.removeprefix(PREFIX), progress, record=record, engine=engine)
    return lineage.run(graph, stage, key, progress, force=force, record=record, compute=engine.compute)


def make_points(project: Graph, name: str, progress: Progress, *, record: bool = True, engine: Engine = LOCAL) -> None:
    """Do all work of all points of a study that is not up to date, one point after the other."""
    for graph in preflight.check_points(project, name):
        make = partial(_make_in, project, graph, progress, record, engine)
        for _ in engine.results(pieces(graph), graph.upstream, make):
            pass


def _make_in(
    project: Graph, graph: Graph, progress: Progress, record: bool, engine: Engine, stage: str, key: Key
) -> None:
    """Do one piece of work of a point, which `graph` is."""
    if not is_shared(graph, stage, key):
        lineage.make(graph, stage, key, progress, engine.compute)
    elif not is_made(project, stage, key):
        lineage.run(project, stage, key, progress, record=record, compute=engine.compute)
