"""Checks of all parameters before any work starts, so that a typo does not stop it after hours.

Environments and policies of users are tried, too: see `families.trial`.
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pd_pipeline import lineage, made_from, rendering
from pd_pipeline.behavior.learning import LearningParams, rounds_of
from pd_pipeline.config import PARAMS_FILE, TARGET, Parameters
from pd_pipeline.errors import PipelineError, closest, suggestion
from pd_pipeline.families.base import Family
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.foreign import TIMEOUT_SECONDS
from pd_pipeline.graph import Graph
from pd_pipeline.guard import stamp
from pd_pipeline.parsing import parse
from pd_pipeline.piece import is_made
from pd_pipeline.rendering import recording_files
from pd_pipeline.sources import PACKAGE
from pd_pipeline.stage import Key
from pd_pipeline.stages import ACROSS, OPTIONAL, Stage, stages
from pd_pipeline.storage import atomic_file, digest
from pd_pipeline.studies.definition import label, path, read
from pd_pipeline.studies.points import error_context, point_graphs

MARK = Path(".work/checked")  # digest of the last valid state: importing every stage takes seconds
TRIALS = Path(".work/trials")  # a file per environment that was tried, with the family's own qualities
LEAST = 2  # episodes of a training task: one to learn from, and one that is held out


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
        if key.family is not None and not graph.stages[stage].block
    }
    for stage in ACROSS:
        graph.stage_params(stage, Key())
    _check_device(graph.params.machine.device)
    everything = stages(graph.params.run, graph.methods, everything=True)
    inactive = {name: stage for name, stage in everything.items() if name not in graph.stages}
    for family in graph.params.run.families:
        graph.family_target(family)
        _check_names(graph, family, everything)
        # stages that are not run now are validated too
        for name, other in inactive.items():
            block = graph.params.block(family, name)
            parse(other.params_class(), block, f"{PARAMS_FILE}: families.{family}.{name}")
        of_family = {stage: params for (stage, of), params in blocks.items() if of == family}
        found = graph.family(family)
        _check_conditions(found, of_family)
        if found.is_recorded:
            from pd_pipeline.preflight_recorded import check_recorded  # imports pyarrow

            check_recorded(graph, found, of_family)
        else:
            _check_learning(found, of_family["behavior_policies"])
            _check_data(graph, found, of_family)
    for family in graph.params.run.families:  # last, since it may take seconds
        if not graph.family(family).is_recorded:
            levels = getattr(blocks["behavior_policies", family], "levels", {})
            _check_qualities(graph, family, levels, blocks["trajectories", family])


def _state(graph: Graph) -> bytes:
    """Digest of params.yaml, all code that validates it, the user's trajectories and the devices of this machine."""
    sources = {source for family in graph.params.run.families for source in made_from.family_sources(graph, family)}
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
        slip = not name.startswith("tuned_") or closest(name, known - present.keys(), similarity=0.9)
        if name not in known and slip:  # otherwise it is the block of a variant that is not run now
            hint = suggestion(name, sorted(known))
            raise PipelineError(f"{PARAMS_FILE}: families.{family}.{name}: no such block: {hint}")


def _check_device(device: str) -> None:
    if device in ("auto", "cpu"):
        return
    from pd_pipeline.compute import pick_device

    try:
        pick_device(device)
    except PipelineError as error:
        raise PipelineError(f"{PARAMS_FILE}: machine.{error}") from None


def _check_conditions(family: Family, blocks: Mapping[str, Parameters]) -> None:
    """Check what the diffuser is told: the family describes its tasks, and methods ask for nothing else."""
    known = getattr(blocks.get("diffuser"), "conditions", ())
    if "task" in known:
        from pd_pipeline.models.conditions import conditions_of  # imports torch, which takes seconds

        conditions_of(known, family)
    for stage, params in blocks.items():
        if unknown := [name for name in getattr(params, "ask", ()) if name not in known]:
            raise PipelineError(
                f"{PARAMS_FILE}: families.{family.name}.{stage}.ask: the diffuser is not told '{unknown[0]}': add it "
                f"to families.{family.name}.diffuser.conditions"
            )


def _check_learning(family: Family, params: Parameters) -> None:
    """Check that the training of behaviour policies fits the family's horizon, where there is one."""
    if isinstance(family, Locomotion) and getattr(params, "trained", None) is None:
        rounds_of(getattr(params, "learning", LearningParams()), family.name, family.horizon)


def _check_data(graph: Graph, family: Family, blocks: dict[str, Parameters]) -> None:
    """Check what blocks require of each other: qualities, numbers of trajectories and the length of a prompt."""
    name, where = family.name, f"{PARAMS_FILE}: families.{family.name}"
    collected = getattr(blocks["trajectories"], "episodes", {})
    prompts = blocks["prompts"]
    if (length := getattr(prompts, "length", 1)) > family.horizon:
        raise PipelineError(f"{where}.prompts.length: {length} steps, but an episode has at most {family.horizon}")
    for stage, params in blocks.items():
        target = getattr(params, "target", None)
        collecting = f"families.{name}.trajectories.episodes"
        for quality in getattr(params, "qualities", ()):
            _check_named(f"{where}.{stage}.qualities", quality, collected, collecting)
            if collected[quality].train < LEAST:
                raise PipelineError(
                    f"{where}.trajectories.episodes.{quality}.train: {collected[quality].train}, but {stage} "
                    f"learns from this quality and holds out one episode of each task: collect {LEAST} or more"
                )
        if target is None:
            continue
        method = graph.method(stage)
        if "prompts" in method.needs:
            place, of_prompts = _place_in_target(graph, name, stage, "quality"), getattr(prompts, "qualities", ())
            _check_named(place, target.quality, of_prompts, f"families.{name}.prompts.qualities")
        if not method.demonstrations:
            continue
        of_target = {"quality": target.quality, "prompt_quality": target.prompt_quality or target.quality}
        for field, quality in of_target.items():
            _check_named(_place_in_target(graph, name, stage, field), quality, collected, collecting)
            if target.few_shot is None:
                continue
            part = "train" if family.targets_are_trained else "test"
            if target.few_shot > (count := getattr(collected[quality], part)):
                raise PipelineError(
                    f"{_place_in_target(graph, name, stage, 'few_shot')}: {target.few_shot} trajectories of quality "
                    f"'{quality}', but trajectories.episodes.{quality}.{part} collects {count} per target"
                )
    for trained in OPTIONAL:
        for quality in getattr(blocks.get(trained), "qualities", ()):
            of_prompts = getattr(prompts, "qualities", ())
            _check_named(f"{where}.{trained}.qualities", quality, of_prompts, f"families.{name}.prompts.qualities")


def _place_in_target(graph: Graph, name: str, stage: str, field: str) -> str:
    """Where a field of the target's data is set: in the block of the tuning stage, else in that of the family."""
    own = ((graph.params.families.get(name) or {}).get(stage) or {}).get(TARGET) or {}
    return f"{PARAMS_FILE}: families.{name}.{f'{stage}.' if field in own else ''}{TARGET}.{field}"


def _check_named(place: str, quality: str | None, known: Collection[str], there: str) -> None:
    """Raise PipelineError if the quality at `place` is not among the `known` ones, which the block `there` names."""
    if quality is not None and quality not in known:
        hint = suggestion(quality, known)
        raise PipelineError(f"{place}: '{quality}' is not among the qualities of {there}: {hint} (or add it there)")


def _check_qualities(graph: Graph, name: str, levels: Mapping[str, Any], data: Parameters) -> None:
    """Check that every quality that is collected has a policy, and that every described policy has a known quality.

    What the user brings, an environment or descriptions of policies, is tried, unless the trajectories are up to date.
    """
    from pd_pipeline.trajectories.collection import refuse_without_policy

    family, episodes, where = graph.family(name), getattr(data, "episodes", {}), f"families.{name}"
    used = {quality: changes for quality, changes in levels.items() if quality in episodes}
    if not family.is_foreign and not used:
        own = list(family.default_behaviors())
    elif _is_collected(graph, Key(name)):
        return
    else:
        own = _tried(graph, Key(name), used, getattr(data, "patience", TIMEOUT_SECONDS))
    for quality in levels:
        if quality not in (*own, *episodes):
            raise PipelineError(
                f"{PARAMS_FILE}: {where}.behavior_policies.levels.{quality}: {where}.trajectories.episodes does not "
                f"name this quality: {suggestion(quality, (*own, *episodes))} (or add it there)"
            )
    refuse_without_policy(name, episodes, (*own, *levels))


def _is_collected(graph: Graph, key: Key) -> bool:
    """Whether the trajectories of a family are up to date, which shows that its environment and policies work."""
    recording = lineage.is_recording(graph)
    return all(
        bool(recording and lineage.up_to_date(graph, stage, key)) or is_made(graph, stage, key)
        for stage in ("behavior_policies", "trajectories")
    )


def _tried(graph: Graph, key: Key, levels: dict[str, Any], patience: float) -> list[str]:
    """The qualities that a family itself has policies for. It is tried, once for the same parameters and code."""
    from pd_pipeline.families.trial import qualities

    assert key.family is not None
    made = rendering.digests(graph, "behavior_policies", key).values()
    done = graph.root / TRIALS / digest(*made, *levels)[:16]
    if not done.is_file():
        block = graph.params.block(key.family, "environment")
        found = qualities(key.family, block, levels, graph.root, patience)
        with atomic_file(done) as temporary:
            temporary.write_text("\n".join(found))
    return done.read_text().splitlines()
