"""A small copy of a run's numbers, to keep in version control: results/<family>/."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pd_pipeline import lineage, records
from pd_pipeline.config import PARAMS_FILE, TUNED
from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation import results
from pd_pipeline.evaluation.results import Evaluation, Given, MethodResult, Tuned
from pd_pipeline.evaluation.scores import CEILING, method_metrics
from pd_pipeline.graph import Graph, load
from pd_pipeline.lockfile import LOCK_FILE, only
from pd_pipeline.rendering import address
from pd_pipeline.reporting.canvas import png
from pd_pipeline.reporting.plots import comparison, per_task
from pd_pipeline.reporting.provenance import effective_parameters, machine, versions
from pd_pipeline.reporting.stage_plots import drawn
from pd_pipeline.reporting.study import costs, figure, searched
from pd_pipeline.reporting.study import load as load_study
from pd_pipeline.revision import UNCOMMITTED, git_revision
from pd_pipeline.stage import Key
from pd_pipeline.storage import atomic_directory, atomic_file, digest, read_json, write_json
from pd_pipeline.studies.definition import PREFIX, names, path
from pd_pipeline.studies.points import pieces as pieces_of
from pd_pipeline.studies.points import point_graphs
from pd_pipeline.studies.stage import SEARCHES
from pd_pipeline.tuning.methods import built_in


def publish(root: Path, name: str, destination: Path) -> list[Path]:
    """Publish a family that runs, or a study: small files, with what made them, in a folder below `destination`.

    A study need not be in run.studies. Returns the files. Raises PipelineError where there is no such family or study
    here, where a study is out of date, or where code is not committed.
    """
    graph = load(root)
    if name in graph.params.run.families:
        return _publish_family(graph, name, destination / name)
    if name in graph.params.run.studies:
        return _publish_study(graph, name, destination / "studies" / name)
    if name in names(root):
        return _publish_study(load(root, (f"run.studies=[{name}]",)), name, destination / "studies" / name)
    here = ", ".join((*graph.params.run.families, *names(root)))
    raise PipelineError(f"publish: '{name}' is no family or study that runs here: choose one of {here}")


def _refuse_uncommitted(root: Path) -> None:
    if git_revision(root).endswith(UNCOMMITTED):
        raise PipelineError(
            f"publish: code or parameters of {root} are not committed, so that nobody could make these numbers again: "
            "commit, run again, and publish then"
        )


def _exactly(graph: Graph, folder: Path, pieces: list[tuple[str, Key]]) -> None:
    """Copy the parameters as they are written, and what DVC has on record of the pieces."""
    (folder / PARAMS_FILE).write_text(graph.text)
    if (graph.root / LOCK_FILE).is_file():
        names = {address(stage, key) for stage, key in pieces}
        (folder / LOCK_FILE).write_text(only((graph.root / LOCK_FILE).read_text(), names))


def _publish_study(graph: Graph, name: str, destination: Path) -> list[Path]:
    """The study's file, its results, scores and plots."""
    _refuse_uncommitted(graph.root)
    stage = PREFIX + name
    if not lineage.is_current(graph, stage, Key()):
        raise PipelineError(f"publish: study {name} is not made, or out of date: run `pd-pipeline study {name}` first")
    out, points = graph.root / graph.out(stage, Key()), point_graphs(graph, name)
    seconds = [seconds_per_target(point) for point in points]
    with atomic_directory(destination) as folder:
        for found in load_study(out):
            _draw(folder, {found.family: png(figure(found))})
            for drawing in costs(found, seconds[0].get(found.family)):
                _draw(folder, {f"{found.family} cost": png(drawing)})
            for number, drawing in searched(found):
                _draw(folder, {f"{found.family} episodes": png(drawing)}, f"-{number}" if len(found.points) > 1 else "")
        if (searches := out / SEARCHES).is_file():
            with atomic_file((folder / SEARCHES).with_suffix(".csv")) as file:
                pl.read_parquet(searches).write_csv(file)
        write_json(folder / "study.json", read_json(out / "study.json"))
        with atomic_file(folder / "scores.csv") as file:
            pl.read_parquet(out / "scores.parquet").write_csv(file)
        (folder / f"{name}.yaml").write_text(path(graph.root, name).read_text())
        _exactly(graph, folder, [(stage, Key()), *graph.upstream(stage, Key())])
        made = ((point.home(*piece), *piece) for point in points for piece in pieces_of(point))
        about = {"made_at": made_at(made), "seconds_per_target": seconds}
        write_json(folder / "provenance.json", _made_by(graph) | about)
    return sorted(destination.iterdir())


def _publish_family(graph: Graph, family: str, destination: Path) -> list[Path]:
    """Metrics, scores, fit, data quality and plots."""
    params = graph.params
    if graph.family(family).is_recorded:
        raise PipelineError(
            f"publish: family '{family}' has no simulator: its scores are offline, and published numbers are returns"
        )
    _refuse_uncommitted(graph.root)
    with atomic_directory(destination) as folder:
        tables: list[pl.DataFrame] = []
        for seed in params.run.seeds:
            evaluation = graph.root / graph.out("evaluation", Key(family, None, seed))
            tables.append(pl.read_parquet(evaluation / "scores.parquet"))
            write_json(folder / f"metrics-{seed}.json", read_json(evaluation / "metrics.json"))
            _draw(folder, _plots(graph, "evaluation", evaluation), f"-{seed}")
            if "prompt_fit" in graph.stages:
                fit = graph.root / graph.out("prompt_fit", Key(family, None, seed))
                write_json(folder / f"fit-{seed}.json", read_json(fit / "fit.json"))
                _draw(folder, _plots(graph, "prompt_fit", fit), f"-{seed}")
        with atomic_file(folder / "scores.csv") as file:
            pl.concat(tables).write_csv(file)
        data = graph.root / graph.out("trajectories", Key(family))
        write_json(folder / "data.json", read_json(data / "summary.json"))
        _draw(folder, {f"data {title}": image for title, image in _plots(graph, "trajectories", data).items()})
        every = [(stage, key) for stage in graph.stages for key in graph.keys(stage) if key.family == family]
        pieces = [piece for piece in every if graph.is_benchmark(*piece)]
        _exactly(graph, folder, pieces)
        write_json(folder / "provenance.json", _provenance(graph, family, pieces))
        recompute(folder)
        pooled = results.load(folder / "metrics.json").methods
        scores = read_scores(folder)
        _draw(folder, {"comparison": png(comparison(pooled)), "per task": png(per_task(scores, list(pooled)))})
    return sorted(destination.iterdir())


def recompute(folder: Path) -> None:
    """Write the metrics of a published folder anew, from the scores and from what made them there."""
    for name, evaluation in metrics_of(folder).items():
        results.save(folder / name, evaluation)


def metrics_of(folder: Path) -> dict[str, Evaluation]:
    """metrics.json and metrics-<seed>.json of a published folder, as its scores.csv gives them.

    What methods were given and what their tuning took does not follow from scores: it is read from the metrics of each
    seed. Where these are from before what was given was recorded, it is read from the parameters of provenance.json.
    What neither holds stays null.
    """
    scores = read_scores(folder)
    provenance = read_json(folder / "provenance.json")
    draws = provenance["parameters"]["evaluation"]["bootstrap"]
    seeds = scores["seed"].unique(maintain_order=True).to_list()
    files = {seed: results.load(folder / f"metrics-{seed}.json") for seed in seeds}
    tuned: dict[str, list[Tuned]] = {}
    found: dict[str, Evaluation] = {}
    for seed, file in files.items():
        of_seed = {
            method: Tuned(given_to(folder, provenance, method, result), result.costs)
            for method, result in file.methods.items()
        }
        for method, out in of_seed.items():
            tuned.setdefault(method, []).append(out)
        alone = {method: [out] for method, out in of_seed.items()}
        metrics = method_metrics(scores.filter(pl.col("seed") == seed), alone, seed, draws)
        found[f"metrics-{seed}.json"] = Evaluation(metrics, file.precision, file.family, seed)
    precisions = {file.precision for file in files.values()}
    pooled = method_metrics(scores, tuned, provenance["seeds"][0], draws)
    return {"metrics.json": Evaluation(pooled, precisions.pop() if len(precisions) == 1 else None), **found}


def read_scores(folder: Path) -> pl.DataFrame:
    """scores.csv of a published folder."""
    try:
        return pl.read_csv(folder / "scores.csv", schema_overrides={"success": pl.Boolean, "return": pl.Float64})
    except (FileNotFoundError, pl.exceptions.PolarsError) as error:
        raise PipelineError(f"{folder / 'scores.csv'}: not the scores of a published run ({error})") from None


def given_to(folder: Path, provenance: Mapping[str, Any], name: str, result: MethodResult) -> Given:
    """What a method was given; where its metrics do not record that, what follows from the parameters of the run."""
    if result.given.quality is not None:
        return result.given
    parameters = provenance["parameters"][f"tuned_{name}"]
    method = max((m for m in built_in() if name == m or name.startswith(f"{m}_")), key=len)
    count = parameters["few_shot"]
    if count is None:  # all there are: as many as the target tasks have, where they have equally many
        tasks = read_json(folder / "data.json")[parameters["quality"]]["tasks"]
        counts = {tasks[str(task)]["episodes"] for task in result.tasks}
        count = counts.pop() if len(counts) == 1 else None
    return Given(
        method=method,
        frozen=method != CEILING,
        quality=parameters["quality"],
        few_shot=count,
        shown=parameters.get("shown"),
        candidates=parameters.get("candidates"),
        chain=parameters.get("chain"),
    )


def _plots(graph: Graph, stage: str, out: Path) -> dict[str, bytes]:
    plots = graph.stages[stage].plots
    return {} if plots is None else drawn(plots, out)


def _draw(folder: Path, plots: dict[str, bytes], suffix: str = "") -> None:
    for title, image in plots.items():
        with atomic_file(folder / f"{title.lower().replace(' ', '-')}{suffix}.png") as file:
            file.write_bytes(image)


def _made_by(graph: Graph) -> dict[str, Any]:
    return {
        "versions": versions(),
        "revision": git_revision(graph.root),
        "published_with": git_revision(Path(__file__).parents[2]),  # pools seeds and draws
        "machine": machine(),
    }


def made_at(pieces: Iterable[tuple[Path, str, Key]]) -> dict[str, list[str]]:
    """Stage -> the git revisions at which its pieces were made, by the records in their homes (home, stage, key).

    They need not be the one that is published: work that code does not change is used again. `unknown` is a piece
    without a record, or without a revision in it.
    """
    found: dict[str, set[str]] = {}
    for home, stage, key in pieces:
        record = records.find(home, stage, key)
        found.setdefault(stage, set()).add((record.revision if record else None) or "unknown")
    return {stage: sorted(revisions) for stage, revisions in found.items()}


def seconds_per_target(graph: Graph) -> dict[str, dict[str, float]]:
    """Family -> method -> seconds of tuning for one target, the median over targets and seeds, by the records.

    A method of which a record is missing, since it was tuned elsewhere, is left out.
    """
    found: dict[str, dict[str, float]] = {}
    for family in graph.params.run.families:
        for method in graph.params.run.methods:
            stage = f"{TUNED}{method}"
            keys = [key for key in graph.keys(stage) if key.family == family and graph.is_benchmark(stage, key)]
            made = [records.find(graph.home(stage, key), stage, key) for key in keys]
            if all(made):
                found.setdefault(family, {})[method] = float(np.median([m.seconds for m in made if m]))
    return found


def _provenance(graph: Graph, family: str, pieces: list[tuple[str, Key]]) -> dict[str, Any]:
    made = {address(stage, key): records.find(graph.root, stage, key) for stage, key in pieces}
    return {
        "seeds": list(graph.params.run.seeds),
        "parameters": effective_parameters(graph.params, family, graph.root, graph.modules),
        **_made_by(graph),
        "made_at": made_at((graph.root, *piece) for piece in pieces),
        # null: made elsewhere, and what it took there is not known here
        "seconds": {name: record.seconds if record else None for name, record in made.items()},
        "device": {name: record.device if record else None for name, record in made.items()},
        "precision": {name: record.precision if record else None for name, record in made.items()},
        "digests": {
            address(stage, key): digest(graph.root / graph.out(stage, key))
            for stage, key in pieces
            if not stage.startswith("tuned_")
        },
    }
