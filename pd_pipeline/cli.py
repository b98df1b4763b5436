"""The `pd-pipeline` command: a thin layer over the library."""

import shlex
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pd_pipeline import __version__
from pd_pipeline.deployment import commands as deployment
from pd_pipeline.engines import commands as engines
from pd_pipeline.errors import EXPECTED, PipelineError, described
from pd_pipeline.exchange import commands as exchange
from pd_pipeline.incoming import commands as incoming
from pd_pipeline.reporting.layout import Layout

if TYPE_CHECKING:
    from pd_pipeline.config import Parameters


class _Group(typer.core.TyperGroup):
    """Prints expected errors of every command as one line instead of a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        from pd_pipeline.interruption import Interrupted, unwind_on_signals

        if threading.current_thread() is threading.main_thread():
            unwind_on_signals()
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except Interrupted:
            print("interrupted: what was finished is kept; the same command goes on from there", file=sys.stderr)
            raise
        except EXPECTED as error:
            print(f"error: {described(error)}", file=sys.stderr)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pd-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Adapt pre-trained policies with generated prompts."""


# here, since --help lists the commands in the order of this file
app.command()(engines.run)
app.command()(engines.study)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Folder of the project; created if missing.")] = Path(),
) -> None:
    """Start your own project: params.yaml with a small example, and a DVC repository."""
    from pd_pipeline.starting import begin

    for file in begin(directory):
        typer.echo(str(file))
    place = "" if directory == Path() else f"cd {shlex.quote(str(directory))}; "
    typer.echo(f"edit params.yaml, then: {place}pd-pipeline run all")


@app.command()
def graph(
    write: Annotated[bool, typer.Option("--write", help="Render the graph to dvc.yaml.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if dvc.yaml differs.")] = False,
) -> None:
    """Show the stages and their keys, or render them to dvc.yaml."""
    from pd_pipeline import graph as graphs
    from pd_pipeline import lineage, preflight, rendering

    project = graphs.load(Path.cwd())
    if write:
        preflight.check(project)
    if write and lineage.keep_rendered(project):
        typer.echo(f"{rendering.DVC_FILE}, {rendering.DIGESTS_FILE}: written")
    if check:
        rendering.check(project)
    if not write and not check:
        for stage in project.stages.values():
            after = f" after {', '.join(stage.needs)}" if stage.needs else ""
            typer.echo(f"{stage.name}{after}: " + (" ".join(map(str, project.keys(stage.name))) or "one piece"))


@app.command()
def clean() -> None:
    """Remove all that the pipeline made in this project. Your own files, raw data and DVC's cache stay."""
    from pd_pipeline.clean import clean as removed
    from pd_pipeline.config import PARAMS_FILE

    if not Path(PARAMS_FILE).is_file():
        raise PipelineError(f"no {PARAMS_FILE} here, so this is no project: nothing is removed")
    for line in removed(Path.cwd().resolve()):
        typer.echo(line)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Trajectory files (Parquet).")],
    target: Annotated[
        str, typer.Option(help="Check them as new data of this target, such as reach-57, as `ingest` would.")
    ] = "",
) -> None:
    """Check trajectory files as the pipeline does. Exit 1 if a file is invalid."""
    from pd_pipeline import config
    from pd_pipeline.families.base import Families
    from pd_pipeline.incoming.ingest import check_new
    from pd_pipeline.trajectories.checking import check_file

    params = config.load(Path.cwd())
    families = Families(params, () if target else params.families, Path.cwd())
    bad = 0
    for file in files:
        try:
            summary, copies = (
                check_new(Path.cwd(), file, families, target) if target else (check_file(file, families), 0)
            )
            left_out = f", {copies:,} of them copies, which would be left out" if copies else ""
            typer.echo(f"{file}: good: {summary.episodes:,} episodes, {summary.steps:,} steps{left_out}")
        except PipelineError as error:
            bad += 1
            print(f"refused: {error}", file=sys.stderr)
    if bad:
        raise typer.Exit(1)


app.command("import")(exchange.import_)
app.command("export")(exchange.export)


@app.command()
def params() -> None:
    """Show every parameter with its value (from params.yaml, else the default) and its meaning."""
    from pd_pipeline import graph as graphs
    from pd_pipeline.stage import Key
    from pd_pipeline.stages import ACROSS

    project = graphs.load(Path.cwd())
    typer.echo("run:")
    _show(project.params.run, 1)
    typer.echo("machine:")
    _show(project.params.machine, 1)
    for name in ("promotion", "automation"):
        typer.echo(f"{name}:")
        _show(getattr(project.params, name), 1)
    for stage in ACROSS:
        typer.echo(f"{stage}:")
        _show(project.stage_params(stage, Key()), 1)
    typer.echo("families:")
    for family in project.params.run.families:
        typer.echo(f"  {family}:\n    environment:")
        _show(project.family(family).params, 3)
        for name in project.modules:  # the stages with a block of their own
            key = next((key for key in project.keys(name) if key.family == family), None)
            if key is not None:
                typer.echo(f"    {name}:")
                _show(project.stage_params(name, key), 3)


def _show(values: "Parameters", depth: int) -> None:
    """Print a block as YAML, with lists and mappings as JSON (valid YAML) and the meanings as comments."""
    import json

    from pd_pipeline.config import Parameters
    from pd_pipeline.reference import meaning

    plain = values.model_dump(mode="json")
    for name in type(values).model_fields:
        comment = f"  # {text}" if (text := meaning(type(values), name)) else ""
        if isinstance(inner := getattr(values, name), Parameters):
            typer.echo("  " * depth + f"{name}:{comment}")
            _show(inner, depth + 1)
        else:
            typer.echo("  " * depth + f"{name}: {json.dumps(plain[name])}{comment}")


@app.command()
def publish(
    name: Annotated[str, typer.Argument(help="Family or study in params.yaml.")],
    to: Annotated[
        Path, typer.Option(help="Target folder; the copy is in <to>/NAME, or <to>/studies/NAME for a study.")
    ] = Path("results"),
) -> None:
    """Copy the results of a family or study, with their provenance, to results/."""
    from pd_pipeline.reporting.publish import publish as copy

    for file in copy(Path.cwd(), name, to):
        typer.echo(str(file))


@app.command()
def compare(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="scores.csv or scores.parquet of evaluations, studies or results/; default: this project's."
        ),
    ] = None,
    to: Annotated[str, typer.Option(help="Method that the others are compared with.")] = "prompt_dt",
    floor: Annotated[str, typer.Option(help="Method whose mean return is 0 on the scale.")] = "noise_prompt",
    ceiling: Annotated[str, typer.Option(help="Method whose mean return is 1 on the scale.")] = "full_finetune",
    point: Annotated[int | None, typer.Option(min=0, help="Point of a study, numbered from 0.")] = None,
    form: Annotated[Layout, typer.Option("--format", help="Layout of the table.")] = Layout.TEXT,
    figure: Annotated[Path | None, typer.Option(help="PNG to write performance profiles to.")] = None,
) -> None:
    """Compare all methods with one, by family and over all: normalised IQM, probability of improvement, tests."""
    from pd_pipeline import graph as graphs
    from pd_pipeline.reporting import comparison, score_tables
    from pd_pipeline.reporting.canvas import png
    from pd_pipeline.storage import atomic_file

    if point is not None and not files:
        raise PipelineError("compare: --point is of a study: name its scores.csv or scores.parquet")
    scores = score_tables.of_files(files, point) if files else score_tables.of_project(graphs.load(Path.cwd()))
    scale = comparison.on_one_scale(scores, floor, ceiling)
    typer.echo(comparison.table(comparison.rows(scale, to), form))
    if figure is not None:
        with atomic_file(figure) as file:
            file.write_bytes(png(comparison.profiles(list(scale.values())[-1])))


@app.command()
def costs() -> None:
    """Show the cost of each piece of work: seconds of all its processes, device and precision."""
    from pd_pipeline import graph as graphs
    from pd_pipeline.reporting.costs import table

    for row in table(graphs.load(Path.cwd())):
        typer.echo("  ".join(row))


@app.command()
def doctor() -> None:
    """Look for common problems and fix those that can be fixed."""
    from pd_pipeline.doctor import examine

    problems = 0
    for finding in examine(Path.cwd()):
        typer.echo(str(finding))
        problems += finding.problem
    if problems:
        raise typer.Exit(1)


app.command("export-policy")(deployment.export_policy)
app.command("rollout")(deployment.rollout)
app.command("lineage")(deployment.lineage)
app.command("ingest")(incoming.ingest)
app.command("promote")(incoming.promote)
app.command("status")(incoming.status)
