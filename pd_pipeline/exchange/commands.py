"""The commands `import` and `export` of `pd-pipeline`."""

import math
from pathlib import Path
from typing import Annotated

import typer


def import_(
    source: Annotated[str, typer.Argument(help="Path of a data set, or the id of a Minari data set on this machine.")],
    family: Annotated[
        str,
        typer.Option(help="Family that gets the trajectories: one without a simulator, but for targets (see --out)."),
    ],
    task: Annotated[int | None, typer.Option(help="Task of all episodes; default: the tasks of the source.")] = None,
    quality: Annotated[str | None, typer.Option(help="Quality; default: that of the source, else expert.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; default: the family's, else data/imported/FAMILY. New data of a target go to "
            "data/incoming/FAMILY/TASK, also of a family with a simulator."
        ),
    ] = None,
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
    """Import trajectories of another program. What was imported is not repeated."""
    from pd_pipeline.exchange.importing import bring, declaration
    from pd_pipeline.exchange.mapping import Asked
    from pd_pipeline.parsing import parse
    from pd_pipeline.progress import console

    bounds = {"action_low": _numbers("--action-low", action_low), "action_high": _numbers("--action-high", action_high)}
    given = reward if reward in (None, "success") else _numbers("--reward", reward)
    values = {"task": task, "quality": quality, "reward": given, "without": without or ()}
    asked = parse(Asked, values | bounds, "import")
    root = Path.cwd()
    with console() as progress:
        made = bring(root, source, family, asked, out, named, progress, typer.echo)
    for file in made:
        typer.echo(f"{file.relative_to(root) if root in file.parents else file}: written")
    if made and (text := declaration(root, family, made[0].parent)):
        typer.echo(text)


def _numbers(option: str, text: str | None) -> float | list[float] | None:
    """A number, or several with commas between them. Raises PipelineError, which names the option."""
    from pd_pipeline.errors import PipelineError

    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(math.isfinite(number) for number in found) or (option == "--reward" and len(found) > 1):
        wanted = "a number, or `success`" if option == "--reward" else "a number, or one for each of an action: -1,-2"
        raise PipelineError(f"{option} {text}: give {wanted}")
    return found if len(found) > 1 else found[0]


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
