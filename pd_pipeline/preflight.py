"""Checks of all parameters before any work starts, so that a typo does not stop it after hours."""

import hashlib
import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from pd_pipeline.config import PARAMS_FILE, TARGET, Parameters, parse
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family
from pd_pipeline.graph import Graph
from pd_pipeline.guard import stamp
from pd_pipeline.rendering import recording_files
from pd_pipeline.sources import PACKAGE
from pd_pipeline.stage import Key
from pd_pipeline.stages import ACROSS, Stage, stages
from pd_pipeline.storage import atomic_file
from pd_pipeline.studies.definition import label, path, read
from pd_pipeline.studies.points import error_context, point_graphs

MARK = Path(".work/checked")  # digest of the last valid state: importing every stage takes seconds


def check(graph: Graph) -> None:
    """Raise PipelineError for a block of params.yaml that is invalid, conflicts with another or with this machine."""
    mark, state = graph.root / MARK, _state(graph)
    if mark.is_file() and mark.read_bytes() == state:
        return
    check_blocks(graph)
    for name in graph.params.run.studies:
        check_points(graph, name)
    with atomic_file(mark) as temporary:
        temporary.write_bytes(state)


def check_points(graph: Graph, name: str) -> list[Graph]:
    """The points of a study. Raises PipelineError, which names the point, if one is invalid."""
    graphs = point_graphs(graph, name)
    for point, of_point in zip(read(graph.root, name).points, graphs, strict=True):
        with error_context(name, label(point)):
            check_blocks(of_point)
            for family in of_point.params.run.families:
                if of_point.family(family).is_recorded:
                    raise PipelineError(
                        f"family '{family}' has no simulator, and studies compare returns: leave it out"
                    )
    return graphs


def check_blocks(graph: Graph) -> None:
    """Like `check`, but without looking at earlier results."""
    blocks = {
        (stage, key.family): graph.stage_params(stage, key)
        for stage in graph.stages
        for key in graph.keys(stage)
        if key.family is not None
    }
    for stage in ACROSS:
        graph.stage_params(stage, Key())
    _check_device(graph.params.machine.device)
    target = importlib.import_module("pd_pipeline.tuning.protocol").TargetParams
    everything = stages(graph.params.run, graph.methods, everything=True)
    inactive = {name: stage for name, stage in everything.items() if name not in graph.stages}
    for family in graph.params.run.families:
        parse(target, graph.params.block(family, TARGET), f"{PARAMS_FILE}: families.{family}.{TARGET}")
        _check_names(graph, family, everything)
        # stages that are not run now are validated too
        for name, other in inactive.items():
            block = graph.params.block(family, name)
            parse(other.params_class(), block, f"{PARAMS_FILE}: families.{family}.{name}")
        of_family = {stage: params for (stage, of), params in blocks.items() if of == family}
        found = graph.family(family)
        if found.is_recorded:  # its checks read Parquet, which no other family needs here
            importlib.import_module("pd_pipeline.preflight_recorded").check_recorded(graph, found, of_family)
        else:
            _check_data(graph, found, of_family)


def _state(graph: Graph) -> bytes:
    """Digest of params.yaml, all code that validates it, the user's trajectories and the devices of this machine."""
    sources = {source for family in graph.params.run.families for source in graph.family_sources(family)}
    sources |= {method.source for method in graph.methods.values()}
    studies = {path(graph.root, name) for name in graph.params.run.studies}
    files = sorted({*PACKAGE.rglob("*.py"), *sources, *studies})
    recordings = [stamp(file) for file in recording_files(graph)]
    total = hashlib.sha256(repr((graph.text, graph.overrides, graph.base, recordings)).encode())
    for file in files:
        total.update(file.read_bytes())
    for device in ("/dev/nvidia0", "/dev/nvidiactl"):
        total.update(b"1" if Path(device).exists() else b"0")
    return total.hexdigest().encode()


def _check_names(graph: Graph, family: str, everything: Mapping[str, Stage]) -> None:
    """Raise PipelineError for a block that no stage reads: a typo. The blocks of active stages are checked already."""
    methods = {*graph.methods, *graph.params.run.variants}
    known = {"environment", TARGET, *everything, *(f"tuned_{method}" for method in methods)}
    present = graph.params.families.get(family) or {}
    for name in (name for name in graph.params.run.methods if name in graph.params.run.variants):
        if f"tuned_{name}" not in present:
            raise PipelineError(
                f"{PARAMS_FILE}: families.{family}.tuned_{name}: missing: a variant gets its "
                "parameters from this block: add it"
            )
    for name in present:
        close = get_close_matches(name, known, n=1)
        slip = not name.startswith("tuned_") or get_close_matches(name, known - present.keys(), n=1, cutoff=0.9)
        if name not in known and slip:  # otherwise it is the block of a variant that is not run now
            meant = f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(sorted(known))}"
            raise PipelineError(f"{PARAMS_FILE}: families.{family}.{name}: no such block: {meant}")


def _check_device(device: str) -> None:
    if device in ("auto", "cpu"):
        return
    from pd_pipeline.compute import pick_device

    try:
        pick_device(device)
    except PipelineError as error:
        raise PipelineError(f"{PARAMS_FILE}: machine.{error}") from None


def _check_data(graph: Graph, family: Family, blocks: dict[str, Parameters]) -> None:
    """Check what blocks require of each other: qualities, numbers of trajectories and the length of a prompt."""
    name, where = family.name, f"{PARAMS_FILE}: families.{family.name}"
    collected = getattr(blocks["trajectories"], "episodes", {})
    prompts = blocks["prompts"]
    if (length := getattr(prompts, "length", 1)) > family.horizon:
        raise PipelineError(f"{where}.prompts.length: {length} steps, but an episode has at most {family.horizon}")
    for stage, params in blocks.items():
        target = getattr(params, "target", None)
        asked = [getattr(target or params, "quality", None), *getattr(params, "qualities", ())]
        for quality in (quality for quality in asked if quality is not None):
            if quality not in collected:
                known = ", ".join(collected)
                raise PipelineError(f"{where}.{stage}: quality '{quality}' is not collected: choose one of {known}")
        few_shot = getattr(target, "few_shot", None)
        count = collected[asked[0]].test if asked[0] is not None else 0
        if few_shot is not None and not family.targets_are_trained and few_shot > count:
            own = TARGET in ((graph.params.families.get(name) or {}).get(stage) or {})
            place = f"{where}.{stage}.{TARGET}" if own else f"{where}.{TARGET}"
            raise PipelineError(
                f"{place}.few_shot: {few_shot} trajectories of quality '{asked[0]}', but "
                f"trajectories.episodes collects {count} per target"
            )
    needed = getattr(blocks.get("diffuser"), "quality", None)
    if needed is not None and needed not in getattr(prompts, "qualities", (needed,)):
        raise PipelineError(f"{where}.diffuser.quality: '{needed}' is not among prompts.qualities")
