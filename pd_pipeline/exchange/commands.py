"""The commands `import` and `export` of `pd-pipeline`."""

from pathlib import Path
from typing import Annotated

import typer


def import_(
    source: Annotated[str, typer.Argument(help="Path of a data set, or the id of a Minari data set on this machine.")],
    family: Annotated[str, typer.Option(help="Family without a simulator that gets the trajectories.")],
    task: Annotated[int | None, typer.Option(help="Task of all episodes; default: the tasks of the source.")] = None,
    quality: Annotated[str | None, typer.Option(help="Quality; default: that of the source, else expert.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: the family's, else data/imported/FAMILY.")] = None,
    named: Annotated[
        str | None, typer.Option("--format", help="minari, d4rl, lerobot or parquet; default: recognised.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="Reward of every step, instead of the recorded one: a number, or success.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Part of the observations to leave out, such as a goal; may be repeated.")
    ] = None,
    action_low: Annotated[
        str | None,
        typer.Option(help="Lower bound of actions: a number, or one for each number of an action, as -1,-2."),
    ] = None,
    action_high: Annotated[str | None, typer.Option(help="Upper bound of actions.")] = None,
) -> None:
    """Import trajectories of another program for a family without a simulator. What was imported is not repeated."""
    from pd_pipeline.exchange.importing import bring, declaration
    from pd_pipeline.exchange.mapping import Asked
    from pd_pipeline.parsing import parse
    from pd_pipeline.progress import console

    values = {"task": task, "quality": quality, "reward": reward, "without": without or ()}
    asked = parse(Asked, values | {"action_low": _numbers(action_low), "action_high": _numbers(action_high)}, "import")
    root = Path.cwd()
    with console() as progress:
        made = bring(root, source, family, asked, out, named, progress, typer.echo)
    for file in made:
        typer.echo(f"{file.relative_to(root) if root in file.parents else file}: written")
    if made and (text := declaration(root, family, made[0].parent)):
        typer.echo(text)


def _numbers(text: str | None) -> str | list[str] | None:
    """The parts of a list with commas."""
    return text.split(",") if text is not None and "," in text else text


def export(
    out: Annotated[Path, typer.Argument(help="Folder or file to write; must not be there yet.")],
    family: Annotated[str, typer.Option(help="Family in params.yaml.")],
    named: Annotated[str, typer.Option("--format", help="minari, lerobot or d4rl.")],
    quality: Annotated[str, typer.Option(help="Quality of the trajectories.")] = "expert",
    fps: Annotated[int, typer.Option(min=1, help="Steps per second, for the time stamps of LeRobot.")] = 10,
) -> None:
    """Write the trajectories of a family and quality in a format of another program."""
    from pd_pipeline.exchange.exporting import send

    episodes, steps = send(Path.cwd(), family, quality, named, out, fps)
    typer.echo(f"{out}: {episodes:,} episodes, {steps:,} steps")
