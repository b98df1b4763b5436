"""The points of a study as graphs: each is the project's with other parameters, and shares what these do not change.

What makes the outs of a stage is summed up by its recipe: code and parameters of the stage, and the recipes of what it
reads. Where a point has a recipe of the project itself, it reads the project's own out. Every other piece lies in
`data/points/<recipe>/`, a small project of its own with outs, records and resume folders, which all points of all
studies with this recipe share. So a PLM that a grid does not change is trained once, and a study that was stopped goes
on where it stopped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pd_pipeline import rendering
from pd_pipeline.errors import PipelineError
from pd_pipeline.graph import Graph, load
from pd_pipeline.stage import Key
from pd_pipeline.stages import REPORT, RESULTS, SEED, Stage
from pd_pipeline.storage import digest
from pd_pipeline.studies.definition import FOLDER, PREFIX, Study, label, path, read
from pd_pipeline.studies.plan import Plan, PlannedPoint

POINTS = Path("data/points")
Recipes = dict[tuple[str, str], str]
"""(stage, family) -> recipe."""


def recipes(graph: Graph) -> Recipes:
    """The recipe of every stage and family of a graph."""
    found: Recipes = {}
    for family in graph.params.run.families:
        for name, stage in graph.stages.items():  # in the order of their needs
            if stage.axes:
                made = rendering.digests(graph, name, Key(family))
                found[name, family] = digest(name, *made.values(), *(found[need, family] for need in stage.needs))
    return found


def point_graphs(project: Graph, name: str) -> list[Graph]:
    """One graph per point of a study, in the order of the grid; each knows which of its pieces are the project's own.

    Raises PipelineError, which names study and point, where one asks for what there is not.
    """
    study, own = read(project.root, name), recipes(project)
    graphs = []
    for point in study.points:
        with named(name, label(point)):
            graph = load(project.root, (*project.overrides, *study.overrides(point)), study.base)
        made = recipes(graph)
        homes: dict[tuple[str, str | None, int | None], Path] = {}
        for (stage, family), recipe in made.items():
            seeds = graph.params.run.seeds if SEED in graph.stages[stage].axes else (None,)
            shared = own.get((stage, family)) == recipe
            for seed in seeds:
                if not (shared and (seed is None or seed in project.params.run.seeds)):
                    homes[stage, family, seed] = project.root / POINTS / recipe[:16]
        graphs.append(replace(graph, homes=homes))
    return graphs


@contextmanager
def named(study: str, point: str) -> Iterator[None]:
    """Name study and point in the errors of what is done."""
    try:
        yield
    except PipelineError as error:
        raise PipelineError(f"{FOLDER}/{study}.yaml, point {point}: {error}") from error


def pieces(graph: Graph) -> list[tuple[str, Key]]:
    """What is made at a point, upstream first: everything but the report."""
    return [(name, key) for name in graph.stages if name != REPORT for key in graph.keys(name)]


def study_stage(project: Graph, name: str) -> Stage:
    """The stage that gathers a study. It needs what its points read of the project's own outs."""
    study, graphs = read(project.root, name), point_graphs(project, name)
    needs = [
        stage
        for stage in project.stages
        if any(is_shared(graph, stage, key) for graph in graphs for name, key in pieces(graph) if name == stage)
    ]
    code = {file for graph in graphs for stage, key in pieces(graph) for file in graph.code(stage, key)}
    module = "pd_pipeline.studies.stage"
    return Stage(
        PREFIX + name,
        module,
        module,
        (),
        tuple(needs),
        RESULTS,
        files=(path(project.root, name), *sorted(code)),
        plots="pd_pipeline.reporting.stage_plots:study",
        preset=_plan(study, graphs),
    )


def is_shared(graph: Graph, stage: str, key: Key) -> bool:
    """Whether a piece of a point is the project's own."""
    return graph.home(stage, key) == graph.root


def _plan(study: Study, graphs: list[Graph]) -> Plan:
    """What the stage gathers, and where it lies."""
    points = []
    for point, graph in zip(study.points, graphs, strict=True):
        run = graph.params.run
        keys = [Key(family, None, seed) for family in run.families for seed in run.seeds]
        tuned = {
            method: {str(key): graph.input("evaluation", key, f"tuned_{method}").as_posix() for key in keys}
            for method in run.methods
        }
        fits = {str(key): graph.out("prompt_fit", key).as_posix() for key in keys if "prompt_fit" in graph.stages}
        points.append(
            PlannedPoint(
                label=label(point),
                values=point,
                seeds=run.seeds,
                targets={family: graph.tasks[family] for family in run.families},
                bootstrap={name: graph.params.block(name, "evaluation").get("bootstrap") for name in run.families},
                evaluation={str(key): graph.out("evaluation", key).as_posix() for key in keys},
                tuned=tuned,
                fits=fits,
            )
        )
    return Plan(title=study.title, note=study.note, names=tuple(study.grid), points=tuple(points))
