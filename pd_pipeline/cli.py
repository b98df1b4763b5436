"""The `pd-pipeline` command: thin doors to the library."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Adapt pre-trained policies with generated prompts.", no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Keep sub-commands, however few there are."""


@app.command()
def run(
    stage: Annotated[str, typer.Argument(help="Stage of the graph.")],
    key: Annotated[str, typer.Option(help="Which piece of it, such as reach-0.")] = "",
) -> None:
    """Run one stage, or one key of it."""
    from pd_pipeline import graph, progress

    project = graph.load(Path.cwd())
    for one in [project.key(stage, key)] if key else project.keys(stage):
        metrics = graph.run(project, stage, one, progress.console())
        typer.echo(f"{stage} {one}: " + ", ".join(f"{n} {v:g}" for n, v in metrics.items()))


if __name__ == "__main__":
    app()
