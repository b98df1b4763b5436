"""The points of a study as graphs: the project's graph with other parameters, sharing all work these do not change.

The recipe of a stage is a digest of its code, its parameters and the recipes of the stages it reads. If a point and the
project have the same recipe, the point reads the project's own out. All other work is in `data/points/<recipe>/`, with
its own outs, records and resume folders, shared by all points of all studies with this recipe. So a PLM that a grid
does not change is trained once, and a study that was stopped resumes where it stopped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pd_pipeline import config, made_from, rendering
from pd_pipeline.errors import PipelineError, suggestion
from pd_pipeline.families.registry import BUILT_IN
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
        for name, stage in graph.stages.items():  # upstream first
            if stage.axes:
                made = rendering.digests(graph, name, Key(family))
                found[name, family] = digest(name, *made.values(), *(found[need, family] for need in stage.needs))
    return found


def point_graphs(project: Graph, name: str) -> list[Graph]:
    """One graph per point of a study, in the order of the grid, with `homes` for work that the project does not have.

    Raises PipelineError, which names study and point, if a point is invalid.
    """
    study, own = read(project.root, name), recipes(project)
    graphs: list[Graph] = []
    seen: list[Recipes] = []
    _check_families(project, study, name)
    for point in study.points:
        with error_context(name, label(point)):
            graph = load(project.root, (*project.overrides, *study.overrides(point)), study.base)
        made = recipes(graph)
        homes: dict[tuple[str, str | None, int | None], Path] = {}
        for (stage, family), recipe in made.items():
            seeds = graph.params.run.seeds if SEED in graph.stages[stage].axes else (None,)
            shared = own.get((stage, family)) == recipe
            for seed in seeds:
                if not (shared and (seed is None or seed in project.params.run.seeds)):
                    homes[stage, family, seed] = project.root / POINTS / recipe[:16]
        for earlier, before in zip(study.points, seen, strict=False):
            if made == before:
                raise PipelineError(
                    f"{FOLDER}/{name}.yaml: points {label(earlier)} and {label(point)} are the same: nothing that the "
                    "study runs reads what differs between them"
                )
        seen.append(made)
        graphs.append(replace(graph, homes=homes))
    return graphs


def _check_families(project: Graph, study: Study, name: str) -> None:
    """Raise PipelineError for a family in `base` that the project does not know: a typo."""
    asked = study.base.get("families")
    known = {*project.params.families, *BUILT_IN, *config.families_of(study.base.get("run"))}
    for family in asked if isinstance(asked, dict) else ():
        if family not in known:
            hint = suggestion(family, sorted(known))
            raise PipelineError(f"{FOLDER}/{name}.yaml: base.families.{family}: unknown family: {hint}")


@contextmanager
def error_context(study: str, point: str) -> Iterator[None]:
    """Name study and point in errors raised inside the block."""
    try:
        yield
    except PipelineError as error:
        raise PipelineError(f"{FOLDER}/{study}.yaml, point {point}: {error}") from error


def pieces(graph: Graph) -> list[tuple[str, Key]]:
    """All work of a point on the targets of its families, upstream first: without the report, and new targets."""
    every = [(name, key) for name in graph.stages if name != REPORT for key in graph.keys(name)]
    return [piece for piece in every if graph.is_benchmark(*piece)]


def study_stage(project: Graph, name: str) -> Stage:
    """The stage that collects the results of a study. It needs the project's own outs that its points read."""
    study, graphs = read(project.root, name), point_graphs(project, name)
    needs = [
        stage
        for stage in project.stages
        if any(is_shared(graph, stage, key) for graph in graphs for name, key in pieces(graph) if name == stage)
    ]
    work = [(graph, *piece) for graph in graphs for piece in pieces(graph)]
    code = {file for each in work for file in made_from.code(*each)}
    recordings = {file for each in work for file in made_from.recordings(*each)}
    module = "pd_pipeline.studies.stage"
    return Stage(
        PREFIX + name,
        module,
        module,
        (),
        tuple(needs),
        RESULTS,
        files=(path(project.root, name), *sorted(code)),
        recordings=tuple(sorted(recordings)),
        plots="pd_pipeline.reporting.stage_plots:study",
        preset=_plan(study, graphs),
    )


def is_shared(graph: Graph, stage: str, key: Key) -> bool:
    """Whether a point reads this piece of work from the project itself."""
    return graph.home(stage, key) == graph.root


def _plan(study: Study, graphs: list[Graph]) -> Plan:
    """What the stage collects, and from which folders."""
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
