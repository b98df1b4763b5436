"""The commands `export-policy`, `rollout` and `lineage` of `pd-pipeline`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

TARGET = typer.Argument(help="Target in data/promoted/, such as reach-5, or a policy folder.")


class Format(StrEnum):
    """What a policy can be exported to."""

    ONNX = "onnx"


def export_policy(
    target: Annotated[str, TARGET],
    format: Annotated[Format, typer.Option(help="Format of the file.")] = Format.ONNX,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: <family>-<task>-onnx.")] = None,
) -> None:
    """Export a policy to an ONNX file and a JSON file, and check that its actions are equal."""
    from pd_pipeline.deployment.onnx_export import ABOUT, MODEL, export_onnx

    folder, exported = export_onnx(target, out)
    for name in (MODEL, ABOUT):
        typer.echo(str(folder / name))
    typer.echo(
        f"largest difference to PyTorch on {exported.checked_windows} real windows: {exported.largest_difference:.1e} "
        f"(tolerance {exported.tolerance:g})"
    )


def rollout(
    target: Annotated[str, TARGET],
    video: Annotated[Path | None, typer.Option(help="File to write the episodes to: .mp4 or .gif.")] = None,
    episodes: Annotated[int, typer.Option(min=1, max=1000, help="Number of episodes.")] = 1,
) -> None:
    """Try a policy in the environment of its family, as params.yaml describes it."""
    from pd_pipeline.deployment.policy import load_policy
    from pd_pipeline.deployment.rollout import roll_out
    from pd_pipeline.deployment.video import check_format, film

    if video is not None:
        check_format(video)
    policy, root = load_policy(target, batch=episodes), Path.cwd()
    made = roll_out(policy, root, episodes)
    for number, episode in enumerate(made, 1):
        outcome = {None: "", True: ", success", False: ", no success"}[episode.success]
        typer.echo(f"episode {number}: return {episode.episode_return:.3f}{outcome}, {len(episode.actions)} steps")
    if video is not None:
        film(policy.description, made, root, video)
        typer.echo(str(video))


def lineage(
    target: Annotated[str, TARGET],
    version: Annotated[int | None, typer.Option(help="Version of the target; default: the one in use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with everything in full.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the files. Exit 1 if a file of the policy differs.")
    ] = False,
) -> None:
    """Show all that a promoted policy comes from, back to raw trajectories."""
    from pd_pipeline.deployment.trace import checked, trace
    from pd_pipeline.deployment.trace_text import lines

    found = trace(target, version)
    if check:
        found = checked(found, Path.cwd())
    for line in [found.model_dump_json(indent=1)] if as_json else lines(found):
        typer.echo(line)
    if found.check is not None and not found.check.good:
        raise typer.Exit(1)
