"""The commands that do work: `pd-pipeline run` and `pd-pipeline study`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pd_pipeline.engines.engine import ENGINE, EngineName, chosen
from pd_pipeline.errors import PipelineError
from pd_pipeline.piece import is_made

if TYPE_CHECKING:
    from pd_pipeline.engines.engine import Engine
    from pd_pipeline.engines.order import Piece
    from pd_pipeline.graph import Graph
    from pd_pipeline.stage import Key


OLD_SHOWN = 5


def run(
    stage: Annotated[str, typer.Argument(help="Stage of the graph, such as plm; `all` for all stages in order.")],
    key: Annotated[str, typer.Option(help="Key of the stage, such as reach-0; default: all keys.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Do the work even if it is up to date.")] = False,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Record the work in DVC.")] = True,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override params.yaml: NAME=VALUE, such as plm.steps=100. Nothing is recorded."),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            envvar=ENGINE,
            help="Where to compute: this process, or a Ray cluster (RAY_ADDRESS; without it, this machine).",
        ),
    ] = EngineName.LOCAL,
) -> None:
    """Run one stage, one of its keys, or all stages in one process. Work that is up to date is skipped."""
    from pd_pipeline import graph, preflight

    project = graph.load(Path.cwd(), tuple(override or ()))
    given_force, force, record = force, force or bool(override), record and not override
    preflight.check(project)
    if stage == "all":
        if key:
            raise PipelineError(f"--key {key}: `run all` runs every key: name a stage, or omit --key")
        pieces = [(name, one) for name in project.stages for one in project.keys(name)]
    else:
        keys = [project.key(stage, key)] if key else project.keys(stage)
        pieces = [(stage, one) for one in keys]
    if override:
        restore = "`dvc checkout --force` restores what is recorded"
        typer.echo(f"note: --set replaces outs in data/ and records nothing; {restore}", err=True)
    elif stage != "all" and record:
        _say_what_is_old(project, pieces)

    def make(stage: str, one: "Key") -> None:
        if override and not given_force and is_made(project, stage, one):
            typer.echo(f"{stage} {one}".strip() + ": up to date")
        else:
            _make(project, stage, one, force, record, computing)

    with chosen(engine) as computing:
        for _ in computing.results(pieces, project.upstream, make):
            pass


def study(
    name: Annotated[str, typer.Argument(help="Name of a file in studies/; without it, list the studies.")] = "",
    engine: Annotated[
        EngineName, typer.Option(envvar=ENGINE, help="Where to compute, as for `run`.")
    ] = EngineName.LOCAL,
) -> None:
    """Run every point of a study and show the results. Studies in run.studies are recorded in DVC."""
    from pd_pipeline import graph, preflight
    from pd_pipeline.reporting.study import table
    from pd_pipeline.stage import Key
    from pd_pipeline.studies import execution
    from pd_pipeline.studies.definition import PREFIX, names, read

    root = Path.cwd()
    if not name:
        for each in names(root):
            try:
                typer.echo(f"{each}: {read(root, each).title}")
            except PipelineError as error:
                typer.echo(f"{each}: {error}", err=True)
        if not names(root):
            typer.echo("no studies: a study is a file studies/<name>.yaml", err=True)
        return
    read(root, name)  # raises if there is no such file
    project = graph.load(root)
    known = name in project.params.run.studies
    with chosen(engine) as computing:
        if not known:
            with computing.progress() as progress:
                execution.make_points(project, name, progress, engine=computing)  # records the project's own work
            project = graph.load(root, (f"run.studies=[{name}]",))
        preflight.check(project)
        _make(project, PREFIX + name, Key(), False, known, computing)
    out = project.root / project.out(PREFIX + name, Key())
    for line in table(out):
        typer.echo(line)
    typer.echo(str(out))


def _say_what_is_old(project: "Graph", pieces: "list[Piece]") -> None:
    """Name the inputs of some pieces that are out of date themselves: what is made from them mixes old and new."""
    from pd_pipeline import lineage

    if not lineage.is_recording(project):
        return  # DVC makes what comes first, and outside a DVC project nothing else is known
    needs = {need for piece in pieces for need in project.upstream(*piece)} - {*pieces}
    here = [(stage, key) for stage, key in needs if (project.root / project.out(stage, key)).exists()]
    current = lineage.data_versions(project, here)
    if old := sorted(f"{stage} {key}" for stage, key in here if (stage, key) not in current):
        more = f" and {len(old) - OLD_SHOWN} more" if len(old) > OLD_SHOWN else ""
        typer.echo(f"note: out of date, and read as it is: {', '.join(old[:OLD_SHOWN])}{more}", err=True)


def _make(project: "Graph", stage: str, key: "Key", force: bool, record: bool, engine: "Engine") -> None:
    """Do a piece of work and print its metrics."""
    from pd_pipeline.stages import PAGE
    from pd_pipeline.studies import execution

    with engine.progress() as progress:
        outcome = execution.run(project, stage, key, progress, force=force, record=record, engine=engine)
    title = f"{stage} {key}".strip()
    if outcome.skipped:
        typer.echo(f"{title}: up to date")
    else:
        typer.echo(f"{title}: " + ", ".join(f"{n} {v:g}" for n, v in outcome.metrics.items()))
    if (page := project.root / project.out(stage, key) / PAGE).is_file():
        typer.echo(str(page))
