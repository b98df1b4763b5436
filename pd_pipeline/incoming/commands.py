"""The commands `ingest`, `promote` and `status` of `pd-pipeline`."""

from pathlib import Path
from typing import Annotated

import typer

from pd_pipeline.errors import PipelineError


def ingest(
    settle: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds for which a file without a .done marker must have been left alone; default: params.yaml's.",
        ),
    ] = None,
    work: Annotated[bool, typer.Option("--work/--no-work", help="Tune and promote for the targets, too.")] = True,
) -> None:
    """Take new trajectories of targets from data/incoming/, tune for these targets, and promote what is not worse.

    Exit 1 if a file was quarantined or a target failed.
    """
    from pd_pipeline import graph
    from pd_pipeline.incoming.ingest import take
    from pd_pipeline.progress import console

    root = Path.cwd()
    outcomes = take(graph.load(root), settle)
    for outcome in outcomes:
        typer.echo(f"{outcome.file}: {outcome.state}: {outcome.message}")
    good = all(outcome.state != "quarantined" for outcome in outcomes)
    if work:
        from pd_pipeline.incoming.retuning import retune

        with console() as progress:
            good = retune(root, progress, typer.echo) and good
    if not good:
        raise typer.Exit(1)


def promote(
    target: Annotated[str, typer.Argument(help="Target, such as reach-5.")],
    rollback: Annotated[bool, typer.Option("--rollback", help="Put the version before in use again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Put the tuned policy in use without a comparison.")] = False,
) -> None:
    """Compare the tuned policy of a target with the one in use, and put it in use unless it is worse.

    Exit 1 if it is refused, also if that was decided earlier.
    """
    from pd_pipeline import graph
    from pd_pipeline.decisions import decisions
    from pd_pipeline.deployment.promotion import promote as decide
    from pd_pipeline.deployment.promotion import roll_back

    if rollback and force:
        raise PipelineError("--rollback and --force exclude each other: the one goes back, the other goes on")
    root = Path.cwd()
    decision = roll_back(root, target) if rollback else decide(graph.load(root), target, typer.echo, force=force)
    if decision is None:
        decision = decisions(root, target)[-1]
        typer.echo(f"{target}: nothing new since the last decision of {decision.decided}")
    typer.echo(f"{target}: {decision.outcome}: {decision.reason}")
    if decision.outcome == "refused":
        raise typer.Exit(1)


def status() -> None:
    """Show for each target which policy is in use, and what is newer, waits or was refused; and what is quarantined."""
    from pd_pipeline import graph
    from pd_pipeline.incoming.ingest import quarantined
    from pd_pipeline.incoming.standing import status as found

    root = Path.cwd()
    project = graph.load(root)
    rows, reasons = list(found(project)), quarantined(root)
    if not rows and not reasons:
        family, tasks = next(iter(project.tasks.items()))
        typer.echo(
            "no target has new data or a policy in use: put trajectories into data/incoming/<family>/<task>/ and run "
            f"`pd-pipeline ingest`, or promote a tuned target: `pd-pipeline promote {family}-{tasks[0]}`"
        )
    for row in rows:
        typer.echo(f"{row.target}: {row.in_use} in use")
        for name in ("newer", "waits", "refused", "rolled_back"):
            if text := getattr(row, name):
                typer.echo(f"  {name.replace('_', ' ')}: {text}")
    if reasons:
        typer.echo("in data/quarantine/:")
    for reason in reasons:
        typer.echo(f"  {reason}")
